"""`ModuleModel`: any `torch.nn.Module` with a sample input, as a `Model`."""

from __future__ import annotations

import hashlib
import importlib
import inspect
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from headway.core.contents import tensor_digest
from headway.core.errors import BadInput
from headway.core.model import Model, Site, Task
from headway.core.module_cut import Cut
from headway.core.module_origin import NATIVE, Origin, OriginKind
from headway.core.module_tree import copy_tree, is_ours, same_storage_key, structure_digest
from headway.core.module_workload import Inputs, ModuleWorkload
from headway.core.packed_modules import (
    PackedModule,
    TensorWeight,
    is_hooked_site,
    matrix_shape,
    pack,
    site_kind,
    unpack,
)
from headway.core.weight import Weight


class ModuleModel(Model):
    """A network and one sample of its input.

    The user's module is copied as a tree that shares its parameters (buffers are the copy's own) and set to `eval`;
    it is never changed. Parameters must not be changed afterwards while this model is in use.

    Sites are the linear layers and 1x1 convolutions that the sample passes through, in the order of the first call.
    """

    def __init__(
        self,
        module: nn.Module,
        sample: Any,
        *,
        name: str = "module",
        task: Task = "module",
        origin: Origin | None = None,
        attachments: Mapping[str, bytes] | None = None,
        workload: Callable[[ModuleModel], ModuleWorkload] | None = None,
        cut: Cut | None = None,
    ) -> None:
        """sample: a tensor, a tuple of arguments, or a dict of named ones.

        `attachments` are small files an artifact keeps beside the weights (a tokenizer), by file name. `workload`
        makes the inputs and the quality function that belong to this model. `cut`: how `module` is smaller than what
        its origin builds. Raises `BadInput` for weights that are
        not finite, and for a module that does not run on its sample.
        """
        if not isinstance(module, nn.Module):
            raise BadInput(f"{type(module).__name__} is not a torch.nn.Module", "give a module and a sample input")
        _check_finite(module)
        self.name = name
        self.task = task
        self.origin = origin or Origin("module")
        self.attachments = dict(attachments or {})
        self.sample = arguments(module, sample)
        self.workload_of = workload
        self.cut = cut or Cut()
        self._module = copy_tree(module, clone_buffers=True).eval()
        _leave_fused_paths(self._module)
        hooked = [name for name, layer in self._module.named_modules() if is_hooked_site(layer)]
        if hooked:
            self.notes = (f"left alone, since hooks run around them: {', '.join(hooked)}",)
        # On a copy: what a network keeps of the inputs it has seen is not to hold the sample.
        self._sites = _sites_reached(copy_tree(self._module, clone_buffers=True), self.sample)
        self._digests: dict[int, tuple[Any, int, bytes]] = {}
        self._native_forward: Callable[..., Any] | None = None

    # What `Model` asks for

    def sites(self) -> Sequence[Site]:
        return self._sites

    def weight(self, site: str) -> Weight:
        """The weight in that site; a layer still in float gives a `dense` view of its tensor."""
        module = self._site_module(site)
        if isinstance(module, PackedModule):
            return module.packed
        matrix = cast(Tensor, module.weight)
        return TensorWeight(matrix.reshape(matrix.shape[0], -1))

    def with_weights(self, weights: Mapping[str, Weight]) -> Self:
        """The same network with some sites multiplying by other weights; everything else is shared.

        Raises `BadInput` for an unknown site or a shape that does not fit.
        """
        replace = {site: pack(self._site_module(site), weight, site) for site, weight in weights.items()}
        return self._with_module(copy_tree(self._module, cast("dict[str, nn.Module]", replace)))

    def module(self) -> nn.Module:
        """A readable torch module in `eval`, exact dequantised weights in its sites.

        Parameters are new objects over the same memory: gradients and hooks stay in this copy, values written in
        place do not.
        """
        floats = {
            name: unpack(child) for name, child in self._module.named_modules() if isinstance(child, PackedModule)
        }
        return copy_tree(self._module, floats, parameter=lambda p: nn.Parameter(p.detach(), p.requires_grad)).eval()

    def fingerprint(self) -> str:
        """SHA-256 of the tree (paths, classes, plain attributes, the source of the user's classes) and all values."""
        digest = hashlib.sha256()
        structure_digest(self._module, digest)
        digest.update(self.content_digest().encode())
        return digest.hexdigest()

    def size_bytes(self) -> int:
        """Bytes of parameters, saved buffers and packed weights, each counted once."""
        unique = {same_storage_key(tensor): tensor for tensor in self.tensors().values()}
        packed = {id(weight): weight.nbytes for weight in self.packed_weights().values()}
        return sum(t.numel() * t.element_size() for t in unique.values()) + sum(packed.values())

    def save(self, folder: str | Path) -> None:
        from headway.core.files import make_folder
        from headway.core.module_files import save_module

        save_module(self, make_folder(folder))

    @classmethod
    def load(
        cls,
        folder: Path,
        *,
        module: nn.Module | None = None,
        allow_code: bool = False,
    ) -> ModuleModel:
        """What `save` wrote, with bit-identical outputs.

        `module` brings the network where the caller
        built it; `allow_code` lets `python:MODULE:FUNCTION`, recorded in the folder, be run.
        """
        from headway.core.module_files import load_module

        return load_module(folder, module=module, allow_code=allow_code)

    # Running

    def run(self, inputs: Any) -> Any:
        """One forward pass without gradients; inputs: a tensor, a tuple of arguments or a dict of named ones."""
        with torch.no_grad():
            return self._forward(*arguments(self._module, inputs))

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        with torch.no_grad():
            return self._forward(*args, **kwargs) if not kwargs else self._module(*args, **kwargs)

    @property
    def _forward(self) -> Callable[..., Any]:
        """Made at the first call of a model, with the weights it has."""
        if self._native_forward is None:
            self._native_forward = native_forward(self._module, self.origin.kind) or self._module
        return self._native_forward

    @property
    def runtime(self) -> nn.Module:
        """The torch module: packed sites multiply with their kernels. Shared; do not change it.

        `run` calls it, or the native path it has of its own.
        """
        return self._module

    @property
    def device(self) -> torch.device:
        for tensor in (*self._module.parameters(), *self._module.buffers()):
            return tensor.device
        return torch.device("cpu")

    def kernel_calls(self) -> int:
        """How many products the kernels of packed weights have computed since this model was made."""
        return sum(child.kernel_calls for child in self._module.modules() if isinstance(child, PackedModule))

    def workload(self) -> ModuleWorkload:
        """The inputs and the quality function that came with this model; raises `BadInput` when none did."""
        if self.workload_of is None:
            raise BadInput(f"{self.name} brings no data of its own", "give inputs with --data FILE or data=[...]")
        return self.workload_of(self)

    # Content

    def tensors(self) -> dict[str, Tensor]:
        """Parameters and saved buffers by their path (packed weights are not among them)."""
        state = self._module.state_dict(keep_vars=True)
        for name, value in state.items():
            if not isinstance(value, Tensor):
                raise BadInput(f"{self.name}: {name} is no tensor", "keep extra state out of the module")
        return state

    def packed_weights(self) -> dict[str, Weight]:
        """Weights of the packed sites by their path."""
        return {name: child.packed for name, child in self._module.named_modules() if isinstance(child, PackedModule)}

    def content_digest(self) -> str:
        """SHA-256 of all values, stored forms included, whatever the network around them."""
        digest = hashlib.sha256()
        for name, tensor in sorted(self._held_tensors().items()):
            digest.update(f"\n{name}|".encode())
            digest.update(self._digest(tensor))
        for name, weight in sorted(self.packed_weights().items()):
            digest.update(f"\n{name}|{weight.form}|{sorted(weight.meta().items())}".encode())
            digest.update(self._digest(weight))
        return digest.hexdigest()

    def _held_tensors(self) -> dict[str, Tensor]:
        """All tensors, buffers that are not saved included."""
        return {**self.tensors(), **dict(self._module.named_buffers())}

    def _digest(self, held: Tensor | Weight) -> bytes:
        """Digest of one tensor or weight, kept for the models derived from this one."""
        version = 0 if not isinstance(held, Tensor) or held.is_inference() else held._version
        known = self._digests.get(id(held))
        if known is not None and known[0] is held and known[1] == version:
            return known[2]
        if isinstance(held, Tensor):
            value = tensor_digest(held)
        else:
            digest = hashlib.sha256()
            for name, array in sorted(held.tensors().items()):
                digest.update(f"{name}|{array.dtype.str}{array.shape}".encode())
                digest.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
            value = digest.digest()
        self._digests[id(held)] = (held, version, value)
        return value

    def _site_module(self, site: str) -> nn.Module:
        if site not in {known.name for known in self._sites}:
            raise BadInput(f"{self.name} has no site {site!r}", "see model.sites()")
        return self._module.get_submodule(site)

    def _with_module(self, module: nn.Module) -> Self:
        made = type(self).__new__(type(self))
        made.__dict__.update(self.__dict__)
        made._module = module
        made._native_forward = None
        kept = {id(held) for held in (*made._held_tensors().values(), *made.packed_weights().values())}
        made._digests = {key: known for key, known in self._digests.items() if key in kept}
        _leave_fused_paths(module)
        for child in module.modules():
            if isinstance(child, PackedModule):
                child.kernel_calls = 0
        return made


