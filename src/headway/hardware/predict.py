"""`predict_language`: what a language model will cost on a target, before anything is run.

Time is the sum of what a step does, each part from measured rates (`Rates`):

    matrices    every site's product by its form's own calibrated kernel, from the memory level that the bytes of
                one whole step leave it in (all layers are walked between two uses of a matrix)
    attention   K and V read once a step; with many queries their arithmetic; calibrated as form `kv:<dtype>`,
                else the roofline
    moves       float32 activations written and read between the products
    fixed       barriers between the phases of a step

Memory is by owner, from the bytes each will allocate.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from headway.core.errors import BadInput
from headway.core.system import Costs
from headway.core.target import Target
from headway.hardware.rates import Rates

F32_BYTES = 4
FORM_BYTES = 1.125
"""An activation as kernels read it: int8 and a float32 scale for 32 of them."""
KV_BYTES = {"f32": 4.0, "f16": 2.0, "bf16": 2.0, "int8": 1.0, "int4": 0.5, "k8v4": 0.75}
"""Bytes of an element, the mean of keys and values; up to 1.0 integers, with a float32 scale per vector."""


def kv_element_bytes(kv: str, head_dim: int) -> float:
    """Bytes that the native store keeps for an element of a key or value, scales shared out; `kv`: of `KV_BYTES`."""
    return KV_BYTES[kv] + (F32_BYTES / head_dim if KV_BYTES[kv] <= 1 else 0.0)


@dataclass(frozen=True)
class LanguageShape:
    """Sizes of a decoder-only language model that decide its cost."""

    layers: int
    width: int
    ffn: int
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int
    windows: tuple[int, ...] = ()
    """Keys a query sees, per layer; 0 = all. Empty = all layers see all."""
    vector_bytes: int = 0
    """Norms, biases: float32 vectors beside the matrices."""
    phases_per_layer: int = 7
    """Barriers of a layer: norm+qkv, rope, attention, output, norm, gate+up, down."""

    def __post_init__(self) -> None:
        if self.windows and len(self.windows) != self.layers:
            raise BadInput(f"{len(self.windows)} windows for {self.layers} layers", "give one a layer, or none")

    @property
    def kv_elements(self) -> int:
        """Elements of K and V that one token adds to one layer."""
        return 2 * self.kv_heads * self.head_dim

    @property
    def moves(self) -> int:
        """Activations written or read per token and layer: norms, residuals, q/k/v, gate and up."""
        return 10 * self.width + 4 * self.heads * self.head_dim + 2 * self.kv_elements + 3 * self.ffn

    def keys_seen(self, tokens: float) -> list[float]:
        """Keys that a query after `tokens` tokens sees, per layer."""
        return [min(tokens, window) if window else tokens for window in self.windows or (0,) * self.layers]


@dataclass(frozen=True)
class SiteLoad:
    """One matrix as a recipe would leave it."""

    name: str
    out_features: int
    in_features: int
    nbytes: float
    """Bytes one product reads, and an artifact stores."""
    form: str
    kind: str = "linear"
    """`linear`, `conv1x1`, `head` (its last row only, at prefill) or `embedding` (rows are looked up)."""
    share: float = 1.0
    """Part of the tokens that use it: experts chosen over experts held."""
    resident_bytes: float | None = None
    """Memory it holds when that is not `nbytes` (a stored and a packed copy)."""

    @property
    def weights(self) -> float:
        return float(self.out_features) * self.in_features


@dataclass(frozen=True)
class LanguageLoad:
    """What the model is asked."""

    prompt_tokens: int = 512
    output_tokens: int = 128
    context: int = 0
    """Tokens of KV allocated; 0 = prompt and output."""
    kv: str = "f32"
    """Data type of the KV store: a key of `KV_BYTES`, or any name when `kv_element_bytes` is given."""
    kv_element_bytes: float = 0.0
    kv_page: int = 1
    """Tokens whose keys and values the store allocates together."""
    chunk: int = 512
    """Prompt tokens that go through the network together."""
    threads: int = 1

    @property
    def element_bytes(self) -> float:
        if self.kv_element_bytes > 0:
            return self.kv_element_bytes
        if self.kv not in KV_BYTES:
            raise BadInput(f"no KV data type {self.kv!r}", f"give kv_element_bytes, or one of: {', '.join(KV_BYTES)}")
        return KV_BYTES[self.kv]


@dataclass(frozen=True)
class Prediction:
    """Costs, and what they are made of."""

    costs: Costs
    parts: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    """What each predicted time is the sum of, by the name of the cost (`tpot_s`, `ttft_s`, `latency_s`).

    Its keys are `matrices:<form>`, `attention`, `moves`, `fixed`, and for a module `rest`: what the recipe leaves
    alone.
    """
    memory: Mapping[str, float] = field(default_factory=dict)
    """Bytes by owner; their sum is `costs.memory_bytes`."""
    guessed: tuple[str, ...] = ()
    """Forms without a calibrated kernel on the target: their time is the roofline's, a lower bound."""


