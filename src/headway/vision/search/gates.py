"""Binary gates of ProxylessNAS: one path runs, and every gate still gets its gradient (sections 3.2 and 3.3).

A layer computes m(x) = sum_i g_i o_i(x) with a one-hot sample g of p = softmax(alpha). The gradient of a gate is
<dL/dm, o_j(x)>, and that of alpha_i is sum_j dL/dg_j p_j (delta_ij - p_i), which autograd makes of `straight_through`.

    mode      outputs computed in a step       activations kept
    two       two, the inactive one detached   of one path
    full_v2   one; the others again, without
              a graph, in the backward pass    of one path
    full      all                              of all paths
"""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from torch import Tensor, nn

GateMode = Literal["two", "full_v2", "full"]


def straight_through(p: Tensor, active: int) -> Tensor:
    """Binary gates with the gradient of the probabilities: (n,) -> (n,)."""
    hard = torch.zeros_like(p)
    hard[active] = 1.0
    return hard + p - p.detach()


class _OnePath(torch.autograd.Function):
    """`full_v2`: forward of the active candidate; the backward pass runs the others for their gates' sake."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, gates: Tensor, ops: nn.ModuleList, active: int) -> Tensor:
        ctx.ops, ctx.active = ops, active
        inside = x.detach().requires_grad_()
        with torch.enable_grad():
            out = ops[active](inside)
        ctx.save_for_backward(inside, out)
        return out.detach() if out is not inside else inside.detach().clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        inside, out = ctx.saved_tensors
        products = []
        with torch.no_grad():
            for index, op in enumerate(ctx.ops):
                other = out.detach() if index == ctx.active else op(inside.detach())
                products.append((grad * other).sum())
        (before,) = torch.autograd.grad(out, inside, grad) if out is not inside else (grad,)
        return before, torch.stack(products), None, None


class GateStep:
    """One architecture step: gates sampled from `alphas`, and the `Mix` that runs them.

    `probabilities` are those of this step, by layer: of all candidates, or of the two that were drawn.
    """

    def __init__(self, alphas: list[nn.Parameter], mode: GateMode, skips: list[int | None]) -> None:
        """skips: which candidate of each layer leaves the block out, if one does.

        Where that one is sampled the layer's alpha gets no gradient in this step, as in the released code.
        """
        self.mode = mode
        self.chosen: list[list[int]] = []
        self.active: list[int] = []
        self.probabilities: list[Tensor] = []
        self.gates: list[Tensor] = []
        for alpha, skip in zip(alphas, skips, strict=True):
            p = torch.softmax(alpha, 0)
            if mode == "two" and len(alpha) > 1:
                pair = torch.multinomial(p.detach(), 2).tolist()
                p = torch.softmax(alpha[pair], 0)
            else:
                pair = list(range(len(alpha)))
            k = int(torch.multinomial(p.detach(), 1))
            p = p.detach() if pair[k] == skip else p
            self.chosen.append(pair)
            self.active.append(pair[k])
            self.probabilities.append(p)
            self.gates.append(straight_through(p, k))

    def mix(self, layer: int, ops: nn.ModuleList, x: Tensor) -> Tensor:
        """A `Mix`."""
        gates, active = self.gates[layer], self.active[layer]
        if self.mode == "full_v2":
            out: Tensor = _OnePath.apply(x, gates, ops, active)
            return out
        total: Tensor | None = None
        for gate, index in zip(gates, self.chosen[layer], strict=True):
            if self.mode == "two" and index != active:
                with torch.no_grad():
                    part = ops[index](x)
            else:
                part = ops[index](x)
            total = gate * part if total is None else total + gate * part
        assert total is not None
        return total

    def expected_cost(self, costs: list[Tensor], fixed: float) -> Tensor:
        """E[latency] under the probabilities of this step: differentiable in alpha."""
        found = torch.tensor(fixed)
        for p, cost, pair in zip(self.probabilities, costs, self.chosen, strict=True):
            found = found + (p * cost[pair]).sum()
        return found


@torch.no_grad()
def keep_unsampled(alphas: list[nn.Parameter], before: list[Tensor], chosen: list[list[int]]) -> None:
    """After a step in mode `two`: shift each drawn pair so that its sum of exp(alpha) is what it was.

    The probabilities of what was not drawn then stay as they were.
    """
    for alpha, old, pair in zip(alphas, before, chosen, strict=True):
        if len(pair) < len(alpha):
            alpha[pair] -= torch.logsumexp(alpha[pair], 0) - torch.logsumexp(old[pair], 0)


def regularised(
    ce: Tensor, cost: Tensor, target: float, kind: str, *, alpha: float, beta: float, lambda_: float
) -> Tensor:
    """The loss with latency in it: `mul_log`: alpha CE (ln E / ln T)^beta; `add_linear`: CE + lambda (E - T) / T.

    Costs are in microseconds, so that logarithms are positive; `mul_log` needs both above one.
    """
    if kind == "add_linear":
        return ce + lambda_ * (cost - target) / target
    return alpha * ce * (torch.log(cost) / math.log(target)) ** beta
