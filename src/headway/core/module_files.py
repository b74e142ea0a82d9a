"""A `ModuleModel` as files: `module.safetensors` for every value, `module.json` for the rest.

Names in `module.safetensors`: `tensor:PATH` for parameters and buffers, `packed:SITE:ARRAY` for packed weights,
`sample:N` for the tensors of the sample. Attachments are files of their own names.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from headway.core.errors import BadFile, BadInput, Lacking
from headway.core.files import explained, open_beneath, write_file
from headway.core.jsontext import json_text, parse_json
from headway.core.module_cut import Cut
from headway.core.module_origin import Origin, build_family, build_python, build_timm, empty_packaged
from headway.core.module_tree import copy_tree, same_storage_key
from headway.core.packed_modules import pack, site_kind
from headway.core.weight import Weight

if TYPE_CHECKING:
    from headway.core.module_model import ModuleModel

SCHEMA = 1
VALUES = "module.safetensors"
DESCRIPTION = "module.json"
SMALL = 64 << 20
"""Bytes that the description, and each attachment, may have."""

FORMS = "headway.llm.weights.base"
"""Where `load_weight(form, tensors, meta)` lives; a fixed name, so that no file can say what code to run."""


def save_module(model: ModuleModel, folder: Path) -> None:
    """Write `model` into an existing folder. Raises `BadInput` for a sample that has no file form."""
    values: dict[str, Tensor] = {}
    sample = _encode(model.sample, values)
    first: dict[tuple[Any, ...], str] = {}
    same: dict[str, str] = {}
    strides = {}
    for name, tensor in model.tensors().items():
        tensor = tensor.detach()
        original = first.setdefault(same_storage_key(tensor), name)
        if original != name:
            same[name] = original
            continue
        if _is_dense(tensor) and tensor.stride() != torch.empty(tensor.shape, device="meta").stride():
            strides[name] = list(tensor.stride())
        values[f"tensor:{name}"] = tensor
    packed = {}
    for site, weight in model.packed_weights().items():
        packed[site] = {"form": weight.form, "meta": dict(weight.meta()), "arrays": sorted(weight.tensors())}
        for name, array in weight.tensors().items():
            values[f"packed:{site}:{name}"] = torch.from_numpy(np.array(array))
    description = {
        "schema": SCHEMA,
        "name": model.name,
        "task": model.task,
        "origin": str(model.origin),
        "content": model.content_digest(),
        "sample": sample,
        "packed": packed,
        "same": same,
        "strides": strides,
        "attachments": sorted(model.attachments),
        **({"cut": model.cut.as_json()} if model.cut else {}),
    }
    owned = {name: _owned(value) for name, value in values.items()}
    try:
        with explained(folder / VALUES):
            save_file(owned, folder / VALUES)
    except SafetensorError as error:
        raise Lacking(f"{folder / VALUES}: {error}", "free disk space there or choose another folder") from error
    for name, data in model.attachments.items():
        write_file(folder / name, data)
    write_file(folder / DESCRIPTION, json_text(description).encode())


def load_module(folder: Path, *, module: nn.Module | None = None, allow_code: bool = False) -> ModuleModel:
    """See `ModuleModel.load`. Raises `BadFile` for files that break their format, `BadInput` for a foreign network."""
    from headway.core.module_model import ModuleModel

    description = _described(folder)
    values = _values(folder)
    network, workload = _network(Origin.parse(str(description.get("origin"))), module, allow_code)
    try:
        name, task, content = description["name"], description["task"], description["content"]
        same, packed = dict(description["same"]), dict(description["packed"])
        cut = Cut.from_json(description["cut"]) if "cut" in description else Cut()
        sample = _decode(description["sample"], values)
        weights = {site: _weight(site, entry, values) for site, entry in packed.items()}
        state = {key.removeprefix("tensor:"): value for key, value in values.items() if key.startswith("tensor:")}
        state |= {key: _laid_out(state[key], strides) for key, strides in dict(description["strides"]).items()}
        state |= {key: state[original] for key, original in same.items()}
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        raise BadFile(folder / DESCRIPTION, 0, f"does not describe {VALUES} ({error!r})") from None
    loaded = ModuleModel(
        _filled(cut.of(network) if cut else network, weights, state),
        sample,
        name=name,
        task=task,
        origin=Origin.parse(str(description["origin"])),
        attachments={name: _read(folder, name) for name in description.get("attachments", [])},
        workload=workload,
        cut=cut,
    )
    if loaded.content_digest() != content:
        raise BadFile(folder / VALUES, 0, f"the values are not those whose digest {DESCRIPTION} holds")
    return loaded


def _described(folder: Path) -> dict[str, Any]:
    description = parse_json(_read(folder, DESCRIPTION), folder / DESCRIPTION)
    if not isinstance(description, dict) or not isinstance(description.get("schema"), int):
        raise BadFile(folder / DESCRIPTION, 0, "not the description of a module")
    if description["schema"] > SCHEMA:
        raise BadInput(
            f"{folder / DESCRIPTION} has schema {description['schema']}; this version reads up to {SCHEMA}",
            "update headway",
        )
    return description


def _network(origin: Origin, module: nn.Module | None, allow_code: bool) -> tuple[nn.Module, Any]:
    """The network to fill, and the workload that comes with a packaged one."""
    if module is not None:
        return module, None
    if origin.kind in ("packaged", "family"):
        base = empty_packaged(origin.name) if origin.kind == "packaged" else build_family(origin.name)
        return base.module(), base.workload_of
    if origin.kind == "timm":
        return build_timm(origin.name), None
    if origin.kind == "python":
        if not allow_code:
            raise BadInput(
                f"this model is built by the code {origin}",
                "let it run: --allow-code, or headway.load(folder, allow_code=True); or bring it with module=network",
            )
        return module_of(build_python(origin.name), str(origin))[0], None
    raise BadInput("this model's network was built by its user", "bring it: headway.load(folder, module=network)")


def module_of(made: Any, origin: str) -> tuple[nn.Module, Any]:
    """The module and the sample (or None) that a user's function gave: `module` or `(module, sample)`."""
    module, sample = made if isinstance(made, tuple) and len(made) == 2 else (made, None)
    if not isinstance(module, nn.Module):
        raise BadInput(
            f"{origin} gave a {type(module).__name__}", "return a torch.nn.Module, or a pair of it and a sample"
        )
    return module, sample


