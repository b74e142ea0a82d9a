"""Small random stacks, and adapters whose every gradient is away from zero."""

from __future__ import annotations

import torch
from torch import Tensor

from headway.training.lora import Adapters, Pair
from headway.training.stack import LINEARS, Block, Sizes, Stack


def random_stack(seed: int, dtype: torch.dtype, layers: int = 3, window: int = 0, bias: bool = False) -> Stack:
    """Grouped-query heads, sizes that are no powers of two."""
    g = torch.Generator().manual_seed(seed)
    sizes = Sizes(d_model=24, ffn=40, heads=6, kv_heads=2, head_dim=6, norm_eps=1e-5, query_scale=6**-0.5)
    shapes = {
        "self_attn.q_proj": (36, 24), "self_attn.k_proj": (12, 24), "self_attn.v_proj": (12, 24),
        "self_attn.o_proj": (24, 36), "mlp.gate_proj": (40, 24), "mlp.up_proj": (40, 24), "mlp.down_proj": (24, 40),
    }  # fmt: skip

    def draw(*shape: int, scale: float = 0.2) -> Tensor:
        return (torch.randn(shape, generator=g, dtype=torch.float64) * scale).to(dtype)

    blocks = [
        Block(
            {name: draw(*shape) for name, shape in shapes.items()},
            {name: draw(shapes[name][0]) for name in LINEARS[:3]} if bias else {},
            1 + draw(24),
            1 + draw(24),
            (100.0 ** (-torch.arange(3) / 3)).float(),
            window=window if index % 2 else 0,
        )
        for index in range(layers)
    ]
    head = draw(50, 24)
    return Stack(sizes, blocks, head, head, 1 + draw(24))


def warm(adapters: Adapters, seed: int = 1) -> Adapters:
    """Adapters with B away from zero, so that every gradient is."""
    g = torch.Generator().manual_seed(seed)
    pairs = {
        site: Pair(p.a, (torch.randn(p.b.shape, generator=g) * 0.2).to(p.b.dtype)) for site, p in adapters.pairs.items()
    }
    return Adapters(adapters.settings, pairs)
