"""The selective scan of Mamba (Gu & Dao 2023, arXiv:2312.00752), in one function of plain tensors.

    h_t = exp(dt_t A) h_(t-1) + (dt_t u_t) outer B_t        h (width, state), before the first token 0
    y_t = h_t . C_t + D u_t

Backwards, `reverse`, the same recurrence runs from the last token to the first over the same memory: nothing is
flipped.

u, dt and y are (batch, tokens, width), B and C (batch, tokens, state); A is (width, state), D (width). What comes
before and after the recurrence in Mamba passes with it: softplus of dt, another y that is added, a gate.

In float32 on a CPU, without gradients, one native kernel does all of it (kernels/cpu/scan_kernel.h). Otherwise states
are kept as (batch, state, width), so that the innermost loop runs over channels, in float32 (float64 for such inputs).
Sixteen states of every token are never held: they exist for one tile of tokens at a time, of about `TILE` values.
Gradients keep the state before each tile, and compute those within it again.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function

from headway.core.errors import BadInput
from headway.kernels.cpu import _cpu

TILE = 1 << 17
"""Values of a tile's states: 512 KB, which stay in a core's cache."""


def selective_scan(
    u: Tensor,
    dt: Tensor,
    a: Tensor,
    b: Tensor,
    c: Tensor,
    d: Tensor,
    *,
    added: Tensor | None = None,
    gate: Tensor | None = None,
    softplus: bool = False,
    reverse: bool = False,
    tile: int = 0,
) -> Tensor:
    """(batch, tokens, width) -> the same shape: (y + added) silu(gate).

    dt: step sizes, not negative, or with `softplus` what they are the softplus of; a: (width, state), negative; added,
    gate: as u; tile: tokens whose states are held at once where there is no native kernel, 0: as many as fit `TILE`.
    Raises `BadInput` for shapes that do not belong together, and for an exporter.
    """
    _check(u, dt, a, b, c, d, added, gate)
    if u.is_meta:
        return torch.empty_like(u)
    if torch.compiler.is_exporting():  # an exporter would unroll it, token by token
        raise BadInput("a selective scan cannot be exported", "run the network in torch")
    given = [value for value in (u, dt, a, b, c, d, added, gate) if value is not None]
    if _native(given):
        return native_scan(u, dt, a, b, c, d, added, gate, softplus, reverse)
    if tile < 1:
        tile = max(16, min(64, TILE // max(1, u.shape[0] * a.numel())))
    dt = F.softplus(dt) if softplus else dt
    y: Tensor
    if torch.is_grad_enabled() and any(value.requires_grad for value in given):
        y = _Scan.apply(u, dt, a, b, c, d, reverse, tile)  # type: ignore[no-untyped-call]
    else:
        y = _forward(u, dt, a, b, c, d, reverse, tile, None)
    y = y if added is None else y + added
    return y if gate is None else y * F.silu(gate)


def native_scan(
    u: Tensor,
    dt: Tensor,
    a: Tensor,
    b: Tensor,
    c: Tensor,
    d: Tensor,
    added: Tensor | None,
    gate: Tensor | None,
    softplus: bool,
    reverse: bool,
) -> Tensor:
    """`selective_scan` by the native kernel, of float32 on a CPU; one call to those who listen to torch's functions."""
    if has_torch_function((u, dt, a, b, c, d)):
        made: Tensor = handle_torch_function(
            native_scan, (u, dt, a, b, c, d), u, dt, a, b, c, d, added, gate, softplus, reverse
        )
        return made
    y = torch.empty(u.shape)
    rows = (None if value is None else _rows(value) for value in (u, dt, b, c, added, gate))
    u, dt, b, c, added, gate = rows  # type: ignore[assignment]
    a, d = (value.detach().contiguous() for value in (a, d))
    _cpu.selective_scan(u, dt, a, b, c, d, y, added, gate, softplus, reverse, torch.get_num_threads())
    return y


