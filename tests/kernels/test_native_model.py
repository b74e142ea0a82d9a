"""The whole-model step: equal to the readable network, and the same bits however a sequence is fed."""

from __future__ import annotations

import threading

import native_models as models
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headway.core.errors import BadInput
from headway.kernels import cpu
from headway.llm.native import NativeRuntime
from headway.llm.runtime import KV_TYPES
from headway.llm.weights.dense import DenseWeight

TOKENS = np.random.default_rng(1).integers(0, 97, 1500)


def runtime(name: str, form: str = "dense", **options):
    arch = models.architecture(name)
    weights, vectors = models.random_parts(arch, form)
    return NativeRuntime(arch, weights, vectors, **options)


INT4 = 0.5
"""Bar of int4 keys and values, whose steps are 17 times those of int8."""


def relative(got, expected) -> float:
    return float(np.abs(got - expected).max() / np.abs(expected).max())


@pytest.mark.parametrize("name", models.FAMILIES)
def test_logits_equal_the_readable_network(name):
    arch = models.architecture(name)
    weights, vectors = models.random_parts(arch)
    tokens = TOKENS[:1200]
    expected = models.reference_logits(arch, weights, vectors, tokens)
    for kv, bar in (("f32", 2e-5), ("f16", 3e-3), ("int8", 5e-2), ("k8v4", INT4), ("int4", INT4)):
        native = NativeRuntime(arch, weights, vectors, kv=kv)
        assert relative(native.begin(1200).feed(tokens, every=True), expected) < bar


@pytest.mark.parametrize("head_dim", [2, 8, 16, 40, 64, 128, 136, 256])
def test_every_head_dimension_works(head_dim):
    arch = models.architecture("qwen3", head_dim=head_dim, query_scale=head_dim**-0.5)
    weights, vectors = models.random_parts(arch)
    tokens = TOKENS[:90]
    expected = models.reference_logits(arch, weights, vectors, tokens)
    for kv, bar in (("f32", 2e-5), ("int8", 5e-2), ("k8v4", INT4), ("int4", INT4)):
        native = NativeRuntime(arch, weights, vectors, kv=kv)
        assert relative(native.begin(90).feed(tokens, every=True), expected) < bar


@pytest.mark.parametrize("heads", [(1, 1), (4, 4), (9, 3), (14, 2), (5, 1), (16, 1)])
def test_every_number_of_heads_per_kv_head_works(heads):
    arch = models.architecture("llama", heads=heads[0], kv_heads=heads[1])
    weights, vectors = models.random_parts(arch)
    tokens = TOKENS[:150]
    expected = models.reference_logits(arch, weights, vectors, tokens)
    for kv, bar in (("f32", 2e-5), ("int8", 5e-2), ("k8v4", INT4), ("int4", INT4)):
        session = NativeRuntime(arch, weights, vectors, kv=kv).begin(150)
        logits = np.concatenate(
            [session.feed(tokens[:140], every=True), *(session.feed(t[None], True) for t in tokens[140:])]
        )
        assert relative(logits, expected) < bar


@pytest.mark.parametrize("form", ["int8", "int4"])
def test_exact_mode_multiplies_by_the_exact_dequantised_weights(form):
    arch = models.architecture("llama")
    weights, vectors = models.random_parts(arch, form)
    expected = models.reference_logits(arch, weights, vectors, TOKENS[:100])
    exact = NativeRuntime(arch, weights, vectors, kv="f32", exact=True)
    assert relative(exact.begin(100).feed(TOKENS[:100], every=True), expected) < 2e-5
    fast = NativeRuntime(arch, weights, vectors, kv="f32")
    assert 2e-5 < relative(fast.begin(100).feed(TOKENS[:100], every=True), expected) < 5e-2


@pytest.mark.parametrize("name", ["llama", "gemma3", "gemma2", "odd"])
@pytest.mark.parametrize("form", ["dense", "int4"])
@pytest.mark.parametrize("kv", KV_TYPES)
def test_a_sequence_gives_the_same_bits_however_it_is_cut_and_threaded(name, form, kv):
    native = runtime(name, form, kv=kv)
    whole = native.begin(1500).feed(TOKENS[:1300], every=True)
    for threads in (1, 2, 3):
        native.threads = threads
        session = native.begin(1500)
        at, parts = 0, []
        for size in (1, 1, 62, 1, 7, 8, 17, 511, 2, 600, 1, 1, 1, 15, 16, 33, 20, 3):
            parts.append(session.feed(TOKENS[at : at + size], every=True))
            at += size
        assert at == 1300
        assert np.array_equal(np.concatenate(parts), whole)


