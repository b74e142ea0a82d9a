"""Every scheduler at its edges: what never fits, what outgrows the pages, famine, long queues; recipes carry them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from serving_traces import SCHEDULERS, run, scheduler

import headway
from headway.core.errors import BadInput
from headway.hardware.iteration_time import IterationTime
from headway.llm.language_model import LanguageModel
from headway.llm.saved import load_saved
from headway.serving.schedulers.base import Limits
from headway.serving.schedulers.sarathi_serve import SATURATING, saturating
from headway.serving.simulator import Setting
from headway.serving.state import LOOK_AHEAD
from headway.serving.trace import Trace


@pytest.mark.parametrize("slug", SCHEDULERS)
def test_a_request_that_can_never_fit_is_refused_and_blocks_nobody(slug: str) -> None:
    trace = Trace(np.zeros(3), np.array([10, 1000, 10]), np.array([3, 3, 3]))
    outcome = run(trace, scheduler(slug), Setting(pages=40, page_tokens=4, limits=Limits(max_seqs=4)))
    assert outcome.rejected == 1 and np.isnan(outcome.finish[1])
    assert not np.isnan(outcome.finish[[0, 2]]).any()


@pytest.mark.parametrize("slug", SCHEDULERS)
def test_a_request_alone_that_outgrows_the_pages_ends_with_what_it_has(slug: str) -> None:
    trace = Trace(np.zeros(2), np.array([30, 8]), np.array([60, 4]))
    outcome = run(trace, scheduler(slug), Setting(pages=10, page_tokens=4, limits=Limits(max_seqs=4)))
    assert outcome.unfinished == 0
    assert outcome.generated[1] == 4
    assert outcome.rejected == 1 or 1 <= outcome.generated[0] < 60


@pytest.mark.parametrize("slug", SCHEDULERS)
def test_famine_preempts_and_still_finishes(slug: str) -> None:
    random = np.random.default_rng(1)
    trace = Trace(np.zeros(60), random.integers(1, 81, 60), random.integers(20, 41, 60))
    outcome = run(trace, scheduler(slug), Setting(pages=37, page_tokens=4, limits=Limits(max_seqs=32)))
    assert outcome.unfinished == 0 and (outcome.generated == trace.output).all()


@pytest.mark.parametrize("slug", SCHEDULERS)
def test_a_model_carries_its_scheduler_and_an_artifact_keeps_it(
    slug: str, tiny_served: LanguageModel, tmp_path: Path
) -> None:
    served = headway.apply(f"int8 + {slug}", tiny_served)
    assert served.scheduler == (slug, {})
    served.save(tmp_path / "saved")
    assert load_saved(tmp_path / "saved").scheduler == (slug, {})


def test_two_schedulers_clash(tiny_served: LanguageModel) -> None:
    with pytest.raises(BadInput, match="both take slot 'scheduler'"):
        headway.apply("sarathi-serve + vllm-like", tiny_served)


def test_a_prompt_from_the_back_of_the_queue_takes_what_the_tree_has_by_then() -> None:
    """Nexus serves the shortest first: one beyond those whose prefix is looked up again before each decision."""
    count = 3 * LOOK_AHEAD
    prompt = np.full(count, 60)
    prompt[0], prompt[-1] = 20, 22  # the first gives its pages to the tree while the last one waits
    keys = [[0, 1, 2, 3, 4], *([100 * at] for at in range(1, count - 1)), [0, 1, 2, 3, 4]]
    outcome = run(
        Trace(np.zeros(count), prompt, np.full(count, 3), keys),
        scheduler("nexus", max_prefill_tokens=20),
        Setting(pages=200, page_tokens=4, limits=Limits(max_seqs=4), prefix=True),
    )
    assert outcome.unfinished == 0 and (outcome.generated == 3).all()


@pytest.mark.parametrize(
    ("fixed", "per_token", "expected"),
    [
        (0.0, 1e-3, 64),  # arithmetic from the first token on: more tokens would only make decodes wait
        (10e-3, 1e-3, 128),  # 128 / 138 of a token a millisecond, of 512 / 522 at best
        (1.0, 1e-6, 512),  # a pass costs the same however much is in it
    ],
)
def test_without_a_limit_prompts_are_read_in_the_fewest_tokens_at_nearly_the_best_rate(
    fixed: float, per_token: float, expected: int
) -> None:
    cost = IterationTime((0.0, 1.0), (fixed, fixed + per_token))
    assert saturating(cost) == expected
    plain = next(n for n in SATURATING if n / (fixed + n * per_token) >= 0.9 * 512 / (fixed + 512 * per_token))
    assert plain == expected
