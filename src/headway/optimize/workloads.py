"""The workload of one run, from what the user gave: text, data, a judge, a context."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from headway.core.errors import BadInput
from headway.core.model import Model
from headway.core.workload import TEXT_LIMIT, Workload, split_text, user_function

SUFFIXES = (".npy", ".safetensors")
JUDGES = {
    "language": ("original", "candidate", "windows"),
    "module": ("output of the original", "output of the candidate"),
}
"""What a user's quality function is called with."""


def check_sources(*, text: str | Path | None = None, data: Any = None, quality: str = "") -> None:
    """Raise `BadInput` for files and judges that no model could use; nothing is read but the judge's module."""
    if text is not None:
        _plain_file(text, "text", "give a plain text file")
        if Path(text).stat().st_size > TEXT_LIMIT:
            raise BadInput(f"{text} is longer than {TEXT_LIMIT} bytes", "give a part of it")
    if isinstance(data, str | Path):
        _plain_file(data, "data", "give a .npy or .safetensors file")
        if Path(data).suffix not in SUFFIXES:
            raise BadInput(f"{data}: inputs are read from .npy or .safetensors", "convert the file")
    if quality:
        _check_judge(quality, list(JUDGES))


def make_workload(
    model: Model,
    *,
    text: str | Path | None = None,
    data: Any = None,
    quality: str = "",
    context: int = 0,
) -> Workload:
    """data: a file, an array whose first axis counts the inputs, or a list of inputs (a tensor or a tuple each).

    Raises `BadInput` for text given to a module, data given to a language model, or a judge that is not there.
    """
    check_sources(text=text, data=data, quality=quality)
    if quality:
        _check_judge(quality, ["language" if model.task == "language" else "module"])
    if model.task == "language":
        if data is not None:
            raise BadInput("--data is for modules", "give a language model text with --text")
        texts = None if text is None else split_text(text)
        return Workload(context=context, texts=texts, quality=quality or "perplexity")
    if text is not None or context:
        raise BadInput("--text and --context are for language models", "give a module its inputs with --data")
    splits = None if data is None else _module_data(model, data)
    return Workload(data=splits, quality=quality or "agreement")


def on_sample(model: Any, workload: Workload) -> Workload:
    """The workload of a module that brought no data: its sample in every split. A proof on it proves little."""
    from dataclasses import replace

    from headway.core.module_workload import workload_from

    return replace(workload, data=workload_from([model.sample] * 5, model.task))


def _plain_file(path: str | Path, what: str, mend: str) -> None:
    """Raise `BadInput` unless it is a file that ends: a pipe or a device may never."""
    if not Path(path).exists():
        raise BadInput(f"no {what} file {str(path)!r}", mend)
    if not Path(path).is_file():
        raise BadInput(f"{path} is no plain file", mend)


def _check_judge(name: str, tasks: Sequence[str]) -> None:
    """Raise `BadInput` unless the function can be called as it will be, for any of the tasks."""
    try:
        signature = inspect.signature(user_function(name))
    except ValueError:  # some built-in functions have none
        return
    for task in tasks:
        try:
            signature.bind(*JUDGES[task])
        except TypeError:
            continue
        return
    wanted = " or ".join(f"({', '.join(JUDGES[task])})" for task in tasks)
    raise BadInput(f"--quality {name} takes {signature}", f"it is called with {wanted}")


def _module_data(model: Model, data: Any) -> Any:
    """Inputs split for a module: the first axis of an array counts them."""
    import numpy as np
    import torch

    from headway.core.module_workload import workload_from

    if isinstance(data, str | Path):
        return workload_from(_file_pieces(model, Path(data)), model.task)
    if isinstance(data, np.ndarray | torch.Tensor):
        tensor = torch.from_numpy(np.ascontiguousarray(data)) if isinstance(data, np.ndarray) else data
        return workload_from([(tensor[i : i + 1],) for i in range(len(tensor))], model.task)
    pieces = [item if isinstance(item, tuple) else (item,) for item in data]
    return workload_from([tuple(map(_argument, piece)) for piece in pieces], model.task)


def _file_pieces(model: Any, path: Path) -> list[tuple[Any, ...]]:
    """The arguments of every input in a file; several arrays are told apart by the names of forward's parameters."""
    import numpy as np
    import torch

    from headway.core.module_model import arguments

    tensors = {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in _read_arrays(path).items()}
    counts = {name: len(tensor) for name, tensor in tensors.items()}
    if len(set(counts.values())) > 1:
        said = ", ".join(f"{count} of {name}" for name, count in counts.items())
        raise BadInput(f"{path}: it holds {said}", "give every input one index of the first axis of each")
    rows = range(min(counts.values(), default=0))
    takes = _parameters(model.runtime)
    if tensors and set(tensors) <= set(takes):
        return [arguments(model.runtime, {name: t[i : i + 1] for name, t in tensors.items()}) for i in rows]
    numbered = sorted(tensors, key=lambda name: int(name) if name.isdecimal() else -1)
    if len(tensors) > 1 and numbered != [str(number) for number in range(len(tensors))]:
        raise BadInput(
            f"{path}: which argument is which is not said by the names {', '.join(tensors)}",
            f"name the tensors as forward does ({', '.join(takes) or 'nothing'}), or 0, 1, ... in its order",
        )
    return [tuple(tensors[name][i : i + 1] for name in numbered) for i in rows]


def _parameters(module: Any) -> list[str]:
    """Names that the arguments of a module's forward have."""
    try:
        parameters = inspect.signature(module.forward).parameters.values()
    except ValueError:  # of what is no Python function
        return []
    return [each.name for each in parameters if each.kind not in (each.VAR_POSITIONAL, each.VAR_KEYWORD)]


def _argument(value: Any) -> Any:
    """An argument of a module: arrays and lists of numbers as tensors, what else there is as it is."""
    import numpy as np
    import torch

    if isinstance(value, list):
        with suppress(TypeError, ValueError):  # a network may take lists of something else
            return torch.tensor(value)
    if isinstance(value, np.ndarray):
        return torch.from_numpy(np.ascontiguousarray(_numbers("data", value)))
    return value


def _read_arrays(path: Path) -> dict[str, Any]:
    """By name; the one array of a .npy file has none."""
    import numpy as np

    try:
        if path.suffix == ".npy":
            return {"": _numbers(path, np.load(path, allow_pickle=False))}
        from safetensors.numpy import load_file

        return {name: _numbers(path, array) for name, array in load_file(path).items()}
    except BadInput:
        raise
    except Exception as error:  # a safetensors error is none of Python's
        if isinstance(error, MemoryError):
            raise
        said = "it is no array of numbers" if "pickle" in str(error) else str(error)[:200]
        raise BadInput(f"{path}: {said}", "write it again with numpy.save or safetensors") from None


def _numbers(path: Path | str, array: Any) -> Any:
    """The array, if a network can be fed with it: real, finite, and with an axis that counts the inputs."""
    import numpy as np

    if array.dtype.kind not in "fiub" or not array.ndim:
        raise BadInput(
            f"{path}: an array of {array.dtype} of shape {array.shape}", "give real numbers, one input per first index"
        )
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise BadInput(f"{path}: it holds values that are not finite", "leave out the inputs with NaN or infinity")
    return array