@pytest.mark.parametrize("kv", KV_TYPES)
def test_a_sequence_that_begins_with_shared_pages_gives_the_bits_of_its_own(kv):
    native = runtime("gemma3", "int8", kv=kv)
    first = native.begin(400)
    first.feed(TOKENS[:200])
    pages = [first.share(index) for index in range(3)]
    second = native.begin(400)
    second.adopt(pages)
    assert second.length == 192
    whole = native.begin(400)
    expected = whole.feed(TOKENS[:300], every=True)
    assert np.array_equal(second.feed(TOKENS[192:300], every=True), expected[192:])
    # What one does after the shared pages, or within a copy of them, is not seen by the other.
    second.rewind(100)
    assert np.array_equal(second.feed(TOKENS[100:150], every=True), expected[100:150])
    second.feed(TOKENS[:40])
    assert np.array_equal(first.feed(TOKENS[200:300], every=True), expected[200:])
    with pytest.raises(ValueError, match="not full"):
        second.share(2)
    with pytest.raises(ValueError, match="empty sequence"):
        first.adopt(pages)
    with pytest.raises(ValueError, match="another model"):
        runtime("gemma3", "int8", kv=kv).begin().adopt(pages)


def test_only_the_logits_that_are_wanted_are_made():
    native = runtime("llama", "int8")
    pieces = [TOKENS[:5], TOKENS[:9], TOKENS[3:4]]
    every = native.step([native.begin() for _ in pieces], pieces)
    some = native.step([native.begin() for _ in pieces], pieces, wanted=[True, False, True])
    assert np.array_equal(some, every[[0, 2]])
    assert native.step([native.begin()], pieces[:1], wanted=[False]).shape == (0, every.shape[1])


@pytest.mark.parametrize("form", ["dense", "int8"])
def test_a_batch_gives_each_sequence_the_bits_it_has_alone(form):
    native = runtime("gemma3", form)
    lengths = (1, 700, 3, 64, 1, 130)
    pieces = [TOKENS[i * 11 : i * 11 + n] for i, n in enumerate(lengths)]
    sessions = [native.begin(800) for _ in lengths]
    together = [native.step(sessions, pieces)]
    ones = [np.array([5 + i]) for i in range(len(lengths))]
    together.append(native.step(sessions, ones))
    every = native.step(sessions, [TOKENS[:4], *ones[1:]], every=True)
    for i, piece in enumerate(pieces):
        alone = native.begin(800)
        assert np.array_equal(alone.feed(piece), together[0][i])
        assert np.array_equal(alone.feed(ones[i]), together[1][i])
        if i == 0:
            assert np.array_equal(alone.feed(TOKENS[:4], every=True), every[:4])
        assert sessions[i].length == len(piece) + 1 + (4 if i == 0 else 1)


@pytest.mark.parametrize("name", ["llama", "gemma3"])
@pytest.mark.parametrize(
    ("form", "kv"),
    [("dense", "f16"), ("int4", "f16"), ("int8", "f16"), ("int8", "int8"), ("int8", "k8v4"), ("int8", "int4")],
)
def test_every_level_gives_the_same_bits(name, form, kv):
    native = runtime(name, form, kv=kv)
    logits = []
    for level in cpu.levels():
        with cpu.at_level(level):
            session = native.begin(100)
            logits.append(np.concatenate([session.feed(TOKENS[:70], every=True), session.feed(TOKENS[70:72], True)]))
    assert all(np.array_equal(other, logits[0]) for other in logits)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 90), st.integers(0, 120)), min_size=1, max_size=8))
def test_rewinding_and_feeding_again_is_as_if_nothing_happened(moves):
    native = runtime("mistral", "int4", kv="f16")
    session = native.begin(1000)
    history: list[int] = []
    random = np.random.default_rng(len(moves))
    for feed, back in moves:
        tokens = random.integers(0, 97, feed)
        session.feed(tokens)
        history += tokens.tolist()
        history = history[: max(0, len(history) - back)]
        session.rewind(len(history))
        assert session.length == len(history)
    fresh = native.begin(1000)
    history.append(3)
    expected = fresh.feed(np.array(history))
    assert np.array_equal(session.feed(np.array([3])), expected)
    assert session.nbytes == fresh.nbytes