def _filled(network: nn.Module, weights: Mapping[str, Weight], state: Mapping[str, Tensor]) -> nn.Module:
    """A copy of `network` with packed sites and the saved values; `network` itself keeps its own."""
    filled = copy_tree(network, clone_buffers=True)  # first: reading a weight with a spectral norm changes its buffers
    sites = dict(filled.named_modules())
    replace: dict[str, nn.Module] = {}
    for site, weight in weights.items():
        if site not in sites or site_kind(sites[site]) is None:
            raise BadInput(f"the network has no linear site {site!r}", "bring the network this model was saved from")
        replace[site] = pack(sites[site], weight, site)
    filled = copy_tree(filled, replace)
    try:
        filled.load_state_dict(state, strict=True, assign=True)
    except RuntimeError as error:
        reason = " ".join(str(error).split())
        raise BadInput(f"the network does not fit: {reason}", "bring the network this model was saved from") from None
    return filled


def _weight(site: str, entry: Mapping[str, Any], values: Mapping[str, Tensor]) -> Weight:
    arrays = {name: values[f"packed:{site}:{name}"].numpy() for name in entry["arrays"]}
    return cast(Weight, importlib.import_module(FORMS).load_weight(entry["form"], arrays, entry["meta"]))


def _read(folder: Path, name: str) -> bytes:
    """A small file of the folder; links and names that leave it are refused."""
    with explained(folder / name), os.fdopen(open_beneath(folder, name), "rb") as file:
        data = file.read(SMALL + 1)
    if len(data) > SMALL:
        raise BadFile(folder / name, SMALL, f"the file is longer than {SMALL} bytes")
    return data


def _values(folder: Path) -> dict[str, Tensor]:
    """All tensors of the file, in memory of their own."""
    os.close(open_beneath(folder, VALUES))
    try:
        with safe_open(folder / VALUES, framework="pt") as file:
            return {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise BadFile(folder / VALUES, 0, str(error)) from None


def _is_dense(tensor: Tensor) -> bool:
    """Whether its strides, in whatever order of axes, fill a block of memory without gaps (channels-last does)."""
    return _span(tensor.shape, tensor.stride()) == tensor.numel()


def _span(shape: Sequence[int], strides: Sequence[int]) -> int:
    """Elements from the first to the last; 0 for strides that cannot be."""
    if min(strides, default=1) < 1 or len(shape) != len(strides):
        return 0
    return 1 + sum((extent - 1) * stride for extent, stride in zip(shape, strides, strict=True))


def _laid_out(tensor: Tensor, strides: Sequence[int]) -> Tensor:
    """The same values with those strides, which decide the kernel that torch picks, and so the last bits."""
    if _span(tensor.shape, strides) != tensor.numel():
        raise ValueError(f"strides {strides} do not fit {tuple(tensor.shape)}")
    return torch.empty_strided(tuple(tensor.shape), tuple(strides), dtype=tensor.dtype).copy_(tensor)


def _owned(tensor: Tensor) -> Tensor:
    """The tensor on the CPU, contiguous, and alone in its memory, as the file format wants it."""
    tensor = tensor.detach().cpu().contiguous()
    alone = tensor.untyped_storage().nbytes() == tensor.numel() * tensor.element_size()
    return tensor if alone else tensor.clone()


def _encode(value: Any, values: dict[str, Tensor]) -> Any:
    """JSON form of a sample; its tensors go into `values`."""
    if isinstance(value, Tensor):
        name = f"sample:{len(values)}"
        values[name] = value
        return {"tensor": name}
    if isinstance(value, (tuple, list)):
        return {"tuple" if isinstance(value, tuple) else "list": [_encode(part, values) for part in value]}
    if isinstance(value, dict) and all(isinstance(key, str) for key in value):
        return {"dict": {key: _encode(part, values) for key, part in value.items()}}
    if value is None or isinstance(value, (bool, int, float, str)):
        return {"value": value}
    raise BadInput(f"the sample holds a {type(value).__name__}, which has no file form", "use tensors and numbers")


def _decode(form: Any, values: Mapping[str, Tensor]) -> Any:
    ((kind, content),) = form.items()
    if kind == "tensor":
        return values[content]
    if kind == "value":
        return content
    if kind == "dict":
        return {key: _decode(part, values) for key, part in content.items()}
    parts = [_decode(part, values) for part in content]
    return tuple(parts) if kind == "tuple" else cast(Any, parts)
