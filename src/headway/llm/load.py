"""`load`: a language model from whatever holds one."""

from __future__ import annotations

import importlib
from pathlib import Path

from headway.core.errors import BadInput
from headway.core.packaged import PACKAGED
from headway.llm.gguf.model import load_gguf
from headway.llm.hugging_face import CONVERT, PICKLED, load_folder
from headway.llm.language_model import LanguageModel
from headway.llm.saved import DESCRIPTION, load_saved

__all__ = ["load", "load_language_model", "load_saved"]


def load(source: str | Path) -> LanguageModel:
    """A packaged name, a `.gguf` file, a Hugging Face folder or a saved model's folder.

    Raises `BadInput` (or `BadFile`, with the byte) for anything that is none of these, `Lacking` for a package that
    is not installed.
    """
    if str(source) in PACKAGED and PACKAGED[str(source)].loader.startswith("headway.llm."):
        module, _, function = PACKAGED[str(source)].loader.partition(":")
        model: LanguageModel = getattr(importlib.import_module(module), function)()
        return model
    path = Path(source)
    if path.is_dir():
        for folder in (path, path / "weights"):
            if (folder / DESCRIPTION).is_file():
                return load_saved(folder)
        return load_folder(path)
    if path.name.endswith(PICKLED):
        raise BadInput(f"{path} is a pickle, which can run code", CONVERT)
    if not path.exists():
        raise BadInput(f"no model {str(source)!r}", "give a packaged name, a folder or a .gguf file")
    return load_gguf(path)


load_language_model = load
