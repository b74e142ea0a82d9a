"""The system that `add-a-system.md` writes is installed as a plug-in, found, and passes its own test."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from site_text import DOCS, blocks

PACKAGE = "worked_example"


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page's files in a package with the entry point that the page names; nothing of Headway is touched."""
    files = {block.title: block.body for block in blocks(DOCS / "add-a-system.md") if block.title}
    assert set(files) == {"ternary.py", "ternary_proof.py", "test_ternary.py", "pyproject.toml"}
    folder = tmp_path_factory.mktemp("plugin")
    package = folder / PACKAGE
    package.mkdir()
    (package / "__init__.py").write_text("")
    for name in ("ternary.py", "ternary_proof.py"):
        (package / name).write_text(files[name], encoding="utf-8")
    (folder / "test_ternary.py").write_text(files["test_ternary.py"], encoding="utf-8")
    info = folder / f"{PACKAGE}-0.1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {PACKAGE}\nVersion: 0.1\n")
    point = files["pyproject.toml"].replace('[project.entry-points."headway.systems"]', "[headway.systems]")
    (info / "entry_points.txt").write_text(point.replace("my_package", PACKAGE).replace('"', ""))
    return folder


def python(installed: Path, *words: str) -> subprocess.CompletedProcess[str]:
    home = installed / "home"
    environment = {**os.environ, "PYTHONPATH": str(installed), "HEADWAY_HOME": str(home)}
    return subprocess.run(
        [sys.executable, *words], env=environment, cwd=installed, capture_output=True, text=True, check=False
    )


def test_its_own_test_passes(installed: Path) -> None:
    words = ("-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:cov", "test_ternary.py")
    done = python(installed, *words)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]


def test_it_passes_lint(installed: Path) -> None:
    config = ["--config", str(DOCS.parent / "pyproject.toml")]
    for words in (["check"], ["format", "--check"]):
        done = subprocess.run(
            [sys.executable, "-m", "ruff", *words, *config, str(installed)], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout


def test_the_verbs_find_it(installed: Path) -> None:
    code = "import sys; from headway.cli.main import main; sys.exit(main(sys.argv[1:]))"
    listed = python(installed, "-c", code, "systems", "--json")
    assert listed.returncode == 0, listed.stderr
    assert "ternary" in {card["slug"] for card in json.loads(listed.stdout)["systems"]}
    shown = python(installed, "-c", code, "systems", "ternary", "--json")
    assert shown.returncode == 0, shown.stderr
    settings = {setting["name"] for setting in json.loads(shown.stdout)["settings"]}
    assert settings == {"only", "skip", "group_size", "threshold"}
