"""A real server over a tiny model, as the command starts it; its iteration time is given, so nothing is measured."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from http_server import Home, Server
from tiny_models import TinyFolder


@pytest.fixture(scope="session")
def home(tmp_path_factory: pytest.TempPathFactory) -> Home:
    folder = TinyFolder(tmp_path_factory.mktemp("served") / "tiny")
    folder.config["max_position_embeddings"] = 1024
    folder.write()
    return Home(tmp_path_factory.mktemp("home"), folder.path)


@pytest.fixture(scope="module")
def server(home: Home) -> Iterator[Server]:
    """One server for all tests of a module; those that break it start their own."""
    with home.serve() as started:
        yield started


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    path = tmp_path / "keys"
    path.write_text("# two users\nfirst-key-0123456789\nsecond-key-0123456789\n")
    return path
