"""`load`: whatever a user calls a model becomes a `Model`."""

from __future__ import annotations

import importlib
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from headway.core.errors import BadFile, BadInput, extras_named
from headway.core.model import Model
from headway.core.packaged import PACKAGED
from headway.core.registry import systems
from headway.core.workload import see_here

_RUNTIMES = {"language": "headway.llm.load:load_saved", "module": "headway.core.module_files:load_module"}
"""Who reads an artifact's weights. A fixed table: a file never names code to run."""


@extras_named()
def load(source: Any, sample: Any = None, *, module: Any = None, allow_code: bool = False) -> Model:
    """A `Model` from a packaged name, a folder, a `.gguf` file, `shvit(variant=s1)` (a system of the kind `model`),
    `timm:NAME`, `python:module:function`, a torch module.

    `sample` is an example input of a torch module: a tensor, a tuple or a dict. For an artifact whose network its
    user built: `module` brings that network again (its values do not matter), or `allow_code` lets the
    `python:module:function` that the artifact names be run. Raises `BadInput` for anything else.
    """
    loaded = _load(source, sample, module, allow_code)
    if isinstance(source, str | Path):
        loaded.given = str(source)
    return loaded


def _load(source: Any, sample: Any, module: Any, allow_code: bool) -> Model:
    if isinstance(source, str | Path) and str(source).strip() and (Path(source) / "headway.json").is_file():
        return _from_artifact(Path(source), module, allow_code)
    if module is not None:
        raise BadInput(f"{source} is no artifact", "module= is for artifacts of modules")
    if isinstance(source, Model):
        return source
    if not isinstance(source, str | Path):
        return _from_module(source, sample)
    text = str(source)
    if not text.strip():
        raise BadInput("the model's name is empty", f"give a path, or one of: {', '.join(PACKAGED)}")
    if text in PACKAGED:
        model: Model = _call(PACKAGED[text].loader)()
        return model
    if text.startswith("timm:"):
        return _from_timm(text.removeprefix("timm:"), sample)
    if text.startswith("python:"):
        return _from_function(text.removeprefix("python:"), sample)
    path = Path(text)
    if not path.exists():
        from headway.core.module_origin import build_family, is_family

        if is_family(text):
            return build_family(text)
        names = [*PACKAGED, *(slug for slug, known in systems().items() if known.card.kind == "model")]
        near = get_close_matches(text.partition("(")[0], names, n=1)
        mend = f"did you mean {near[0]}?" if near else f"give a path, or one of: {', '.join(names)}"
        raise BadInput(f"no model {text!r}: neither a packaged name nor a path", mend)
    if (path / "recipe.toml").exists() or (path / "weights").is_dir():
        raise BadFile(path / "headway.json", 0, "the artifact's manifest is missing", "fetch the artifact again, whole")
    from headway.llm.load import load as load_language_model

    return load_language_model(path)


def as_language(model: Model) -> Any:
    """The model as a `LanguageModel`; raises `BadInput` for another task."""
    if model.task != "language":
        raise BadInput(f"{model.name} is no language model", "give e.g. smollm2-135m")
    return model


def _call(name: str) -> Any:
    module, _, function = name.partition(":")
    return getattr(importlib.import_module(module), function)


def _from_module(module: Any, sample: Any, name: str = "module", origin: Any = None) -> Model:
    import torch

    if not isinstance(module, torch.nn.Module):
        raise BadInput(f"cannot load a {type(module).__name__}", "give a name, a path or a torch.nn.Module")
    if sample is None:
        raise BadInput("a torch module needs an example input", "call headway.load(module, sample=batch)")
    from headway.core.module_model import ModuleModel

    return ModuleModel(module, sample, name=name, origin=origin)


def _from_timm(name: str, sample: Any) -> Model:
    """A network with untrained weights: what it costs can be judged, what it says cannot."""
    import torch

    from headway.core.module_model import ModuleModel
    from headway.core.module_origin import Origin, build_timm

    module: Any = build_timm(name).eval()
    inputs = torch.zeros(1, *module.default_cfg["input_size"]) if sample is None else sample
    return ModuleModel(module, inputs, name=f"timm:{name}", task="classification", origin=Origin("timm", name))


def _from_function(name: str, sample: Any) -> Model:
    """The user's own code, run because the user typed its name: a module, with a sample or without, or a `Model`."""
    from headway.core.module_origin import Origin

    module, _, function = name.partition(":")
    if not module or not function:
        raise BadInput(f"python:{name} does not name a function", "write python:module:function")
    see_here()
    try:
        made = getattr(importlib.import_module(module), function)()
    except (ImportError, AttributeError) as error:
        raise BadInput(f"python:{name}: {error}", "check the name and PYTHONPATH") from None
    except (Exception, SystemExit) as error:  # whatever the user's code raises
        raise BadInput(f"python:{name} failed: {type(error).__name__}: {error}", "mend the function") from error
    if isinstance(made, Model):
        return made
    net, sample = made if isinstance(made, tuple) and len(made) == 2 else (made, sample)
    return _from_module(net, sample, f"python:{name}", Origin("python", name))


def _from_artifact(path: Path, module: Any, allow_code: bool) -> Model:
    from headway.core.artifact import read_manifest

    runtime = read_manifest(path).runtime
    if runtime not in _RUNTIMES:
        raise BadInput(f"{path}: written by a runtime {runtime!r} that is not known here", "update headway")
    if runtime != "module" and module is not None:
        raise BadInput(f"{path} holds a language model", "load it without module=")
    brought = {"module": module, "allow_code": allow_code} if runtime == "module" else {}
    model: Model = _call(_RUNTIMES[runtime])(path / "weights", **brought)
    return model
