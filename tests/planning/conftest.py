"""A tiny model on a machine whose batches take a known time."""

from __future__ import annotations

import pytest
from serving_traces import COST
from tiny_models import TinyFolder

import headway
from headway.hardware.iteration_time import IterationTime
from headway.llm.language_model import LanguageModel
from headway.planning import here

FASTER = IterationTime(COST.knots, tuple(0.7 * value for value in COST.values), COST.chunk, COST.decode)
"""With keys and values in int8."""


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> TinyFolder:
    folder = TinyFolder(tmp_path_factory.mktemp("tiny") / "model")
    folder.config["max_position_embeddings"] = 1024
    folder.write()
    return folder


@pytest.fixture
def known_times(monkeypatch: pytest.MonkeyPatch) -> None:
    def known(model: LanguageModel, *_: object) -> IterationTime:
        return FASTER if model.kv == "int8" else COST

    monkeypatch.setattr(here, "iteration_time", known)


@pytest.fixture(scope="session")
def tiny(tiny_folder: TinyFolder) -> LanguageModel:
    model = headway.load(tiny_folder.path)
    assert isinstance(model, LanguageModel)
    return model