def native_forward(module: nn.Module, origin: OriginKind = "module") -> Callable[..., Any] | None:
    """What computes `module.forward` natively: by the method `native` of its class, where that is of this package, or
    by the runtime for modules of this origin.

    It is asked only for float32 on the CPU; it packs the weights that the sites hold, and may give None.
    """
    make = getattr(type(module), "native", None) if is_ours(type(module)) else None
    if make is None and origin in NATIVE:
        path, _, name = NATIVE[origin].partition(":")
        make = getattr(importlib.import_module(path), name)
    tensors = [*module.parameters(), *module.buffers()]
    plain = all(t.device.type == "cpu" and t.dtype in (torch.float32, torch.int64, torch.bool) for t in tensors)
    return cast("Callable[..., Any] | None", make(module)) if make is not None and plain else None


def load_saved(folder: Path) -> ModuleModel:
    """`ModuleModel.load(folder)`, under the name by which artifacts ask for it."""
    return ModuleModel.load(folder)


def arguments(module: nn.Module, inputs: Any) -> Inputs:
    """Positional arguments of `module.forward` for a tensor, a tuple of arguments or a dict of named ones.

    Raises `BadInput` when the names do not fit.
    """
    if isinstance(inputs, tuple):
        return inputs
    if not isinstance(inputs, Mapping):
        return (inputs,)
    signature = inspect.signature(module.forward)
    takes = list(signature.parameters.values())
    try:
        bound = signature.bind(**inputs)
    except TypeError as error:
        raise BadInput(
            f"{type(module).__name__}: the sample's names do not fit ({error})",
            f"it takes: {', '.join(parameter.name for parameter in takes)}",
        ) from None
    bound.apply_defaults()
    upto = 1 + max((index for index, parameter in enumerate(takes) if parameter.name in inputs), default=-1)
    by_name = {parameter.name for parameter in takes[:upto] if parameter.kind is not _BY_POSITION}
    by_name |= set(inputs) - {parameter.name for parameter in takes}
    if by_name:
        raise BadInput(
            f"{type(module).__name__}: {', '.join(sorted(by_name))} cannot be given by position",
            "wrap the module in one whose forward takes its inputs by position",
        )
    return tuple(bound.arguments[parameter.name] for parameter in takes[:upto])