def causal_filter(
    x: Tensor, weight: Tensor, bias: Tensor | None, *, silu: bool = False, reverse: bool = False
) -> Tensor:
    """A filter of each channel over a token and those before it: (batch, tokens, width) -> the same shape.

    weight: (width, taps), the token's own last; silu: of what comes out; reverse: over the tokens behind it.
    """
    given = [value for value in (x, weight, bias) if value is not None]
    if _native(given) and not torch.compiler.is_exporting():
        return native_filter(x, weight, bias, silu, reverse)
    taps = weight.unbind(-1)
    made = x * taps[-1]
    for lag in range(1, min(len(taps), x.shape[1])):
        to, of = (made[:, :-lag], x[:, lag:]) if reverse else (made[:, lag:], x[:, :-lag])
        to += of * taps[-1 - lag]
    made = made if bias is None else made + bias
    return F.silu(made) if silu else made


def native_filter(x: Tensor, weight: Tensor, bias: Tensor | None, silu: bool, reverse: bool) -> Tensor:
    """`causal_filter` by the native kernel; one call to those who listen to torch's functions."""
    if has_torch_function((x, weight)):
        made: Tensor = handle_torch_function(native_filter, (x, weight), x, weight, bias, silu, reverse)
        return made
    y = torch.empty(x.shape)
    taps, shift = weight.detach().T.contiguous(), None if bias is None else bias.detach().contiguous()
    _cpu.causal_filter(_rows(x), taps, shift, y, silu, reverse, torch.get_num_threads())
    return y


def _native(given: Sequence[Tensor]) -> bool:
    """Whether a native kernel may take these: float32 on a CPU, of which no gradients are wanted."""
    if torch.is_grad_enabled() and any(value.requires_grad for value in given):
        return False
    return all(value.dtype == torch.float32 and value.device.type == "cpu" for value in given)


def _rows(value: Tensor) -> Tensor:
    value = value.detach()
    return value if value.stride(-1) == 1 else value.contiguous()


def selective_scan_reference(
    u: Tensor, dt: Tensor, a: Tensor, b: Tensor, c: Tensor, d: Tensor, *, reverse: bool = False
) -> Tensor:
    """The definition, token by token, in the inputs' own precision; for tests."""
    state = u.new_zeros(u.shape[0], *a.shape)
    outputs = []
    for t in _order(u.shape[1], reverse):
        state = torch.exp(dt[:, t, :, None] * a) * state + (dt[:, t] * u[:, t])[:, :, None] * b[:, t, None, :]
        outputs.append((state * c[:, t, None, :]).sum(-1) + d * u[:, t])
    return torch.stack(outputs[::-1] if reverse else outputs, 1)


def _check(
    u: Tensor, dt: Tensor, a: Tensor, b: Tensor, c: Tensor, d: Tensor, added: Tensor | None, gate: Tensor | None
) -> None:
    batch, tokens, width = u.shape
    state = a.shape[-1]
    wanted = {"dt": (dt, u.shape), "a": (a, (width, state)), "d": (d, (width,))}
    wanted |= {"b": (b, (batch, tokens, state)), "c": (c, (batch, tokens, state))}
    wanted |= {name: (value, u.shape) for name, value in (("added", added), ("gate", gate)) if value is not None}
    for name, (value, shape) in wanted.items():
        if value.shape != shape:
            raise BadInput(f"a scan over {tuple(u.shape)} was given {name} of {tuple(value.shape)}", f"give {shape}")


def _order(count: int, reverse: bool) -> range:
    return range(count - 1, -1, -1) if reverse else range(count)


class _Tile:
    """Some neighbouring tokens: their states, and what they are made of. The token axis comes first, in scan order."""

    def __init__(self, u: Tensor, dt: Tensor, a: Tensor, b: Tensor, place: slice, reverse: bool) -> None:
        kind = torch.promote_types(u.dtype, torch.float32)

        def taken(value: Tensor) -> Tensor:
            rows = value[:, place].transpose(0, 1).to(kind)
            return rows.flip(0) if reverse else rows

        self.taken = taken
        self.u, self.dt, self.b = taken(u), taken(dt), taken(b)
        self.a = a.T.to(kind)  # (state, width)
        self.decay = (self.dt[:, :, None, :] * self.a).exp_()  # (tokens, batch, state, width)

    def states(self, before: Tensor) -> Tensor:
        """(tokens, batch, state, width), given the state before the first of them."""
        states = (self.dt * self.u)[:, :, None, :] * self.b[:, :, :, None]
        last = before
        for here, decay in zip(states.unbind(0), self.decay.unbind(0), strict=True):
            last = here.addcmul_(decay, last)
        return states


