"""A million requests through the simulator; exit 1 when it takes two minutes or more.

    python benchmarks/simulate.py [--requests 1000000] [--trace azure-conv] [--load 0.6] [--json]

Times between arrivals and lengths are those of the named trace, at a share `load` of what the machine can serve: one
that takes 20 ms for a batch of up to 256 tokens and 60 us for each further one. The scheduler is `sarathi-serve`.
"""

from __future__ import annotations

import argparse
import json
import sys
import time

import numpy as np

from headway.core.units import show
from headway.hardware.iteration_time import IterationTime
from headway.serving.schedulers.base import Limits
from headway.serving.schedulers.sarathi_serve import Sarathi, SarathiSettings
from headway.serving.simulator import OneLane, Setting, simulate
from headway.serving.trace import generate

MOST_S = 120.0
"""The bar."""
COST = IterationTime((0, 256, 8192), (0.02, 0.02, 0.5), 1e-8)
BUDGET, PAGES, SEQUENCES = 1024, 60_000, 256


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=1_000_000)
    parser.add_argument("--trace", default="azure-conv")
    parser.add_argument(
        "--load", type=float, default=0.6, help="share of the rate at which requests leave a full queue"
    )
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()

    def run(requests: int, rate: float) -> tuple[float, float, int]:
        trace = generate(asked.trace, requests, rate, seed=0)
        begun = time.perf_counter()
        found = simulate(
            trace,
            Sarathi(SarathiSettings(token_budget=BUDGET)),
            OneLane(COST),
            Setting(PAGES, 16, Limits(max_seqs=SEQUENCES)),
            cost=COST,
        )
        done = ~np.isnan(found.finish)
        return time.perf_counter() - begun, float(np.nanmax(found.finish)), int(done.sum())

    crowd = 2000
    _, drained, _ = run(crowd, 1e6)
    rate = asked.load * crowd / drained
    seconds, _, done = run(asked.requests, rate)
    met = seconds < MOST_S
    if asked.json:
        print(json.dumps({"requests": asked.requests, "answered": done, "rate": rate, "seconds": seconds, "met": met}))
    else:
        print(f"{asked.requests} requests of {asked.trace} at {rate:.2f}/s: {done} answered in {show(seconds, 's')}")
    return 0 if met and done == asked.requests else 1


if __name__ == "__main__":
    sys.exit(main())
