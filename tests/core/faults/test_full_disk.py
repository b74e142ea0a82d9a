"""A disk that is too small: one line that says so, exit code 3, and the old artifact still there."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent


@pytest.mark.parametrize(
    ("kilobytes", "value"), [(4, 0.0), (8, 0.0), (60, 1.0), (220, 1.0), (2000, 2.0)], ids=lambda v: f"{v:g}"
)
def test_a_full_disk_is_explained_and_keeps_the_old(tmp_path: Path, kilobytes: int, value: float) -> None:
    found = subprocess.run(
        [sys.executable, HERE / "full_disk.py", tmp_path, str(kilobytes)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(HERE.parent), *sys.path])},
        capture_output=True,
        text=True,
    )
    assert found.returncode == 0, found.stderr[-3000:]
    how, first, second, there, left, cache, ledger, kept = json.loads(found.stdout)
    print(how, kilobytes, first, second, cache, ledger)
    if how == "tmpfs":
        assert there == value
    for refusal in (first, second, cache, ledger):
        assert not refusal or ("free" in refusal and "\n" not in refusal)
    assert (second == "") == (there == 2.0)
    assert left == [], "a failed save leaves nothing behind"
    assert ledger or kept == [3]
    assert kilobytes < 2000 or not (first or second or cache or ledger)
