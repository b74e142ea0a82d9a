"""Reports: one HTML file from evidence that works offline, with the verdict first and every sample behind it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from headway.core.errors import BadInput
from headway.core.evidence import Evidence
from headway.core.files import atomic_write_text, state_folder
from headway.core.target import Target
from headway.optimize.report.page import GENERATOR, page
from headway.optimize.report.reading import run_of, site_bits

__all__ = ["is_report", "site_bits", "write_report"]


def write_report(
    path: str | Path, evidences: Sequence[Evidence], *, targets: Mapping[str, Target] | None = None
) -> Path:
    """Write one HTML file about these pieces of evidence, in this order; gives its path.

    The file holds its style, its scripts (vega) and the evidence itself, loads nothing and needs no network.
    `targets`: machines by fingerprint, for their facts; when not given, those that `headway probe` saved here.
    Raises `BadInput` for no evidence or a path that cannot be written, `Lacking` for a full disk.
    """
    if Path(path).exists() and not is_report(Path(path)):
        raise BadInput(f"{path} is there and is no report", "choose another file for -o")
    if not evidences:
        raise BadInput("a report needs evidence", "run: headway optimize, prove or bench first")
    runs = [
        run_of(evidence, f"r{number}", _target(evidence.target.get("fingerprint", ""), targets))
        for number, evidence in enumerate(evidences, 1)
    ]
    atomic_write_text(path, page(runs, [evidence.to_json() for evidence in evidences]))
    return Path(path)


def is_report(path: Path) -> bool:
    """Whether a file is a report, which a new one may replace."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return GENERATOR.encode() in file.read(1 << 16)


def _target(fingerprint: str, targets: Mapping[str, Target] | None) -> Target | None:
    """The machine of that fingerprint, if it is known; a report is written all the same when it is not."""
    if targets is not None:
        return targets.get(fingerprint)
    if not fingerprint.isalnum():
        return None
    try:
        return Target.load(state_folder("targets") / f"{fingerprint}.json")
    except BadInput:
        return None