_BY_POSITION = inspect.Parameter.POSITIONAL_OR_KEYWORD


def _check_finite(module: nn.Module) -> None:
    """Raise `BadInput` naming the first parameter with a NaN or an infinity, or buffer with a NaN (masks hold -inf)."""
    for name, tensor in (*module.named_parameters(), *module.named_buffers()):
        if is_lazy(tensor):
            raise BadInput(f"{name} has no shape yet", "run the module once on its input, then load it")
        if tensor.is_meta:
            raise BadInput(f"{name} is on the meta device and has no values", "load the weights first")
        if not (tensor.is_floating_point() or tensor.is_complex()) or tensor.numel() == 0:
            continue
        bad = ~torch.isfinite(tensor) if isinstance(tensor, nn.Parameter) else torch.isnan(tensor)
        if bool(bad.any()):
            where = tuple(int(i) for i in bad.nonzero()[0])
            raise BadInput(
                f"{name} holds {tensor.detach()[where].item()} at {where}", "train or export the model again"
            )


def _sites_reached(module: nn.Module, sample: Inputs) -> tuple[Site, ...]:
    """Run the sample once and list the sites in the order of their first call."""
    reached: dict[str, None] = {}
    handles = []
    for name, child in module.named_modules():
        if site_kind(child) is not None:
            handles.append(child.register_forward_pre_hook(lambda *_, name=name: reached.setdefault(name)))
    try:
        with torch.no_grad():
            module(*sample)
    except Exception as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise BadInput(
            f"{type(module).__name__} does not run on its sample: {reason}", "give a sample that fits"
        ) from error
    finally:
        for handle in handles:
            handle.remove()
    sites = []
    for name in reached:
        child = module.get_submodule(name)
        kind = site_kind(child)
        assert kind is not None
        sites.append(Site(name, *matrix_shape(child), kind))
    return tuple(sites)


def _leave_fused_paths(module: nn.Module) -> None:
    """Make transformers of torch call their linear layers where one is packed, instead of reading the weights."""
    for child in module.modules():
        if not any(isinstance(part, PackedModule) for part in child.modules()):
            continue
        if isinstance(child, nn.TransformerEncoderLayer):
            child.activation_relu_or_gelu = 0
        elif isinstance(child, nn.TransformerEncoder):
            child.use_nested_tensor = False
