"""The workload of one run, from what the user gave: text, data, a judge, a context."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from headway.core.errors import BadInput
from headway.core.model import Model
from headway.core.workload import Workload, split_text, user_function


def make_workload(
    model: Model,
    *,
    text: str | Path | None = None,
    data: str | Path | None = None,
    quality: str = "",
    context: int = 0,
) -> Workload:
    """Raises `BadInput` for text given to a module, data given to a language model, or a judge that is not there."""
    if quality:
        user_function(quality)
    if model.task == "language":
        if data is not None:
            raise BadInput("--data is for modules", "give a language model text with --text")
        texts = None if text is None else split_text(text)
        return Workload(context=context, texts=texts, quality=quality or "perplexity")
    if text is not None or context:
        raise BadInput("--text and --context are for language models", "give a module its inputs with --data")
    splits = None if data is None else _module_data(model, Path(data))
    return Workload(data=splits, quality=quality or "agreement")


def _module_data(model: Model, path: Path) -> Any:
    """Inputs from a .npy array or a .safetensors file: the first axis counts them."""
    import numpy as np
    import torch

    from headway.core.module_workload import workload_from

    if not path.is_file():
        raise BadInput(f"no data file {str(path)!r}", "give a .npy or .safetensors file")
    try:
        if path.suffix == ".npy":
            arrays = [np.load(path, allow_pickle=False)]
        elif path.suffix == ".safetensors":
            from safetensors.numpy import load_file

            arrays = list(load_file(path).values())
        else:
            raise BadInput(f"{path}: inputs are read from .npy or .safetensors", "convert the file")
    except (ValueError, OSError) as error:
        raise BadInput(f"{path}: {str(error)[:200]}", "write it again with numpy.save or safetensors") from None
    count = min((len(array) for array in arrays), default=0)
    tensors = [torch.from_numpy(np.ascontiguousarray(array)) for array in arrays]
    inputs = [tuple(tensor[i : i + 1] for tensor in tensors) for i in range(count)]
    return workload_from(inputs, model.task)
