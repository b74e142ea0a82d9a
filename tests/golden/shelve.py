"""Puts what this version writes on the shelf: `python tests/golden/shelve.py`, once for every release.

`tests/golden/<version>/` then holds artifacts, evidence, a ledger, a recipe and a target, and what reading them gave.
A released shelf is never written again: `test_golden_shelf` reads them all with every later version.
"""

from __future__ import annotations

import platform
import sqlite3
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import headway
from headway.core.artifact import write_artifact
from headway.core.evidence import Evidence, Series
from headway.core.files import atomic_folder, atomic_write_json, write_file
from headway.core.ledger import Ledger
from headway.core.measure import AGAIN, Timing
from headway.core.recipe import Recipe
from headway.core.target import Target

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE.parent / "llm")]

TOKENS = [3, 250, 41, 7, 99, 180, 12, 64]
RECIPES = {
    "int8": 'int8(group_size=32, skip=["*.down"])',
    "int4": 'int4(group_size=32, only=["layers.*.mlp.*"])',
    "lut-gemm": "lut-gemm(bits=3, group_size=32)",
}


def target() -> Target:
    """This machine, without the names of its software."""
    from headway.optimize.api import machine

    return replace(machine(), versions={"headway": headway.__version__})


def experiment() -> Evidence:
    evidence = Evidence.begin("prove", "lut-gemm", target(), seed=7, threads=2)
    evidence.versions = {"headway": headway.__version__, "python": platform.python_version()}
    arms = {"float": [0.02 + 1e-4 * n for n in range(10)], "3 bits": [0.01 + 1e-4 * n for n in range(10)]}
    timing = Timing("float", 7, {**arms, AGAIN: arms["float"][::-1]}, dict.fromkeys(arms, 1), [tuple(arms)] * 10)
    evidence.add_timing("tpot_s", timing, per_call=2)
    evidence.series.append(Series("loss", "3 bits", "nat", (1.5, 2.5)))
    evidence.quality = {"quality": 0.9, "kl": 0.01}
    evidence.bar("faster", "2.1x", ">= 1.3x", "1.9x", True)
    evidence.notes.append("made for the shelf")
    return evidence


def shelve(folder: Path) -> None:
    from tiny_models import TinyFolder

    evidence = experiment()
    expected: dict[str, Any] = {"tokens": TOKENS, "evidence": evidence.to_json(), "artifacts": {}, "recipes": {}}
    with tempfile.TemporaryDirectory() as scratch:
        original = headway.load(TinyFolder(Path(scratch) / "tiny").path)
        for name, text in RECIPES.items():
            model = headway.apply(text, original)
            recipe = Recipe.parse(text)
            write_artifact(folder / name, model, recipe.to_toml(), evidence)
            write_file(folder / f"{name}.toml", recipe.to_toml().encode())
            logits = headway.load(folder / name).logits(TOKENS)
            expected["artifacts"][name] = {"fingerprint": model.fingerprint(), "logits": logits[-1]}
            expected["recipes"][name] = recipe.as_json()
    evidence.save(folder / "evidence.json")
    Ledger(folder / "ledger.sqlite3").append(evidence)
    connection = sqlite3.connect(folder / "ledger.sqlite3")
    connection.execute("PRAGMA journal_mode = DELETE")  # one file, without its companions
    connection.close()
    write_file(folder / "target.json", target().dumps().encode())
    expected["target"] = target().fingerprint
    atomic_write_json(folder / "expected.json", expected)


def main() -> None:
    shelf = HERE / headway.__version__
    with atomic_folder(shelf, replace="--again" in sys.argv) as folder:
        shelve(folder)
    print(f"shelved {shelf}")


if __name__ == "__main__":
    main()
