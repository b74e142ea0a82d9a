"""A tiny model for every test of the engine."""

from __future__ import annotations

import numpy as np
import pytest
from tiny_models import TinyFolder

import headway
from headway.llm.language_model import LanguageModel


@pytest.fixture(scope="session")
def tiny_served(tmp_path_factory: pytest.TempPathFactory) -> LanguageModel:
    folder = TinyFolder(tmp_path_factory.mktemp("tiny") / "model")
    folder.config["max_position_embeddings"] = 1024
    folder.write()
    model = headway.load(folder.path)
    assert isinstance(model, LanguageModel)
    return model


@pytest.fixture
def random() -> np.random.Generator:
    return np.random.default_rng(0)
