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
from headway.vision.runtime.capture import Node, NotNative, each_of, mapped
from headway.vision.runtime.lower import lower
from headway.vision.runtime.program import Bring, Call, Place, Program, Segment
from headway.vision.runtime.steps import State, Step
from headway.vision.runtime.values import Apart, Known

MOST_IMAGES = 32
"""Images of one crossing."""
MOST_APART = 1e-3
"""Largest difference from the module, over the largest value, that a program may have."""
_PROGRAMS: dict[tuple[bytes, tuple[int, ...]], Program | str] = {}
"""By structure of the module and size of an image: the program, or why there is none."""
KEPT_PROGRAMS = 32


class NativeNet:
    """`module(x)` natively, or as torch does it where the runtime cannot follow.

    x: (n, channels, height, width) float32. The module is captured at the first call with images of a size.
    """

    def __init__(self, module: nn.Module) -> None:
        """module: float32 on the CPU, in `eval`; its values must not change afterwards."""
        self._module = module
        self._packed = {name: child for name, child in module.named_modules() if isinstance(child, PackedModule)}
        self._nets: dict[tuple[int, ...], Net | None] = {}
        self.reason = ""
        """Why the last images went through the module itself."""
        self.apart: dict[str, str] = {}
        """Operations on the last images that torch did between the native ones, and why."""

    def __call__(self, x: Tensor) -> Any:
        size = tuple(x.shape[1:])
        if x.ndim != 4 or x.dtype != torch.float32 or not len(x):
            return self._module(x)
        if size not in self._nets:
            self._nets[size] = self._made(x[:1])
        net = self._nets[size]
        if net is None:
            return self._module(x)
        for site in self._packed.values():
            site.kernel_calls += 1
        return net(x)

    def _made(self, image: Tensor) -> Net | None:
        program = program_of(self._module, self._packed, image)
        if isinstance(program, str):
            self.reason = program
            return None
        self.apart = program.apart
        return Net(program, self._module, self._packed)


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
    first, *others = (torch.empty_like(image).uniform_(-1, 1, generator=generator) for _ in range(3))
    program = lower(module, first)
    # Other images: what was taken for a constant and is none would show. Two: they must not depend on one another.
    x = torch.cat(others)
    expected, found = list[Tensor](), list[Tensor]()
    with torch.no_grad():
        try:
            each_of(module(x), Tensor, expected.append)
        except Exception as error:
            raise NotNative(f"it takes one image at a time ({type(error).__name__})") from None
    each_of(Net(program, module, {})(x), Tensor, found.append)
    for wanted, given in zip(expected, found, strict=True):
        if wanted.shape != given.shape or wanted.dtype != given.dtype:
            raise NotNative(f"its program gives {tuple(given.shape)} in the place of {tuple(wanted.shape)}")
        apart = float((given - wanted).abs().max()) / max(float(wanted.abs().max()), 1e-30) if wanted.numel() else 0.0
        if not apart <= MOST_APART:
            raise NotNative(f"its program gives something else ({apart:.1e} apart)")
    return program


class Net:
    """A program with a module's values."""

    def __init__(self, program: Program, module: nn.Module, packed: Mapping[str, PackedModule]) -> None:
        import headway.kernels.cpu._cpu as _cpu

        make = cast(Any, _cpu).make_image_net
        state = {**dict(module.named_parameters()), **dict(module.named_buffers())}
        self._program = program
        self._segments: dict[int, Any] = {}
        self._constants: dict[Node, Tensor] = {}
        with torch.no_grad():
            for index, part in enumerate(program.parts):
                if isinstance(part, Segment):
                    steps = [_filled(step, state, packed) for step in part.steps]
                    kept = list(part.kept.values())
                    self._segments[index] = make(part.registers, steps, kept, len(part.given))
                elif isinstance(part, Call):
                    for node, value in part.given.items():
                        if isinstance(value, Known) and node not in self._constants:
                            self._constants[node] = value.number(state)
            self._result = mapped(program.result, Known, lambda known: known.number(state))

    def __call__(self, x: Tensor) -> Any:
        """x: (n, channels, height, width) -> what the module gives."""
        with torch.no_grad():
            parts = [self._some(some) for some in x.detach().split(MOST_IMAGES)]
        return parts[0] if len(parts) == 1 else _joined(parts)

    def _some(self, x: Tensor) -> Any:
        count = len(x)
        rows = {0: x.movedim(1, -1).flatten(1, 2).contiguous().numpy()}
        """Of each register that is wanted later: (n, pixels, channels)."""
        made: dict[Node, list[Tensor]] = {}
        for index, part in enumerate(self._program.parts):
            if isinstance(part, Segment):
                given, kept = [rows[r] for r in part.given], list(part.kept.values())
                rows |= zip(part.kept, self._segments[index].run(given, kept), strict=True)
            elif isinstance(part, Bring):
                images = [image.movedim(part.channel, -1).flatten(0, -2) for image in made[part.node]]
                rows[part.register] = torch.stack(images).contiguous().numpy()
            else:
                made[part.node] = [self._called(part, rows, made, image) for image in range(count)]

        def given_back(value: Any) -> Tensor:
            if isinstance(value, Apart):
                return torch.cat(made[value.node])
            held = torch.from_numpy(rows[value.register])
            return held.as_strided((count, *value.size[1:]), (held.stride(0), *value.stride[1:]), value.offset)

        return mapped(self._result, (Place, Apart), given_back)

    def _called(self, call: Call, rows: Mapping[int, Any], made: Mapping[Node, list[Tensor]], image: int) -> Tensor:
        tensors = dict[Node, Tensor]()
        for node, value in call.given.items():
            if isinstance(value, Place):
                held = torch.from_numpy(rows[value.register][image])
                tensors[node] = held.as_strided(value.size, value.stride, value.offset)
            else:
                tensors[node] = made[value.node][image] if isinstance(value, Apart) else self._constants[node]
        return call.node.called(tensors)


def _joined(parts: list[Any]) -> Any:
    """Structures of tensors, image after image; what is one tensor in all of them is a constant."""
    found = [list[Tensor]() for _ in parts]
    for part, tensors in zip(parts, found, strict=True):
        each_of(part, Tensor, tensors.append)
    whole = iter([each[0] if each[0] is each[1] else torch.cat(each) for each in zip(*found, strict=True)])
    return mapped(parts[0], Tensor, lambda _: next(whole))


def _empty(site: PackedModule) -> nn.Module:
    """A layer such as the packed one stands for, of any values."""
    layer: nn.Module
    if isinstance(site, PackedConv1x1):
        layer = nn.Conv2d(site.in_channels, site.out_channels, 1, site.stride, bias=site.bias is not None)
    else:
        layer = nn.Linear(site.packed.shape[1], site.packed.shape[0], bias=site.bias is not None)
    return layer.eval()


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
