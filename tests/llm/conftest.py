"""Fixtures that the language model tests share; this folder's helper modules are importable from its subfolders."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from tiny_models import TinyFolder

from headway.llm.language_model import LanguageModel
from headway.llm.packaged import smollm2_135m


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> Iterator[None]:
    """Small shapes: more threads only wait for one another."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def smollm2() -> LanguageModel:
    return smollm2_135m()


@pytest.fixture
def tiny(tmp_path: object) -> TinyFolder:
    """A random two-layer Llama as a Hugging Face folder."""
    return TinyFolder(tmp_path / "tiny")  # type: ignore[operator]