def _tiles(
    u: Tensor, dt: Tensor, a: Tensor, b: Tensor, reverse: bool, tile: int, backward: bool = False
) -> Iterator[tuple[int, slice, _Tile]]:
    """Number, tokens and tile, in scan order, or against it."""
    tokens = u.shape[1]
    count = -(-tokens // tile)
    for number in _order(count, backward):
        index = count - 1 - number if reverse else number
        place = slice(index * tile, min(tokens, (index + 1) * tile))
        yield number, place, _Tile(u, dt, a, b, place, reverse)


def _forward(
    u: Tensor,
    dt: Tensor,
    a: Tensor,
    b: Tensor,
    c: Tensor,
    d: Tensor,
    reverse: bool,
    tile: int,
    kept: list[Tensor] | None,
) -> Tensor:
    """kept: takes the state before each tile."""
    y = torch.empty(u.shape, dtype=u.dtype, device=u.device)
    state = torch.zeros((), dtype=torch.promote_types(u.dtype, torch.float32), device=u.device)
    state = state.expand(u.shape[0], a.shape[1], a.shape[0])
    for _, place, part in _tiles(u, dt, a, b, reverse, tile):
        if kept is not None:
            kept.append(state)
        states = part.states(state)
        state = states[-1].clone()
        found = (part.taken(c)[:, :, None, :] @ states)[:, :, 0].addcmul_(d.to(states.dtype), part.u)
        y[:, place] = (found.flip(0) if reverse else found).transpose(0, 1)
    return y


class _Scan(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> Tensor:
        u, dt, a, b, c, d, reverse, tile = arguments
        kept: list[Tensor] = []
        y = _forward(u, dt, a, b, c, d, reverse, tile, kept)
        ctx.save_for_backward(u, dt, a, b, c, d, *kept)
        ctx.reverse, ctx.tile = reverse, tile
        return y

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        u, dt, a, b, c, d, *kept = ctx.saved_tensors
        gy = gradients[0]
        gu, gdt, gb, gc = (torch.empty_like(value) for value in (u, dt, b, c))
        ga = torch.zeros_like(a.T, dtype=torch.promote_types(u.dtype, torch.float32))
        gd = torch.zeros_like(d, dtype=ga.dtype)
        after: Tensor | None = None  # gradient that the next tile hands to the last state of this one
        for number, place, part in _tiles(u, dt, a, b, ctx.reverse, ctx.tile, backward=True):
            before = kept[number]
            states = part.states(before)
            y, cs = part.taken(gy), part.taken(c)
            gs = y[:, :, None, :] * cs[:, :, :, None]  # gradients of the states
            here = gs.unbind(0)
            if after is not None:
                here[-1].add_(after)
            for t in range(len(here) - 1, 0, -1):
                here[t - 1].addcmul_(part.decay[t], here[t])
            after = part.decay[0] * here[0]
            found_c = (states @ y[..., None])[..., 0]
            scaled = part.dt * part.u
            found_b = (gs @ scaled[..., None])[..., 0]
            through = (part.b[:, :, None, :] @ gs)[:, :, 0]  # gradients of dt * u
            # That of decay, times decay: gs h_(t-1) exp(dt A).
            part.decay.mul_(gs)
            part.decay[1:].mul_(states[:-1])
            part.decay[0].mul_(before)
            steps = (part.decay * part.a).sum(2)
            ga += (part.decay * part.dt[:, :, None, :]).sum((0, 1))
            gd += (y * part.u).sum((0, 1))
            found = (
                (gu, through * part.dt + y * d.to(y.dtype)), (gdt, through * part.u + steps),
                (gb, found_b), (gc, found_c),
            )  # fmt: skip
            for whole, rows in found:
                whole[:, place] = (rows.flip(0) if ctx.reverse else rows).transpose(0, 1)
        return gu, gdt, ga.T.to(a.dtype), gb, gc, gd.to(d.dtype), None, None