def predict_language(
    shape: LanguageShape, sites: Sequence[SiteLoad], load: LanguageLoad, target: Target, isa: str = ""
) -> Prediction:
    """Costs of `load` with `sites` on `target`: `tpot_s` (mean over the output), `ttft_s`, memory, size."""
    rates = Rates(target, load.threads, isa)
    decode = decode_seconds(shape, sites, load, rates, load.prompt_tokens + load.output_tokens / 2)
    prefill = prefill_seconds(shape, sites, load, rates)
    memory = memory_bytes(shape, sites, load)
    return Prediction(
        Costs(
            ttft_s=sum(prefill.values()),
            tpot_s=sum(decode.values()),
            memory_bytes=sum(memory.values()),
            size_bytes=sum(site.nbytes for site in sites) + shape.vector_bytes,
        ),
        {"tpot_s": decode, "ttft_s": prefill},
        memory,
        tuple(sorted(rates.guessed)),
    )


def decode_seconds(
    shape: LanguageShape, sites: Sequence[SiteLoad], load: LanguageLoad, rates: Rates, tokens: float, rows: int = 1
) -> dict[str, float]:
    """Seconds by part of one step of `rows` sequences, each after `tokens` tokens."""
    used = [site for site in sites if site.kind != "embedding"]
    kv_bytes = rows * _kv_bytes(shape, load, tokens)
    step_bytes = sum(site.nbytes * _touched(site.share, rows) for site in used) + kv_bytes
    matrices = _matrix_parts(used, rows, step_bytes, rates)
    attention = rows * sum(_attention_s(shape, load, rates, keys, 1.0, step_bytes) for keys in shape.keys_seen(tokens))
    return {
        **matrices,
        "attention": attention,
        "moves": rates.move_s(F32_BYTES * rows * shape.layers * shape.moves, F32_BYTES * rows * shape.moves),
        "fixed": rates.barrier_s * shape.phases_per_layer * shape.layers + rates.target.crossing_s,
    }


def prefill_seconds(
    shape: LanguageShape, sites: Sequence[SiteLoad], load: LanguageLoad, rates: Rates
) -> dict[str, float]:
    """Seconds by part of reading the prompt in chunks; the head answers for its last row only."""
    parts = {"attention": 0.0, "moves": 0.0, "fixed": 0.0}
    body = [site for site in sites if site.kind not in ("embedding", "head")]
    heads = [site for site in sites if site.kind == "head"]
    step_bytes = sum(site.nbytes for site in sites if site.kind != "embedding")
    done = 0
    while done < load.prompt_tokens:
        rows = min(load.chunk, load.prompt_tokens - done)
        _add(parts, _matrix_parts(body, rows, step_bytes, rates))
        middle = done + (rows + 1) / 2  # the mean query sees the keys before its chunk and half of its own
        kv_bytes = _kv_bytes(shape, load, done + rows)
        parts["attention"] += sum(
            _attention_s(shape, load, rates, keys, rows, kv_bytes) for keys in shape.keys_seen(middle)
        )
        moved = F32_BYTES * rows * shape.moves
        parts["moves"] += rates.move_s(moved * shape.layers, moved)
        parts["fixed"] += rates.barrier_s * shape.phases_per_layer * shape.layers + rates.target.crossing_s
        done += rows
    _add(parts, _matrix_parts(heads, 1, step_bytes, rates))
    return parts


def memory_bytes(shape: LanguageShape, sites: Sequence[SiteLoad], load: LanguageLoad) -> dict[str, float]:
    """Bytes by owner: the `--dry-run` table."""
    context = load.context or load.prompt_tokens + load.output_tokens
    context = -(-context // load.kv_page) * load.kv_page
    rows = min(load.chunk, max(load.prompt_tokens, 1))
    queries = shape.heads * shape.head_dim
    wide = 3 * shape.width + 2 * queries + shape.kv_elements + 2 * shape.ffn
    formed = shape.width + queries + shape.ffn
    return {
        "weights": sum(site.nbytes if site.resident_bytes is None else site.resident_bytes for site in sites)
        + shape.vector_bytes,
        "kv": _kv_bytes(shape, load, context),
        "scratch": F32_BYTES * (rows * wide + shape.vocabulary) + FORM_BYTES * rows * formed,
    }


def _matrix_parts(sites: Sequence[SiteLoad], rows: float, working_set: float, rates: Rates) -> dict[str, float]:
    """Seconds of every site's product with `rows` tokens, by form."""
    parts: dict[str, float] = {}
    alike = Counter((site.form, site.nbytes, site.weights, site.share) for site in sites)
    for (form, nbytes, weights, share), count in alike.items():
        seconds = rates.product_s(form, nbytes, weights, max(1.0, rows * share), working_set)
        part = f"matrices:{form}"
        parts[part] = parts.get(part, 0.0) + count * _touched(share, rows) * seconds
    return parts


def _add(parts: dict[str, float], more: Mapping[str, float]) -> None:
    for name, seconds in more.items():
        parts[name] = parts.get(name, 0.0) + seconds


def _touched(share: float, rows: float) -> float:
    """Probability that a step of `rows` tokens needs a site that each token needs with probability `share`."""
    return 1.0 if share >= 1 else 1.0 - (1.0 - share) ** max(rows, 1)


def _kv_bytes(shape: LanguageShape, load: LanguageLoad, tokens: float) -> float:
    return sum(shape.keys_seen(tokens)) * shape.kv_elements * load.element_bytes


def _attention_s(
    shape: LanguageShape, load: LanguageLoad, rates: Rates, keys: float, queries: float, working_set: float
) -> float:
    """Seconds of `queries` tokens attending to `keys` keys in one layer."""
    elements = keys * shape.kv_elements
    rows = queries * shape.heads / shape.kv_heads
    return rates.product_s(f"kv:{load.kv}", elements * load.element_bytes, elements, rows, working_set)
