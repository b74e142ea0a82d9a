"""Saves one thing after another until it is ended: `python busy.py FOLDER`. Prints the number of each it finished."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from artifacts import RECIPE, SmallModel, evidence, value_in

from headway.core.artifact import read_manifest, write_artifact
from headway.core.cache import StepCache
from headway.core.evidence import Evidence
from headway.core.files import sweep
from headway.core.ledger import Ledger


def last_of(folder: Path) -> int:
    """The number that is saved everywhere, after checking that what is saved is whole and in step."""
    sweep(folder, older_than_s=0.0)
    ledger = Ledger(folder / "ledger.sqlite3")
    ledger.check()
    seeds = [found.seed for found in ledger.all()]
    assert seeds == list(range(1, len(seeds) + 1)), "evidence is lost or doubled"
    saved = 0
    if (folder / "out").exists():
        read_manifest(folder / "out")
        saved = int(value_in(folder / "out"))
        assert Evidence.load(folder / "out" / "evidence.json").seed == saved, "a mixture of two artifacts"
    assert saved in (len(seeds), len(seeds) + 1), "the artifact is written first, then the ledger"
    cache = StepCache(folder / "steps")
    for number in range(1, len(seeds) + 1):
        assert cache.arrays(f"k{number}", dict)["a"][0] == number, "a finished step was lost"
    assert {path.name for path in folder.iterdir()} <= {
        "out",
        "steps",
        "ledger.sqlite3",
        "ledger.sqlite3-shm",
        "ledger.sqlite3-wal",
    }, "something is left behind"
    return len(seeds)


def save(folder: Path, number: int) -> None:
    StepCache(folder / "steps").arrays(f"k{number}", lambda: {"a": np.full(5000, number)})
    write_artifact(folder / "out", SmallModel(float(number), 5000), RECIPE, evidence(number))
    Ledger(folder / "ledger.sqlite3").append(evidence(number))


def main() -> None:
    folder = Path(sys.argv[1])
    number = last_of(folder)
    print("ready", flush=True)
    while True:
        number += 1
        save(folder, number)
        print(number, flush=True)


if __name__ == "__main__":
    main()
