"""`dfloat11`: bfloat16 weights with Huffman-coded exponents, about 11 bits each and the same bits back.

The format is that of kernels/cpu/dfloat11.h, the code that of `huffman.py`, one matrix is a `CodedWeight`. What this
implementation decides where the paper's code leaves a choice:

- The matrices of a transformer block share one codebook (`groups=block`), but each keeps its own stream, beginning at a
  byte and at a block of its own. So a weight stays a value by itself (recipes may give one matrix of a block to another
  system), `split_positions` is not needed, and a stream loses half a byte. A group under 2^18 weights joins the next:
  decoding tables take 16 KiB of memory a codebook.
- Weights are coded in the order of the packed dense form (tiles of 16 rows, each column by column), so that what is
  decoded is what the kernel reads.
- Only the lengths of the codes are stored (canonical code, about 45 bytes); the byte-wise tables are made from them
  (`huffman.tables`). There is no EOF symbol, the positions say where a stream ends; it is padded with zeros.
- Code lengths come from package-merge, and are limited to 16 or 8 bits where the tree would need more tables than
  the pointers 240 to 255 can name.
- Decoding is fused: a thread expands four tiles into its own buffer and multiplies them at once. So less than a group
  is ever expanded (100 to 300 KB a thread), no phase waits for another, and there is nothing to prefetch on another
  core: there is no setting `prefetch`. Streaming from disk is the tiered store's business, not a setting here.
- A matrix that would not shrink (random exponents, very few weights) stays as it is.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field

from headway.core.card import Card
from headway.core.errors import BadInput, HeadwayError
from headway.core.model import Model, Site
from headway.core.system import YES, Context, Costs, Verdict, WeightSettings, no
from headway.core.target import Target
from headway.core.weight import F32, Weight
from headway.hardware.rates import Rates
from headway.llm.weights.coded import BLOCK_BYTES, U16, CodedWeight
from headway.llm.weights.dense import DenseWeight, from_bf16, to_bf16
from headway.llm.weights.huffman import POINTERS, U8, code_lengths, pack_lengths
from headway.llm.weights.transform import Matrix, WeightTransform

SYSTEM = Card(
    slug="dfloat11",
    title="DFloat11",
    paper="70% Size, 100% Accuracy: Lossless LLM Compression for Efficient GPU Inference via Dynamic-Length Float "
    "(DFloat11), NeurIPS 2025 (arXiv 2504.11651)",
    kind="transform",
    slot="weights",
    summary="bfloat16 weights in about 11 bits by Huffman-coded exponents, bit-identical results",
    claim="Llama-3.1-8B 16.1 -> 10.9 GB (67.8%), outputs bit-identical; 1.9 to 38.8x the tokens/s of off-loading",
    needs=("static_weights", "float_weights"),
)

LEAST_GROUP = 1 << 18
"""Weights from which a codebook, 16 KiB of tables in memory, is worth its place; smaller groups join a neighbour."""

TYPICAL_BITS = 10.9
"""Bits a weight before the weights are looked at: MiniLM, EfficientNet-Lite0 and SmolLM2 have 10.88 to 10.94."""


class Dfloat11Settings(WeightSettings):
    """Nothing here changes a bit of a result, but `cast`."""

    groups: Literal["block", "module"] = Field(
        "block", description="what shares a codebook: the matrices of a transformer block, or each its own"
    )
    cast: Literal["none", "bf16"] = Field(
        "none", description="bf16: round other float weights to bfloat16 first (relative error up to 2^-8), which loses"
    )
    resident: int = Field(
        0, ge=0, description="groups kept expanded in memory, the first ones: bf16's speed for bf16's bytes"
    )
    max_code_bits: int = Field(32, ge=8, le=32, description="bits of the longest code; the 5 bits of a gap allow 32")
    verify: bool = Field(True, description="decode every matrix after coding it and compare all bits")
    bytes_per_thread: Literal[8] = Field(8, description="bytes of code a GPU thread decodes; constant of the format")
    threads_per_block: Literal[512] = Field(512, description="threads a block of code is for; constant of the format")


class Dfloat11(WeightTransform[Dfloat11Settings]):
    """Every float matrix of a model, embeddings and heads included. Results keep the bits of the bfloat16 model."""

    card = SYSTEM
    settings = Dfloat11Settings
    skips = frozenset()

    def applies(self, model: Model, target: Target) -> Verdict:
        forms = {model.weight(site.name).form for site in model.sites()}
        if not forms:
            return no("it has no linear layer or 1x1 convolution")
        if "dense" not in forms and CodedWeight.form not in forms:
            return no(f"its weights are no floats ({', '.join(sorted(forms))}), and coding those gains nothing")
        return YES

    def weights(
        self, model: Model, settings: Dfloat11Settings, context: Context, sites: Sequence[Site]
    ) -> dict[str, Weight]:
        """Coded weights of the float sites that shrink; `context.notes` names the others. Not cached: coding a matrix
        takes about as long as reading the result back."""
        made: dict[str, Weight] = {}
        groups = grouped(sites, settings.groups)
        with ThreadPoolExecutor(max(1, context.threads)) as pool:
            named = context.progress.track(groups.items(), f"{SYSTEM.slug}: {len(groups)} groups", len(groups))
            for number, (group, members) in enumerate(named):
                values = self._values(model, settings, context, members)
                if not values:
                    continue
                lengths = code_lengths(sum(counts(v) for v in values.values()), settings.max_code_bits)
                resident = number < settings.resident

                def one(value: U16, group: str = group, lengths: U8 = lengths, resident: bool = resident) -> Weight:
                    return coded(value, lengths, group=group, resident=resident, verify=settings.verify)

                for name, weight in zip(values, pool.map(one, values.values()), strict=True):
                    if weight.nbytes < 2 * values[name].size:
                        made[name] = weight
                        continue
                    context.notes.append(f"{SYSTEM.slug}: {name} would not shrink and stays as it is")
                    if model.weight(name).nbytes > 2 * values[name].size:  # float32 that is bfloat16 all the same
                        made[name] = DenseWeight(from_bf16(values[name]), "bf16")
        return made

    def _values(
        self, model: Model, settings: Dfloat11Settings, context: Context, sites: Sequence[Site]
    ) -> dict[str, U16]:
        """Bits of the float matrices whose exponents are all below 240."""
        found: dict[str, U16] = {}
        for site in sites:
            weight = model.weight(site.name)
            if weight.form not in ("dense", CodedWeight.form):
                context.notes.append(f"{SYSTEM.slug}: {site.name} is {weight.form} and stays as it is")
                continue
            value, loss = bfloat16_bits(weight)
            if loss and settings.cast == "none":
                raise BadInput(
                    f"{SYSTEM.slug}: {site.name} is f{weight.bits_per_weight:.0f}, not bf16",
                    f"cast=bf16 rounds it, which loses: relative error up to {loss:.2g} here",
                )
            if loss:
                context.notes.append(f"{SYSTEM.slug}: {site.name} rounded to bf16, relative error up to {loss:.2g}")
            if counts(value)[POINTERS:].any():
                context.notes.append(
                    f"{SYSTEM.slug}: {site.name} holds exponents of {POINTERS} or more and stays uncompressed"
                )
                continue
            found[site.name] = value
        return found

    def make(self, matrix: Matrix, settings: Dfloat11Settings) -> Weight:
        """One matrix with a codebook of its own; `weights` is what makes groups."""
        value, _ = bfloat16_bits(DenseWeight(matrix.value) if matrix.held is None else matrix.held)
        return coded(value, code_lengths(counts(value), settings.max_code_bits), verify=settings.verify)

    def stored(self, site: Site, settings: Dfloat11Settings) -> tuple[str, float]:
        """An estimate: the bytes depend on the weights (`predict` looks at them)."""
        return CodedWeight.form, site.parameters * TYPICAL_BITS / 8

    def predict(self, model: Model, target: Target, settings: Dfloat11Settings) -> Costs:
        """Bytes from the exponents' counts, exact; seconds of one row through every site from the target's rates."""
        taken = self.taken(settings, model.sites())
        sizes = {s.name: (w.form, float(w.nbytes)) for s in model.sites() for w in [model.weight(s.name)]}
        held = sum(size for _, size in sizes.values())
        for members in grouped(taken, settings.groups).values():
            found = {s.name: counts(bfloat16_bits(model.weight(s.name))[0]) for s in members if _float(model, s)}
            found = {name: count for name, count in found.items() if not count[POINTERS:].any()}
            if found:
                lengths = code_lengths(sum(found.values()), settings.max_code_bits)
                for name, count in found.items():
                    size = coded_bytes(count, lengths)
                    if size < 2 * count.sum():
                        sizes[name] = (CodedWeight.form, float(size))
        total = sum(size for _, size in sizes.values())
        rates = Rates(target, target.cores)
        seconds = sum(rates.product_s(*sizes[s.name], float(s.parameters), 1.0, total) for s in model.sites())
        return Costs(latency_s=seconds, size_bytes=model.size_bytes() - held + total)

    def options(self, model: Model, target: Target) -> Sequence[Mapping[str, Any]]:
        """As it is where nothing is lost by it, else with the cast: the search weighs the loss."""
        exact = all(bfloat16_bits(model.weight(site.name))[1] == 0 for site in model.sites() if _float(model, site))
        return ({},) if exact else ({"cast": "bf16"},)


def _float(model: Model, site: Site) -> bool:
    return model.weight(site.name).form in ("dense", CodedWeight.form)


def bfloat16_bits(weight: Weight) -> tuple[U16, float]:
    """A float weight rounded to bfloat16, (out, in), and the largest relative error of that; 0: nothing is lost."""
    if isinstance(weight, CodedWeight):
        return weight.bits(), 0.0
    stored = weight.tensors()["values"]
    if stored.dtype == np.uint16:
        return stored, 0.0
    value: F32 = np.asarray(stored, np.float32)
    bits = to_bf16(value)
    error = np.abs(from_bf16(bits) - value)
    if not error.any():
        return bits, 0.0
    lost = error > 0
    return bits, float((error[lost] / np.abs(value[lost])).max())


def counts(value: U16) -> npt.NDArray[np.uint64]:
    """How often each exponent occurs, (256,)."""
    from headway.kernels.cpu import _cpu

    return _cpu.dfloat11_count(np.ascontiguousarray(value))  # type: ignore[no-any-return]


def coded(value: U16, lengths: U8, *, group: str = "", resident: bool = False, verify: bool = True) -> CodedWeight:
    """The coded matrix; with `verify` decoded again and compared bit by bit."""
    weight = CodedWeight(value, lengths, group=group, resident=resident)
    if verify and not np.array_equal(weight.bits(), value):
        raise HeadwayError(f"{SYSTEM.slug}: {group}: decoding gives other bits than were coded", "report this")
    return weight


def coded_bytes(count: npt.NDArray[np.uint64], lengths: U8) -> int:
    """Bytes of a `CodedWeight` whose exponents occur `count` times."""
    code = -(-int((count * lengths).sum()) // 8)
    gaps = -(-5 * -(-code // 8) // 8)
    positions = 4 * (-(-code // BLOCK_BYTES) + 1)
    return int(count.sum()) + code + gaps + positions + len(pack_lengths(lengths))


def grouped(sites: Sequence[Site], by: str) -> dict[str, list[Site]]:
    """Group name -> its sites, in order: a transformer block's, an embedding's or a head's, or each site's own."""
    groups: list[tuple[str, list[Site]]] = []
    for site in sites:
        name = site.name if by == "module" else block_of(site)
        if groups and groups[-1][0] == name:
            groups[-1][1].append(site)
        else:
            groups.append((name, [site]))
    if by == "block":
        groups = _joined(groups)
    return dict(groups)


def block_of(site: Site) -> str:
    """The path up to the first number (`layers.3`); without one, all that stands alone shares the group `rest`."""
    if site.kind in ("embedding", "head"):
        return site.name
    found = re.match(r"(?:[^.]+\.)*?\d+(?=\.|$)", site.name)
    return found.group() if found else "rest"


def _joined(groups: list[tuple[str, list[Site]]]) -> list[tuple[str, list[Site]]]:
    """Neighbours together until each group has `LEAST_GROUP` weights; embeddings and heads stay alone."""

    def small(members: list[Site]) -> bool:
        return sum(site.parameters for site in members) < LEAST_GROUP

    joined: list[tuple[str, list[Site]]] = []
    for name, members in groups:
        before = joined[-1][1] if joined else []
        apart = not before or {members[0].kind, before[0].kind} & {"embedding", "head"}
        last = (name, members) == groups[-1]  # a small one at the end has no next to join
        if not apart and (small(before) or (last and small(members))):
            first = joined.pop()[0].split("..")[0]
            joined.append((f"{first}..{name}", before + members))
        else:
            joined.append((name, members))
    return joined
