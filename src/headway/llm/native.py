"""`NativeRuntime`: the whole-model step in native code; Python is crossed once per step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

import headway.kernels.cpu._cpu as _cpu
from headway.core.errors import BadInput
from headway.core.weight import Weight
from headway.llm.families.base import F32, Architecture
from headway.llm.runtime import I64, KVType

I32 = npt.NDArray[np.int32]
_MATRICES = {
    "q": "attention.q",
    "k": "attention.k",
    "v": "attention.v",
    "o": "attention.o",
    "gate": "mlp.gate",
    "up": "mlp.up",
    "down": "mlp.down",
}
_VECTORS = {
    "attention_norm": "attention_norm.weight",
    "mlp_norm": "mlp_norm.weight",
    "q_bias": "attention.q.bias",
    "k_bias": "attention.k.bias",
    "v_bias": "attention.v.bias",
    "q_norm": "attention.q_norm.weight",
    "k_norm": "attention.k_norm.weight",
    "post_attention_norm": "post_attention_norm.weight",
    "post_mlp_norm": "post_mlp_norm.weight",
}


def describe(
    arch: Architecture,
    weights: Mapping[str, Weight],
    vectors: Mapping[str, F32],
    *,
    kv: KVType = "f16",
    exact: bool = False,
) -> dict[str, Any]:
    """The plain-data description that native code builds its model from."""
    layers = []
    for index, layer in enumerate(arch.layers):
        at = f"layers.{index}"
        entry: dict[str, Any] = {key: weights[f"{at}.{site}"].native() for key, site in _MATRICES.items()}
        for key, name in _VECTORS.items():
            if f"{at}.{name}" in arch.vectors:
                entry[key] = np.ascontiguousarray(vectors[f"{at}.{name}"], np.float32)
        entry["window"] = layer.window
        entry["frequencies"] = layer.rope.inverse_frequencies(arch.head_dim)
        entry["rope_factor"] = layer.rope.attention_factor
        layers.append(entry)
    return {
        "vocab": arch.vocab,
        "d_model": arch.d_model,
        "ffn": arch.ffn,
        "heads": arch.heads,
        "kv_heads": arch.kv_heads,
        "head_dim": arch.head_dim,
        "norm_eps": arch.norm_eps,
        "query_scale": arch.query_scale,
        "embedding_scale": arch.embedding_scale,
        "attention_softcap": arch.attention_softcap,
        "final_softcap": arch.final_softcap,
        "activation": 0 if arch.activation == "silu" else 1,
        "kv": kv,
        "exact": exact,
        "layers": layers,
        "final_norm": np.ascontiguousarray(vectors["final_norm.weight"], np.float32),
        "embedding": weights[arch.embedding_site].native(),
        "head": weights["head"].native(),
    }


PAGE_TOKENS: int = _cpu.PAGE_TOKENS
"""Tokens of one page of keys and values."""


class NativeSession:
    """One sequence and its pages of keys and values. Not safe for two threads at once."""

    def __init__(self, runtime: NativeRuntime, capacity: int) -> None:
        self._runtime = runtime
        self.sequence = runtime.model.sequence()
        self.capacity = capacity

    @property
    def length(self) -> int:
        """Tokens fed so far."""
        return self.sequence.length  # type: ignore[no-any-return]

    @property
    def nbytes(self) -> int:
        """Bytes of its keys and values."""
        return self.sequence.nbytes  # type: ignore[no-any-return]

    def feed(self, tokens: I64, every: bool = False) -> F32:
        """Append tokens -> logits float32 of the last, (vocab,), or of every one, (n, vocab)."""
        logits = self._runtime.step((self,), (tokens,), every)
        return logits if every else logits[0]

    def rewind(self, length: int) -> None:
        """Forget every token after the first `length`; BadInput if there are fewer, or `trim` let them go."""
        if not self.sequence.truncate(length):
            raise BadInput(
                f"cannot rewind a sequence of {self.length} tokens to {length}", "start a new sequence instead"
            )

    def share(self, index: int) -> Any:
        """Page `index` (tokens 64 * index and up), which must be full: for another sequence to begin with."""
        return self.sequence.share(index)

    def adopt(self, pages: Sequence[Any]) -> None:
        """Begin with shared pages, in order, as if their tokens had been fed. ValueError unless it is empty."""
        self.sequence.adopt(list(pages))

    def trim(self) -> None:
        """Free the pages that no later token sees (layers with a window); a long rewind is then refused."""
        self.sequence.trim()


class NativeRuntime:
    """Runs the network of `Architecture` over packed weights. Safe for several threads; steps take turns.

    A sequence gives the same logits, bit for bit, for every number of threads, alone or in a batch, however its
    tokens are cut into steps. `exact=True` multiplies float32 activations with the exact weights everywhere (the
    path that is held to the readable torch network); otherwise each weight form's own kernel runs.
    """

    def __init__(
        self,
        architecture: Architecture,
        weights: Mapping[str, Weight],
        vectors: Mapping[str, F32],
        *,
        kv: KVType = "f16",
        exact: bool = False,
        threads: int = 0,
    ) -> None:
        """`threads` 0: as set for the process. Raises ValueError when a shape does not fit the architecture."""
        self.architecture = architecture
        self.threads = threads
        self.model = _cpu.make_model(describe(architecture, weights, vectors, kv=kv, exact=exact))

    @property
    def weight_bytes(self) -> int:
        """Packed bytes that one decoded token reads."""
        return self.model.weight_bytes  # type: ignore[no-any-return]

    def begin(self, capacity: int = 0) -> NativeSession:
        """A new sequence. Pages are taken as it grows; `capacity` is only remembered."""
        return NativeSession(self, capacity)

    def batch(self) -> Any:
        """A batch of 1 to 512 rows that the caller takes through the layers itself, three crossings a layer.

        begin(sequences, tokens, offsets) or begin_at(tokens, positions); then for each layer
            q, k, v = project()     float32; q (rows, heads * head_dim), k and v (rows, kv_heads * head_dim), rotated
            attend()                the plain paged store's, or attended(values) with one's own: values as q
            mix()
        and finish(rows) -> logits of those rows. Integers are int32 arrays. ValueError for a call out of turn.
        """
        return _cpu.Batch(self.model, self.threads)

    @property
    def page_bytes(self) -> int:
        """Keys and values of `PAGE_TOKENS` tokens."""
        return self.model.block_bytes  # type: ignore[no-any-return]

    def step(
        self,
        sessions: Sequence[NativeSession],
        tokens: Sequence[I64],
        every: bool = False,
        wanted: Sequence[bool] | None = None,
    ) -> F32:
        """Feed each session its tokens (n >= 1 each) in one crossing.

        Returns logits float32 (rows, vocab): the last token's of each session (of those with `wanted` true), or every
        token's, in order. MemoryError leaves every session as it was.
        """
        rows = np.full(len(sessions), 2 if every else 1, np.uint8) if wanted is None else np.asarray(wanted, np.uint8)
        return self.model.step(*_ragged(sessions, tokens), rows, self.threads)  # type: ignore[no-any-return]

    def lanes(self) -> NativeLanes:
        """Two lanes over these weights that step at the same time."""
        return NativeLanes(self)


class NativeLanes:
    """Two lanes, 0 and 1, each on its share of the runtime's threads; two threads may step them at the same time.

    A lane owns the whole cores of its share; the core that is left over changes hands between layers, by weighted fair
    queueing. A lane that does not step lends its cores. Tokens are those of the runtime's own `step`, bit for bit.
    """

    def __init__(self, runtime: NativeRuntime) -> None:
        self._lanes = _cpu.Lanes(runtime.model, runtime.threads)

    @property
    def cores(self) -> int:
        """Threads that both lanes have together."""
        return self._lanes.cores  # type: ignore[no-any-return]

    def share(self, first: float) -> None:
        """Lane 0's share of the compute, above 0 and below 1: from each lane's next layer on."""
        self._lanes.share(first)

    def step(self, lane: int, sessions: Sequence[NativeSession], tokens: Sequence[I64], wanted: Sequence[bool]) -> F32:
        """As the runtime's `step`, on a lane. A session may be stepped on one lane at a time."""
        return self._lanes.step(lane, *_ragged(sessions, tokens), np.asarray(wanted, np.uint8))  # type: ignore[no-any-return]


def _ragged(sessions: Sequence[NativeSession], tokens: Sequence[I64]) -> tuple[list[Any], I32, I32]:
    """(native sequences, all tokens, where each sequence's begin)."""
    if len(tokens) == 1:
        flat = np.asarray(tokens[0], np.int32)
        offsets = np.array((0, flat.shape[0]), np.int32)
    else:
        flat = np.concatenate(tokens).astype(np.int32)
        offsets = np.cumsum([0, *(len(part) for part in tokens)], dtype=np.int32)
    return [session.sequence for session in sessions], np.ascontiguousarray(flat), offsets
