"""Training by windows against autograd on whole sequences: equal for every way of cutting, and rest at any point."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from random_stacks import random_stack, warm

from headway.core.errors import BadInput
from headway.training import plain
from headway.training.adamw import AdamWSettings
from headway.training.examples import Example, prepare
from headway.training.lora import Adapters, LoraSettings
from headway.training.plain import gradients, relative_error, saved_bytes
from headway.training.position import Backward, Course, Position
from headway.training.stack import LINEARS
from headway.training.token_trainer import Diverged, TokenTrainer

TARGETS = [name.rpartition(".")[2] for name in LINEARS]


def sequences(count: int, seed: int, longest: int = 40) -> list[Example]:
    random = np.random.default_rng(seed)
    made = []
    for n in random.integers(2, longest + 1, count):
        learn = random.random(n) < 0.8
        learn[-1] = True
        made.append(Example.of(random.integers(0, 50, n), learn))
    return made


def run(trainer: TokenTrainer, window: object, until: int) -> None:
    """window: a size, or a generator to draw each one from."""
    while trainer.position.sequences < until:
        left = trainer.position.left
        size = int(window.integers(1, left + 1)) if isinstance(window, np.random.Generator) else min(window, left)  # type: ignore[call-overload,type-var]
        trainer.run(trainer.position.piece(size))


@given(
    seed=st.integers(0, 2**20),
    window=st.sampled_from([1, 3, 17, 1000, None]),
    targets=st.lists(st.sampled_from(TARGETS), min_size=1, max_size=7, unique=True),
    remat=st.sampled_from(["light", "mlp", "none"]),
    sliding=st.sampled_from([0, 5]),
    bias=st.booleans(),
    double=st.booleans(),
)
@settings(max_examples=15, deadline=None)
def test_gradients_are_those_of_whole_sequences(
    seed: int, window: int | None, targets: list[str], remat: str, sliding: int, bias: bool, double: bool
) -> None:
    dtype = torch.float64 if double else torch.float32
    stack = random_stack(seed, dtype, window=sliding, bias=bias)
    adapters = warm(Adapters.fresh(stack, LoraSettings(4, 8.0, tuple(targets)), seed))
    examples = sequences(2, seed, 16)
    trainer = TokenTrainer(stack, adapters, examples, accum=3, steps=1, remat=remat)  # type: ignore[arg-type]
    run(trainer, np.random.default_rng(seed) if window is None else window, 2)
    wanted, _ = gradients(stack, adapters, examples)
    ours = {site: type(p)(p.a * 3 / 2, p.b * 3 / 2) for site, p in trainer.gradients.items()}
    assert relative_error(ours, wanted) <= (1e-12 if double else 1e-5)
    assert trainer.version == 0 and trainer.held_bytes == 0


@given(seed=st.integers(0, 2**20), layer=st.integers(0, 2), remat=st.sampled_from(["light", "mlp", "none"]))
@settings(max_examples=15, deadline=None)
def test_nothing_is_kept_or_done_below_the_lowest_adapter(seed: int, layer: int, remat: str) -> None:
    stack = random_stack(seed, torch.float64)
    every = warm(Adapters.fresh(stack, LoraSettings(4, 8.0, ("down_proj",)), seed))
    adapters = Adapters(every.settings, {site: pair for site, pair in every.pairs.items() if site[0] >= layer})
    examples = sequences(1, seed)
    trainer = TokenTrainer(stack, adapters, examples, accum=2, remat=remat)  # type: ignore[arg-type]
    run(trainer, np.random.default_rng(seed), 1)
    wanted, loss = gradients(stack, adapters, examples)
    assert relative_error({s: type(p)(p.a * 2, p.b * 2) for s, p in trainer.gradients.items()}, wanted) <= 1e-12
    assert trainer.losses == [pytest.approx(loss, rel=1e-12)]
    length, s, itemsize = len(examples[0]), stack.sizes, 8
    kv, mlp = 2 * s.kv_size, (2 * s.ffn if remat != "mlp" else s.d_model) + (s.ffn if remat == "none" else 0)
    through = s.d_model + s.q_size + s.heads + (s.d_model if remat != "mlp" else 0)
    kept = 3 * kv + (3 - layer) * mlp + (2 - layer) * through
    assert trainer.peak_bytes == length * itemsize * (kept + s.d_model + kv)


def test_training_is_plain_training_step_after_step() -> None:
    stack = random_stack(3, torch.float64)
    adapters = Adapters.fresh(stack, LoraSettings(4, 8.0, ("down_proj", "q_proj")), 3)
    examples = sequences(5, 3)
    pairs = plain.leaves(adapters)
    optimiser = torch.optim.AdamW([t for pair in pairs.values() for t in pair], lr=1e-2, weight_decay=0.1)
    losses = []
    for step in range(8):
        optimiser.zero_grad()
        for at in range(2):
            loss = plain.loss(stack, adapters.settings.scale, pairs, examples[(2 * step + at) % 5])
            losses.append(float(loss.detach()))
            (loss / 2).backward()  # type: ignore[no-untyped-call]
        optimiser.step()
    settings = AdamWSettings(lr=1e-2, weight_decay=0.1)
    trainer = TokenTrainer(stack, adapters, examples, accum=2, steps=8, optimiser=settings)
    run(trainer, np.random.default_rng(0), 16)
    assert trainer.losses == pytest.approx(losses, rel=1e-10)
    assert trainer.position.finished and trainer.version == 8
    assert losses[-1] < losses[0]
    with pytest.raises(ValueError, match="1 tokens of 0"):
        trainer.position.piece(1)


@given(seed=st.integers(0, 2**20), at=st.integers(0, 60))
@settings(max_examples=10, deadline=None)
def test_a_sequence_dropped_anywhere_leaves_nothing_behind(seed: int, at: int) -> None:
    stack = random_stack(seed, torch.float64, layers=2)
    adapters = warm(Adapters.fresh(stack, LoraSettings(2, 2.0), seed))
    examples = sequences(2, seed, 20)
    whole, broken = (TokenTrainer(stack, adapters.copy(), examples, accum=2, steps=2) for _ in range(2))
    run(whole, 1000, 4)
    random = np.random.default_rng(seed)
    for _ in range(at):
        if broken.position.finished:
            break
        broken.run(broken.position.piece(int(random.integers(1, broken.position.left + 1))))
    broken.drop()
    assert broken.held_bytes == 0 and not broken.position.begun
    run(broken, 1000, 4)
    assert broken.losses == pytest.approx(whole.losses, rel=1e-12)
    assert relative_error(broken.adapters.pairs, whole.adapters.pairs) <= 1e-9


def test_a_loss_that_is_no_number_stops_the_job_and_leaves_the_adapters() -> None:
    stack = random_stack(0, torch.float32)
    adapters = Adapters.fresh(stack, LoraSettings(2, 2.0))
    before = adapters.copy()
    trainer = TokenTrainer(stack, adapters, sequences(1, 0))
    stack.final_norm.fill_(float("nan"))
    with pytest.raises(Diverged, match="lower learning rate"):
        trainer.run(trainer.position.piece(1))
    assert trainer.held_bytes == 0 and trainer.version == 0
    assert all(torch.equal(adapters.pairs[site].a, pair.a) for site, pair in before.pairs.items())


def test_pieces_come_in_their_order_only() -> None:
    position = Position(Course.of([5], layers=2))
    forward = position.piece(5)
    after = position.after(forward)
    assert after.piece(2) == Backward(1, 3, 5) and after.left == 5
    with pytest.raises(ValueError, match="not next"):
        after.after(Backward(1, 0, 2))  # front to back would miss what later windows add
    with pytest.raises(ValueError, match="tokens of"):
        position.piece(6)


@given(
    lengths=st.lists(st.integers(2, 9), min_size=1, max_size=4),
    layers=st.integers(1, 4),
    accum=st.integers(1, 3),
    seed=st.integers(0, 2**20),
)
@settings(max_examples=40, deadline=None)
def test_progress_rises_to_all_tokens(lengths: list[int], layers: int, accum: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    position, before = Position(Course.of(lengths, layers, accum=accum, steps=2)), 0.0
    while not position.finished:
        position = position.after(position.piece(int(random.integers(1, position.left + 1))))
        assert position.tokens > before
        before = position.tokens
    assert position.tokens == sum(lengths[at % len(lengths)] for at in range(2 * accum))


def test_examples_that_teach_nothing_are_left_out_with_a_warning() -> None:
    good = Example.of([1, 2, 3])
    kept, warnings = prepare(
        [Example.of([]), Example.of([4]), Example.of([1, 2], [True, False]), good], vocab=10, max_seq=8
    )
    assert [part.tokens.tolist() for part in kept] == [[1, 2, 3]] and len(warnings) == 3
    assert "no token of it is to be learnt" in warnings[2]


def test_long_examples_are_split_or_refused() -> None:
    long = Example.of(list(range(10)))
    kept, _ = prepare([long], vocab=10, max_seq=4)
    assert [part.tokens.tolist() for part in kept] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    with pytest.raises(BadInput, match="10 tokens; give at most 4"):
        prepare([long], vocab=10, max_seq=4, too_long="error")


@pytest.mark.parametrize(
    ("examples", "vocab", "max_seq", "message"),
    [
        ([Example.of([1])], 10, 8, "no example is left"),
        ([Example.of([1, 10])], 10, 8, "outside the vocabulary"),
        ([Example.of([1, 2])], 10, 1, "max_seq=1"),
    ],
)
def test_bad_examples(examples: list[Example], vocab: int, max_seq: int, message: str) -> None:
    with pytest.raises(BadInput, match=message):
        prepare(examples, vocab, max_seq)


def test_bad_courses_and_rates() -> None:
    with pytest.raises(BadInput, match="at least 2 tokens"):
        Course.of([1], 2)
    with pytest.raises(BadInput, match="at least one of each"):
        Course.of([2], 2, steps=0)
    with pytest.raises(BadInput, match="positive number"):
        AdamWSettings(lr=float("nan"))
    with pytest.raises(BadInput, match="marks for 2 tokens"):
        Example.of([1, 2], [True])


def test_autograd_keeps_more_than_token_level_training() -> None:
    stack, example = random_stack(0, torch.float32), Example.of(list(range(40)))
    adapters = Adapters.fresh(stack, LoraSettings(2, 2.0))
    held = {}
    for remat in ("light", "mlp", "none"):
        trainer = TokenTrainer(stack, adapters, [example], remat=remat)  # type: ignore[arg-type]
        run(trainer, 8, 1)
        held[remat] = trainer.peak_bytes
    assert held["mlp"] < held["light"] < held["none"] < saved_bytes(stack, adapters, example)
    assert saved_bytes(stack, adapters, example, checkpointed=True) < saved_bytes(stack, adapters, example)
