"""`NativeNet`: a module's forward through its program, with whatever weights its sites hold."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from headway.core.module_tree import copy_tree, structure_digest
from headway.core.packed_modules import PackedConv1x1, PackedModule, TensorWeight
from headway.vision.runtime.capture import NotNative
from headway.vision.runtime.lower import lower
from headway.vision.runtime.program import Program, State, Step

MOST_IMAGES = 32
"""Images of one crossing."""
MOST_APART = 1e-3
"""Largest difference from the module, over the largest value, that a program may have."""
_PROGRAMS: dict[tuple[bytes, tuple[int, ...]], Program | str] = {}
"""By structure of the module and size of an image: the program, or why there is none."""
KEPT_PROGRAMS = 32


class NativeNet:
    """`module(x)` natively where the runtime knows every operation of it, else the module itself.

    x: (n, channels, height, width) float32. The module is captured at the first call with images of a size.
    """

    def __init__(self, module: nn.Module) -> None:
        """module: float32 on the CPU, in `eval`; its values must not change afterwards."""
        self._module = module
        self._packed = {name: child for name, child in module.named_modules() if isinstance(child, PackedModule)}
        self._nets: dict[tuple[int, ...], tuple[Any, Program] | None] = {}
        self.reason = ""
        """Why the last images went through the module itself."""

    def __call__(self, x: Tensor) -> Tensor:
        size = tuple(x.shape[1:])
        if x.ndim != 4 or x.dtype != torch.float32 or not len(x):
            return cast(Tensor, self._module(x))
        if size not in self._nets:
            self._nets[size] = self._made(x[:1])
        made = self._nets[size]
        if made is None:
            return cast(Tensor, self._module(x))
        net, program = made
        for site in self._packed.values():
            site.kernel_calls += 1
        return run(net, program, x)

    def _made(self, image: Tensor) -> tuple[Any, Program] | None:
        program = program_of(self._module, self._packed, image)
        if isinstance(program, str):
            self.reason = program
            return None
        return assemble(program, self._module, self._packed), program


def program_of(module: nn.Module, packed: Mapping[str, PackedModule], image: Tensor) -> Program | str:
    """The module's program for images like this one, or why there is none; the last ones are kept."""
    with torch.random.fork_rng(devices=()):
        floats = copy_tree(module, {name: _empty(site) for name, site in packed.items()})
    digest = hashlib.sha256()
    structure_digest(floats, digest)
    key = (digest.digest(), tuple(image.shape[1:]))
    if key not in _PROGRAMS:
        try:
            _PROGRAMS[key] = _checked(floats, image)
        except NotNative as error:
            _PROGRAMS[key] = str(error)
        for old in list(_PROGRAMS)[:-KEPT_PROGRAMS]:
            del _PROGRAMS[old]
    return _PROGRAMS[key]


def _checked(module: nn.Module, image: Tensor) -> Program:
    """The program, when it gives what the module does: a step that was misread would show here."""
    generator = torch.Generator().manual_seed(0)
    first, other = (torch.empty_like(image).uniform_(-1, 1, generator=generator) for _ in range(2))
    program = lower(module, first)
    with torch.no_grad():
        expected = module(other)  # another image: what was taken for a constant and is none would show
    found = run(assemble(program, module, {}), program, other)
    apart = float((found - expected).abs().max()) / max(float(expected.abs().max()), 1e-30)
    if not apart <= MOST_APART:
        raise NotNative(f"its program gives something else ({apart:.1e} apart)")
    return program


def run(net: Any, program: Program, x: Tensor) -> Tensor:
    """x: (n, channels, height, width) through a net of the program."""
    rows = x.detach().movedim(1, -1).flatten(1, 2).contiguous().numpy()
    out = program.output
    parts = [
        torch.from_numpy(net.run(rows[begin : begin + MOST_IMAGES], [out.register])[0])
        for begin in range(0, len(rows), MOST_IMAGES)
    ]
    held = torch.cat(parts) if len(parts) > 1 else parts[0]
    return held.as_strided((len(held), *out.size[1:]), (held.stride(0), *out.stride[1:]), out.offset)


def _empty(site: PackedModule) -> nn.Module:
    """A layer such as the packed one stands for, of any values."""
    layer: nn.Module
    if isinstance(site, PackedConv1x1):
        layer = nn.Conv2d(site.in_channels, site.out_channels, 1, site.stride, bias=site.bias is not None)
    else:
        layer = nn.Linear(site.packed.shape[1], site.packed.shape[0], bias=site.bias is not None)
    return layer.eval()


def assemble(program: Program, module: nn.Module, packed: Mapping[str, PackedModule]) -> Any:
    """The native net: the program with the module's values."""
    import headway.kernels.cpu._cpu as _cpu

    state = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    with torch.no_grad():
        steps = [_filled(step, state, packed) for step in program.steps]
    return cast(Any, _cpu).make_image_net(program.registers, steps, [program.output.register])


def _filled(step: Step, state: State, packed: Mapping[str, PackedModule]) -> dict[str, Any]:
    made: dict[str, Any] = {"kind": step.kind, "from": step.source, "to": step.to, **step.settings}
    scale = None
    if step.affine is not None:
        scale, shift = step.affine.values(state)
        made["shift"] = _values(shift)
        if step.taps is None:
            made["scale"] = _values(scale)
    if step.site:
        held = packed[step.site].packed if step.site in packed else TensorWeight(_matrix(state, step.site))
        made["weight"] = held.native()  # type: ignore[attr-defined]
    if step.taps is not None:
        assert scale is not None
        taps = step.taps(state).double() * scale[:, None, None, None]
        if step.adds_itself:
            taps = taps.clone()
            middle = taps.shape[-1] // 2
            taps[:, 0, middle, middle] += 1.0
        made["taps"] = _values(taps.permute(2, 3, 1, 0))
    for name, number in step.numbers.items():
        if name == "matrix":
            made["weight"] = TensorWeight(number(state)).native()
        else:
            made[name] = _values(number(state))
    return made


def _matrix(state: State, site: str) -> Tensor:
    return state[f"{site}.weight"].detach().flatten(1)


def _values(tensor: Tensor) -> npt.NDArray[np.float32]:
    return np.ascontiguousarray(tensor.detach().float().reshape(-1).numpy())