@pytest.mark.parametrize(
    ("kv", "per_head"),
    [
        ("f16", 64 * (8 + 16) * 2),
        ("int8", 64 * (8 + 16) + 2 * 64 * 4),
        ("int4", 64 * (4 + 16) + 2 * 64 * 4),
        ("k8v4", 64 * (8 + 16) + 2 * 64 * 4),
    ],
)
def test_pages_are_counted_and_given_back(kv, per_head):
    native = runtime("llama", kv=kv)
    before = cpu.memory()["kv"]["current"]
    session = native.begin(1000)
    session.feed(TOKENS[:130])
    assert session.nbytes == 3 * 2 * 2 * per_head
    assert cpu.memory()["kv"]["current"] >= before + session.nbytes
    session.rewind(64)
    assert session.nbytes == 2 * 2 * per_head
    del session
    assert cpu.memory()["kv"]["current"] == before


def test_trimming_frees_what_no_window_reaches_and_changes_no_bit():
    native = runtime("gemma3")
    kept, trimmed = native.begin(1500), native.begin(1500)
    for at in range(0, 1400, 100):
        piece = TOKENS[at : at + 100]
        assert np.array_equal(kept.feed(piece), trimmed.feed(piece))
        trimmed.trim()
    assert trimmed.nbytes < 0.6 * kept.nbytes
    trimmed.rewind(1398)
    kept.rewind(1398)
    assert np.array_equal(kept.feed(TOKENS[:3]), trimmed.feed(TOKENS[:3]))
    with pytest.raises(BadInput, match="cannot rewind"):
        trimmed.rewind(700)
    trimmed.rewind(0)
    assert np.array_equal(trimmed.feed(TOKENS[:9]), native.begin(9).feed(TOKENS[:9]))


def test_running_out_of_memory_at_any_allocation_leaves_every_sequence_as_it_was():
    native = runtime("gemma3", "int4")
    sessions = [native.begin(1000), native.begin(1000)]
    native.step(sessions, [TOKENS[:60], TOKENS[:3]])
    pieces = [TOKENS[60:700], TOKENS[3:5]]
    expected = native.step([a := native.begin(1000), b := native.begin(1000)], [TOKENS[:700], TOKENS[:5]])
    del a, b
    kv = cpu.memory()["kv"]["current"]
    fails = 0
    for k in range(1, 400):
        fresh = runtime("gemma3", "int4") if k < 40 else native
        fed = [fresh.begin(1000), fresh.begin(1000)]
        fresh.step(fed, [TOKENS[:60], TOKENS[:3]])
        cpu.fail_allocation(k)
        try:
            logits = fresh.step(fed, pieces)
        except MemoryError:
            fails += 1
            assert [s.length for s in fed] == [60, 3]
            cpu.fail_allocation(0)
            logits = fresh.step(fed, pieces)
        finally:
            cpu.fail_allocation(0)
        assert np.array_equal(logits, expected)
        del fed
        assert cpu.memory()["kv"]["current"] == kv
        if k >= 40:
            break
    assert fails >= 25


