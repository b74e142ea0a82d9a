"""`TokenSelector`: a router that lets the most important tokens through a mixer, and puts them back in their place.

The selection of DynamicVis (arXiv:2503.16426), on which nothing else of that network depends.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from headway.core.errors import BadInput


@dataclass(frozen=True)
class Selection:
    """Some of the tokens of each image."""

    index: Tensor
    """(batch, selected), by falling importance; equal ones by rising place."""
    importance: Tensor
    """(batch, tokens) of all tokens; sums to 1, in float32."""

    @property
    def weight(self) -> Tensor:
        """(batch, selected): importance of the selected ones. The router's gradients pass through it alone."""
        return self.importance.gather(1, self.index)

    def gather(self, x: Tensor) -> Tensor:
        """(batch, tokens, channels) -> (batch, selected, channels), most important first."""
        return x[_rows(self.index), self.index]

    def scatter(self, x: Tensor, mixed: Tensor) -> Tensor:
        """x plus, weighted by importance, what replaces it: `mixed` where selected, x itself elsewhere."""
        weight = self.weight[..., None].to(x.dtype)
        whole = x * (1.0 + self.importance[..., None]).to(x.dtype)
        return whole.index_put_((_rows(self.index), self.index), self.gather(x) + weight * mixed)


class TokenSelector(nn.Module):
    """(batch, tokens, channels) -> the `tokens // reduction` most important ones.

    While training, Gumbel noise on a detached copy of the scores makes the choice; in `eval` there is none. Raises
    `BadInput` where nothing would be selected.
    """

    def __init__(self, channels: int, reduction: int, gumbel_scale: float = 0.1) -> None:
        super().__init__()
        self.reduction = reduction
        self.gumbel_scale = gumbel_scale
        self.router = nn.Linear(channels, 1, bias=False)

    def forward(self, x: Tensor) -> Selection:
        count = x.shape[1] // self.reduction
        if not count:
            raise BadInput(
                f"one token in {self.reduction} of {x.shape[1]} is none", "give larger images or a smaller `keep`"
            )
        scores = self.router(x)[..., 0].float()
        return Selection(self.choose(scores.detach(), count), torch.softmax(scores, 1))

    def choose(self, scores: Tensor, count: int) -> Tensor:
        """(batch, tokens) -> (batch, count) places of the highest scores; softmax would not change their order."""
        if self.training and self.gumbel_scale:
            scores = scores - self.gumbel_scale * torch.empty_like(scores).exponential_().log()
        return torch.sort(scores, dim=1, descending=True, stable=True).indices[:, :count]


def _rows(index: Tensor) -> Tensor:
    return torch.arange(index.shape[0], device=index.device)[:, None]
