"""From a file of texts to adapters in a folder, while requests are served."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from serving_traces import COST, scheduler

from headway.core.errors import BadInput
from headway.llm.language_model import LanguageModel
from headway.llm.trainable import stack_of
from headway.serving.engine import Engine
from headway.serving.finetune import JobSettings, job, read
from headway.serving.schedulers.base import SLO
from headway.training.lora import Adapters, LoraSettings

LINES = [{"text": "the thing of the an and"}, {"prompt": "the thing", "completion": " of the"}, {"text": ""}]


def written(folder: Path, *lines: object) -> Path:
    path = folder / "data.jsonl"
    path.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines))
    return path


def test_a_prompt_is_read_and_its_completion_learnt(tiny_served: LanguageModel, tmp_path: Path) -> None:
    text, pair, _ = read(tiny_served, written(tmp_path, *LINES))
    assert text.learn.all()
    prompt = len(tiny_served.encode("the thing"))
    assert pair.learn.tolist() == [False] * prompt + [True] * (len(pair) - prompt)
    end = tiny_served.architecture.eos[0]
    assert text.tokens[-1] == pair.tokens[-1] == end


def test_adapters_lie_in_the_folder_when_the_job_is_over(tiny_served: LanguageModel, tmp_path: Path) -> None:
    settings = JobSettings(LoraSettings(4, 8.0, ("down_proj", "v_proj")), steps=2, accum=1)
    tuning = job(tiny_served, written(tmp_path, *LINES), tmp_path / "adapter", settings)
    engine = Engine(tiny_served, scheduler("flexllm"), pages=40, cost=COST, slo=SLO(tbt_s=0.2), tuning=tuning)
    while engine.active:
        engine.step()
    version, last = tuning.published
    assert version == 2 and len(tuning.trainer.losses) == 2
    found = Adapters.load(tmp_path / "adapter", stack_of(tiny_served))
    assert all((found.pairs[site].b == pair.b).all() for site, pair in last.pairs.items())


def test_a_limit_that_no_window_holds_is_said(tiny_served: LanguageModel, tmp_path: Path) -> None:
    tuning = job(tiny_served, written(tmp_path, *LINES), tmp_path / "adapter", JobSettings(steps=1, accum=1))
    made = scheduler("flexllm")
    engine = Engine(tiny_served, made, pages=40, cost=COST, slo=SLO(tbt_s=1e-9), tuning=tuning)
    engine.step()
    assert tuning.position.tokens == 0 and "raise slo_ms" in made.starved
    engine.state.slo = SLO(tbt_s=10.0)
    while engine.active:
        engine.step()
        assert not made.starved
    assert tuning.position.finished


@pytest.mark.parametrize(
    "line", ['{"text": 3}', "[]", "{", '{"prompt": "a"}', '{"text": "a", "more": "b"}', "[" * 9999]
)
def test_lines_that_are_no_example_are_named(tiny_served: LanguageModel, tmp_path: Path, line: str) -> None:
    with pytest.raises(BadInput, match=r"data\.jsonl: line 2: .*write"):
        list(read(tiny_served, written(tmp_path, LINES[0], line)))


def test_a_file_without_an_example(tiny_served: LanguageModel, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="no example is left"):
        job(tiny_served, written(tmp_path, ""), tmp_path / "adapter")