def test_several_threads_may_step_one_runtime():
    native = runtime("llama", "int8")
    expected = native.begin(300).feed(TOKENS[:300], every=True)
    wrong = []

    def work() -> None:
        session = native.begin(300)
        got = [session.feed(TOKENS[at : at + 30], every=True) for at in range(0, 300, 30)]
        if not np.array_equal(np.concatenate(got), expected):
            wrong.append(1)

    workers = [threading.Thread(target=work) for _ in range(5)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not wrong


@pytest.mark.parametrize("kv", KV_TYPES)
@pytest.mark.parametrize("site", ["q", "k", "v"])
def test_keys_and_values_that_are_no_numbers_reach_the_logits(kv, site):
    arch = models.architecture("llama")
    weights, vectors = models.random_parts(arch)
    matrix = weights[f"layers.0.attention.{site}"].dequantize().copy()
    matrix[1, 0] = np.inf
    weights[f"layers.0.attention.{site}"] = DenseWeight(matrix)
    logits = NativeRuntime(arch, weights, vectors, kv=kv).begin(80).feed(TOKENS[:80], every=True)
    assert np.isnan(logits[-1]).all()


def test_nan_weights_reach_the_logits():
    arch = models.architecture("llama")
    weights, vectors = models.random_parts(arch, "int8")
    vectors["layers.1.mlp_norm.weight"] = vectors["layers.1.mlp_norm.weight"].copy()
    vectors["layers.1.mlp_norm.weight"][3] = np.nan
    assert np.isnan(NativeRuntime(arch, weights, vectors).begin(4).feed(TOKENS[:4])).all()


def int32(*values):
    return np.array(values, np.int32)


@pytest.mark.parametrize("form", ["dense", "int4"])
def test_layer_by_layer_gives_the_bits_of_the_whole_step(form):
    native = runtime("gemma3", form)
    expected = [native.begin(200) for _ in range(2)]
    whole = native.step(expected, [TOKENS[:150], TOKENS[:3]], every=True)
    sessions = [native.begin(200) for _ in range(2)]
    batch = native.batch()
    tokens = np.concatenate([TOKENS[:150], TOKENS[:3]]).astype(np.int32)
    batch.begin([session.sequence for session in sessions], tokens, int32(0, 150, 153))
    for layer in range(2):
        assert batch.layer == layer
        batch.project()
        batch.attend()
        batch.mix()
    assert np.array_equal(batch.finish(np.arange(153, dtype=np.int32)), whole)
    assert [session.length for session in sessions] == [150, 3]
    ones = [np.array([7]), np.array([8])]
    assert np.array_equal(native.step(sessions, ones), native.step(expected, ones))


def test_attention_can_be_done_by_somebody_else():
    native = runtime("llama", kv="f32")
    arch = native.architecture
    tokens = TOKENS[:40].astype(np.int32)
    expected = native.begin(40).feed(tokens, every=True)
    batch = native.batch()
    batch.begin_at(tokens, np.arange(40, dtype=np.int32))
    for _ in arch.layers:
        q, k, v = (a.reshape(40, -1, arch.head_dim).astype(np.float64) for a in batch.project())
        k, v = (a.repeat(arch.heads // arch.kv_heads, axis=1) for a in (k, v))
        scores = np.einsum("ihd,jhd->hij", q, k) * arch.query_scale
        scores[:, np.triu(np.ones((40, 40), bool), 1)] = -np.inf
        weights = np.exp(scores - scores.max(axis=2, keepdims=True))
        out = np.einsum("hij,jhd->ihd", weights / weights.sum(axis=2, keepdims=True), v)
        batch.attended(out.reshape(40, -1).astype(np.float32))
        batch.mix()
    assert relative(batch.finish(np.arange(40, dtype=np.int32)), expected) < 1e-5


def coded(x, axis=-1):
    """What int8 keeps of vectors along an axis: codes -127..127 times largest / 127."""
    largest = np.abs(x).max(axis=axis, keepdims=True).astype(np.float32)
    inverse = np.float32(127) / np.where(largest > 0, largest, np.float32(1))
    return np.rint(x.astype(np.float32) * inverse) * (largest / np.float32(127)).astype(np.float64)


def nibbles(x):
    """What int4 keeps of vectors along the last axis: odd codes -15..15 times largest / 15."""
    largest = np.abs(x).max(axis=-1, keepdims=True)
    inverse = (np.float32(7.5) / largest).astype(np.float64)
    codes = 2 * np.rint((x * inverse + 7.5).astype(np.float32)) - 15
    return codes * (largest / np.float32(15)).astype(np.float64)


def turned(x):
    """float32 vectors along the last axis through Walsh-Hadamard transforms of their dimension's power of two."""
    dim = x.shape[-1]
    block = dim & -dim
    y = x.astype(np.float32) * np.float32(1 / np.sqrt(np.float32(block)))
    half = 1
    while half < block:
        pairs = y.reshape(*x.shape[:-1], -1, 2, half)
        y = np.stack([pairs[..., 0, :] + pairs[..., 1, :], pairs[..., 0, :] - pairs[..., 1, :]], axis=-2)
        half *= 2
    return y.reshape(x.shape)


@pytest.mark.parametrize(("kv", "most"), [("int8", 127), ("k8v4", 15), ("int4", 15)])
@pytest.mark.parametrize("name", ["llama", "odd", "qwen3"])
def test_integer_attention_rounds_what_it_says_and_nothing_else(name, kv, most):
    """Queries, keys and values by their vector; the weights of 32 keys, times the values' scales, together."""
    count = 70  # a page and a part of the next
    native = runtime(name, kv=kv)
    arch = native.architecture
    tokens = TOKENS[:count].astype(np.int32)
    found = native.begin(count).feed(tokens, every=True)
    plain = NativeRuntime(arch, *models.random_parts(arch), kv="f32").begin(count).feed(tokens, every=True)
    batch = native.batch()
    batch.begin_at(tokens, np.arange(count, dtype=np.int32))
    turn_key, kept_key = (turned, nibbles) if kv == "int4" else (np.asarray, coded)
    turn, kept = (turned, nibbles) if most == 15 else (np.asarray, coded)
    for layer in arch.layers:
        q, k, v = (a.reshape(count, -1, arch.head_dim) for a in batch.project())
        q, k, v = turn_key(q), turn_key(k), turn(v)
        scales = np.abs(v).max(axis=2).astype(np.float64) / most
        group = arch.heads // arch.kv_heads
        q, k, codes = coded(q), kept_key(k).repeat(group, axis=1), (kept(v) / scales[..., None]).repeat(group, axis=1)
        scores = np.einsum("ihd,jhd->hij", q, k) * arch.query_scale
        distance = np.arange(count)[:, None] - np.arange(count)
        scores[:, (distance < 0) | ((layer.window > 0) & (distance >= (layer.window or 1)))] = -np.inf
        if arch.attention_softcap:
            scores = arch.attention_softcap * np.tanh(scores / arch.attention_softcap)
        weights = np.exp(scores - scores.max(axis=2, keepdims=True))
        out = np.zeros((count, arch.heads, arch.head_dim))
        for begin in range(0, count, 32):
            keys = slice(begin, begin + 32)
            weighted = coded(weights[:, :, keys] * scales[keys].repeat(group, axis=1).T[:, None, :])
            out += np.einsum("hij,jhd->ihd", weighted, codes[keys])
        out /= weights.sum(axis=2).T[:, :, None]
        batch.attended(turn(out).reshape(count, -1).astype(np.float32))
        batch.mix()
    expected = batch.finish(np.arange(count, dtype=np.int32))
    apart = np.sort(np.abs(found - expected).max(axis=1)) / np.abs(expected).max()
    assert apart[-4] < 1e-5 and apart[-1] < 5e-3  # but for a row or two with a weight that was next to a tie
    assert relative(found, plain) > 4 * apart[-1]


def test_batches_refuse_calls_out_of_turn():
    native = runtime("llama")
    session, batch = native.begin(10), native.batch()
    for early in (batch.project, batch.attend, batch.mix, lambda: batch.finish(int32(0))):
        with pytest.raises(ValueError, match=r"out of turn|after its last layer"):
            early()
    with pytest.raises(ValueError, match="1 to 512 rows"):
        batch.begin_at(np.zeros(513, np.int32), np.zeros(513, np.int32))
    with pytest.raises(ValueError, match="position lies outside"):
        batch.begin_at(int32(1), int32(-1))
    batch.begin_at(int32(1, 2), int32(0, 1))
    batch.project()
    with pytest.raises(ValueError, match="no sequences"):
        batch.attend()
    with pytest.raises(ValueError, match="another shape"):
        batch.attended(np.zeros((1, 48), np.float32))
    batch.begin([session.sequence], int32(5, 6), int32(0, 2))
    batch.project()
    session.rewind(0)
    batch.attend()
    batch.mix()
    session.feed(TOKENS[:3])
    batch.project()
    with pytest.raises(ValueError, match="while its batch was open"):
        batch.attend()


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda n, s: n.step([s], [np.array([97])]), "outside the vocabulary"),
        (lambda n, s: n.step([s], [np.array([-1])]), "outside the vocabulary"),
        (lambda n, s: n.step([s], [np.array([], np.int64)]), "offsets must rise"),
        (lambda n, s: n.step([s, s], [np.array([1]), np.array([1])]), "twice"),
        (lambda n, s: runtime("llama").step([s], [np.array([1])]), "another model"),
    ],
)
def test_steps_that_make_no_sense_are_refused(call, says):
    native = runtime("llama")
    session = native.begin(10)
    with pytest.raises(ValueError, match=says):
        call(native, session)
    assert session.length == 0


def test_a_weight_of_another_shape_is_refused_by_name():
    arch = models.architecture("llama")
    weights, vectors = models.random_parts(arch)
    weights["layers.0.mlp.up"] = weights["layers.0.mlp.down"]
    with pytest.raises(ValueError, match="up is 48x80, not 80x48"):
        NativeRuntime(arch, weights, vectors)
