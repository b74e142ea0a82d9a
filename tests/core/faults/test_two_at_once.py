"""Two processes on one ledger, one cache and one artifact: nothing is lost, mixed or built twice."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
from artifacts import RECIPE, SmallModel, evidence, value_in

from headway.core.artifact import read_manifest, write_artifact
from headway.core.cache import StepCache
from headway.core.evidence import Evidence
from headway.core.ledger import Ledger

HERE = Path(__file__).parent
EACH = 12


def start(role: str, folder: Path) -> subprocess.Popen[str]:
    paths = os.pathsep.join([str(HERE.parent), *sys.path])
    return subprocess.Popen(
        [sys.executable, __file__, role, str(folder)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": paths},
    )


def optimise(folder: Path, first: int) -> None:
    """What a run does with shared files, several times: steps from the cache, evidence, an artifact at one place."""
    for number in range(EACH):
        value = StepCache(folder / "steps").arrays(f"k{number}", lambda number=number: build(folder, number))["a"]
        assert np.array_equal(value, np.full(2000, number))
        write_artifact(folder / "out", SmallModel(float(first + number), 4000), RECIPE, evidence(first + number))
        Ledger(folder / "ledger.sqlite3").append(evidence(first + number))


def build(folder: Path, number: int) -> dict[str, np.ndarray]:
    with (folder / "built").open("a") as file:
        file.write(f"{number}\n")
    return {"a": np.full(2000, number)}


def test_two_runs_share_everything(tmp_path: Path) -> None:
    runs = [start(str(first), tmp_path) for first in (100, 200)]
    assert [run.wait(120) for run in runs] == [0, 0]
    seeds = sorted(found.seed for found in Ledger(tmp_path / "ledger.sqlite3").all())
    assert seeds == [first + number for first in (100, 200) for number in range(EACH)]
    Ledger(tmp_path / "ledger.sqlite3").check()
    read_manifest(tmp_path / "out")
    assert value_in(tmp_path / "out") == Evidence.load(tmp_path / "out" / "evidence.json").seed
    assert sorted(map(int, (tmp_path / "built").read_text().split())) == list(range(EACH)), "each step was built once"
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_a_waiting_run_takes_over_from_a_dead_one(tmp_path: Path) -> None:
    dead = start("slow", tmp_path)
    assert dead.stdout is not None and dead.stdout.readline() == "building\n"
    heir = start("fast", tmp_path)
    time.sleep(0.3)
    assert heir.poll() is None, "it waits for the one that builds"
    dead.kill()
    dead.wait()
    assert heir.wait(60) == 0
    assert StepCache(tmp_path / "steps").json("k", lambda: "built a third time") == "fast"


def main() -> None:
    role, folder = sys.argv[1], Path(sys.argv[2])
    if role.isdecimal():
        optimise(folder, int(role))
        return

    def value() -> str:
        print("building", flush=True)
        time.sleep(600 if role == "slow" else 0)
        return role

    StepCache(folder / "steps").json("k", value)


if __name__ == "__main__":
    main()
