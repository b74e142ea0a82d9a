"""Mixed bits against every uniform setting of lut-gemm at equal bytes, on held-out text; exit 1 when one is not beaten.

    python benchmarks/mixed_bits.py [MODEL]

For each uniform setting of 3 or 4 bits the sensitivity pass of the search gives every matrix 2, 3, 4 or (plain int8)
8 bits and a group size, or leaves it as it is, so that the predicted loss is least within the same bytes; both are
measured against the exact original on the same windows.
"""

from __future__ import annotations

import os
import sys
from dataclasses import replace

import numpy as np

from headway.core.cache import StepCache
from headway.core.registry import system
from headway.core.statistics import perplexity_ratio
from headway.core.system import Context
from headway.core.workload import Workload
from headway.llm import scoring
from headway.optimize import api
from headway.optimize.applying import apply_recipe
from headway.optimize.language_subject import LanguageSubject
from headway.optimize.losses import choice_table

UNIFORM = (3, 4)
"""Bits of the uniform settings; a mixed recipe may have fewer and more, or the two ends could not be mixed."""


def main(name: str = "smollm2-135m") -> int:
    threads = api.use_threads(len(os.sched_getaffinity(0)))
    model = api.load(name)
    subject = LanguageSubject(model, Workload())
    context = Context(api.machine(), subject.calibration(), StepCache(), threads)
    looked_up = [{"bits": bits, "group_size": group} for bits in (2, *UNIFORM) for group in (32, 64, 128)]
    held = [("int8", system("int8"), [{"group_size": 128}]), ("lut-gemm", system("lut-gemm"), looked_up)]
    table = choice_table(subject, context, held)
    body = [row for row, site in enumerate(table.sites) if site.kind == "linear"]
    rows = np.arange(len(table.sites))
    # The head stays as it is in both. A mixed recipe may leave any matrix as it is, where that is worth its bytes.
    allowed = table.loss.copy()
    for row in set(rows) - set(body):
        allowed[row, 1:] = np.inf
    windows = subject.splits["heldout"]
    lengths = [len(window) - 1 for window in windows]
    missed = 0
    print("uniform      bytes      ratio to float   mixed bytes   ratio to float   mixed / uniform [95%]")
    for column, choice in enumerate(table.choices):
        setting = dict(choice.settings)
        if setting.get("bits") not in UNIFORM:
            continue
        uniform = np.array([column if row in body else 0 for row in rows])
        limit = table.total(table.nbytes, uniform)
        name = f"{setting['bits']} bits g{setting['group_size']:<4} {limit / 1e6:6.1f} MB"
        if table.total(table.loss, uniform) == 0:
            print(f"{name}  loses nothing: the file's own grid", flush=True)
            continue
        # Least loss within these bytes: the same allocation with the roles of bytes and loss exchanged.
        swapped = replace(table, loss=np.where(np.isfinite(allowed), table.nbytes, np.inf), nbytes=allowed)
        mixed = swapped.allocate(np.where(np.isfinite(allowed), allowed, 0.0), limit)
        made = [apply_recipe(table.recipe(picked), model, context) for picked in (uniform, mixed)]
        compared = scoring.compare(subject.exact, made, windows)
        ratio = perplexity_ratio(compared[1].candidate, compared[0].candidate, windows=lengths)
        print(
            f"{name}  {1 / compared[0].quality:12.4f}"
            f"   {table.total(table.nbytes, mixed) / 1e6:8.1f} MB  {1 / compared[1].quality:12.4f}"
            f"       {ratio.value:.4f} [{ratio.low:.4f}, {ratio.high:.4f}]",
            flush=True,
        )
        missed += ratio.high >= 1.0
    return int(missed > 0)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
