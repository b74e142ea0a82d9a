"""Published checkpoints as tensors by name: safetensors, zipped and old `.pth` files. No code of a file is run."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from headway.core.errors import BadFile, BadInput
from headway.vision.legacy_pth import read_legacy_pth

_ZIP = b"PK\x03\x04"
_STATES = ("state_dict_ema", "model_ema", "state_dict", "model")
"""Where training scripts put the weights, in the order in which they are looked for: averages first."""
_PREFIXES = ("module.", "model.")


def read_checkpoint(path: str | Path) -> dict[str, Tensor]:
    """The weights in a file, without the prefixes that wrappers add to all names.

    Raises `BadInput` where there is no file and `BadFile` for one that holds no plain dictionary of tensors.
    """
    path = Path(path)
    if not path.is_file():
        raise BadInput(f"no checkpoint {str(path)!r}", "give the path of a .safetensors or .pth file")
    state = _state(path)
    for prefix in _PREFIXES:
        if state and all(name.startswith(prefix) for name in state):
            state = {name.removeprefix(prefix): value for name, value in state.items()}
    if not state:
        raise BadFile(path, 0, "no tensors in it", "give a file of weights")
    return state


def _state(path: Path) -> dict[str, Tensor]:
    with path.open("rb") as file:
        begin = file.read(4)
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        if begin != _ZIP:
            return {name: torch.from_numpy(value) for name, value in read_legacy_pth(path).items()}
        held = torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise BadFile(path, 0, f"not a checkpoint ({reason})") from None
    for name in _STATES:
        if isinstance(held, Mapping) and isinstance(held.get(name), Mapping):
            held = held[name]
    if not isinstance(held, Mapping):
        raise BadFile(path, 0, f"it holds a {type(held).__name__}", "give a file of weights")
    return {str(name): value for name, value in held.items() if isinstance(value, Tensor)}


def fill(network: nn.Module, state: Mapping[str, Tensor], source: str) -> None:
    """Put tensors into a network by name, in place.

    A matrix fills the 1x1 convolution of its shape. Raises `BadInput` naming the first tensor that is missing, is not
    known or has another shape.
    """
    wanted = network.state_dict()
    given = dict(state)
    for name in wanted:
        if name.endswith("num_batches_tracked"):
            given.setdefault(name, wanted[name])
    for name, value in given.items():
        if name not in wanted:
            raise BadInput(f"{source} holds {name!r}, which this network has not", _MEND)
        shape = tuple(wanted[name].shape)
        if (*value.shape, 1, 1) == shape:
            given[name] = value[..., None, None]
        elif tuple(value.shape) != shape:
            raise BadInput(f"{source}: {name} is {tuple(value.shape)} and should be {shape}", _MEND)
    missing = next((name for name in wanted if name not in given), None)
    if missing is not None:
        raise BadInput(f"{source} lacks {missing!r}", _MEND)
    network.load_state_dict(given)


_MEND = "give the published file of this variant"
