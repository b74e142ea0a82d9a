"""CHESS, a text-to-SQL workflow, by the statistics of published traces: lengths, calls, and seconds by machine.

From the traces of HEXGEN-TEXT2SQL (arXiv 2505.05286; Relaxed-System-Lab/Hexgen-Flow), Llama-3.1-70B, BIRD's questions.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np

from headway.core.errors import BadInput
from headway.hardware.iteration_time import IterationTime
from headway.serving.workflow import Ask, Query, Stage

TEMPLATE = (
    "retriever", "keywords", "retriever", "retriever", "retriever", "candidate", "revise", "revise", "revise", "revise",
    "unit_tester", "gen_unit_test", "unit_tester", "evaluate", "unit_tester",
)  # fmt: skip
"""The stages that a query is expected to have before any is known."""


@dataclass(frozen=True)
class Spread:
    """Tokens: mean, standard deviation, least and most."""

    mean: float
    sd: float
    least: int = 1
    most: int = 1 << 20


@dataclass(frozen=True)
class Template:
    """A stage's calls. Lengths are the means of three published traces: light, mixed, heavy."""

    calls: tuple[float, float, float]
    """Of a query."""
    prompt: tuple[Spread, Spread, Spread]
    output: tuple[Spread, Spread, Spread]
    prefix: tuple[int, ...]
    """Tokens that all calls share, by prompt of the stage."""


def _alike(spread: Spread) -> tuple[Spread, Spread, Spread]:
    return (spread, spread, spread)


STAGES: dict[str, Template] = {
    "retriever": Template((4.0, 4.0, 4.0), _alike(Spread(306, 4)), _alike(Spread(7, 8)), (213,)),
    "keywords": Template((0.67, 0.80, 0.92), _alike(Spread(680, 25)), _alike(Spread(50, 17)), (630,)),
    "candidate": Template(
        (2.0, 2.0, 2.0),
        (Spread(10_000, 1940, 7900, 14_100), Spread(10_975, 1940, 7900, 14_100), Spread(11_950, 1940, 7900, 14_100)),
        (Spread(586, 200), Spread(660, 200), Spread(741, 200)),
        (9158, 5292),
    ),
    "revise": Template(
        (0.7, 2.6, 5.0),
        (Spread(5950, 300), Spread(6900, 1050), Spread(8000, 300)),
        (Spread(82, 35, 1, 1078), Spread(135, 150, 1, 1078), Spread(188, 300, 1, 1078)),
        (3059,),
    ),
    "unit_tester": Template((3.0, 3.0, 3.0), _alike(Spread(275, 3)), _alike(Spread(5, 1)), (213,)),
    "gen_unit_test": Template(
        (0.96, 0.96, 0.96),
        (Spread(1010, 125), Spread(1150, 220), Spread(1290, 310)),
        (Spread(100, 30), Spread(100, 40), Spread(100, 50)),
        (436,),
    ),
    "evaluate": Template(
        (4.4, 4.9, 5.4),
        (Spread(890, 120), Spread(1080, 220), Spread(1270, 320)),
        _alike(Spread(30, 33)),
        (261,),
    ),
}
TRACES = ("light", "mixed", "heavy")
MOST_REVISIONS = 10

SECONDS: dict[str, dict[str, float]] = {
    kind: dict(zip(STAGES, row, strict=True))
    for kind, row in {
        "A100": (0.225, 1.14, 18.2, 3.33, 0.174, 2.54, 0.867),
        "H100": (0.101, 0.547, 8.79, 1.43, 0.076, 1.24, 0.399),
        "A6000": (0.487, 2.11, 34.3, 8.03, 0.391, 4.56, 1.79),
        "A40": (0.493, 2.52, 40.4, 13.9, 0.379, 5.63, 1.90),
    }.items()
}
"""Seconds of a call alone, measured by the authors."""
DECODE_S = {"A100": 0.035, "A6000": 0.058, "L40S": 0.0545}
"""Seconds per token, as published. The L40S has no row of its own in `SECONDS`."""
SECONDS["L40S"] = {stage: seconds * DECODE_S["L40S"] / DECODE_S["A6000"] for stage, seconds in SECONDS["A6000"].items()}
USD_PER_H = {"H100": 2.822, "A100": 1.4, "A40": 0.6, "A6000": 0.5}
CONCURRENT = 6
"""Calls that an instance runs at once."""
CROWDING = 0.12
"""By how much each further call slows the others: a token of k takes 1 + 0.12 (k - 1) times one's."""


def generate(count: int, rate: float, seed: int = 0, trace: str = "mixed") -> list[Query]:
    """`count` queries in a Poisson stream of `rate` per second. Raises `BadInput` for another name of a trace."""
    if trace not in TRACES:
        raise BadInput(f"no trace {trace!r}", f"traces are: {', '.join(TRACES)}")
    if count < 1 or not rate > 0:
        raise BadInput(f"{count} queries at {rate} per second", "both must be above 0")
    random = np.random.default_rng(seed)
    arrivals = np.cumsum(random.exponential(1.0 / rate, count))
    return [Query(f"q{at}", float(t), _stages(random, TRACES.index(trace))) for at, t in enumerate(arrivals)]


def _stages(random: np.random.Generator, which: int) -> tuple[Stage, ...]:
    def ask(name: str, prefix: int = 0) -> Ask:
        template = STAGES[name]
        prompt = _normal(random, template.prompt[which])
        return Ask(prompt, _log_normal(random, template.output[which]), min(template.prefix[prefix], prompt))

    def one(name: str) -> Stage:
        return Stage(name, (ask(name),))

    def maybe(name: str) -> list[Stage]:
        return [one(name)] if random.random() < STAGES[name].calls[which] else []

    revisions = int(random.choice(MOST_REVISIONS + 1, p=_revisions(STAGES["revise"].calls[which])))
    evaluations = max(int(random.poisson(STAGES["evaluate"].calls[which] - 1)) + 1, 1)
    return (
        one("retriever"),
        *maybe("keywords"),
        *(one("retriever") for _ in range(3)),
        Stage("candidate", (ask("candidate", 0), ask("candidate", 1))),
        *(one("revise") for _ in range(revisions)),
        one("unit_tester"),
        *maybe("gen_unit_test"),
        one("unit_tester"),
        Stage("evaluate", tuple(ask("evaluate") for _ in range(evaluations))),
        one("unit_tester"),
    )


@cache
def _revisions(mean: float) -> tuple[float, ...]:
    """Shares of queries by their revisions: each that is made is the last with the same chance, up to the most."""
    counts = np.arange(MOST_REVISIONS + 1)
    low, high = 0.0, 1.0
    for _ in range(60):
        again = (low + high) / 2
        shares = again**counts / (again**counts).sum()
        low, high = (again, high) if shares @ counts < mean else (low, again)
    return tuple(shares.tolist())


def _normal(random: np.random.Generator, spread: Spread) -> int:
    return int(np.clip(round(random.normal(spread.mean, spread.sd)), spread.least, spread.most))


def _log_normal(random: np.random.Generator, spread: Spread) -> int:
    """Answers have tails longer than a normal law's."""
    sigma = float(np.sqrt(np.log1p((spread.sd / spread.mean) ** 2)))
    value = random.lognormal(np.log(spread.mean) - sigma**2 / 2, sigma)
    return int(np.clip(round(value), spread.least, spread.most))


def iteration_time(kind: str) -> IterationTime:
    """What one pass takes on a machine, fitted to its seconds of calls alone: prompts by token, answers by token.

    Prompts and answers of the mixed trace; `CROWDING` says what further sequences add.
    """
    from scipy.optimize import nnls

    if kind not in SECONDS:
        raise BadInput(f"no machine {kind!r}", f"known are: {', '.join(SECONDS)}")
    wanted = np.array([SECONDS[kind][stage] for stage in STAGES])
    rows = np.array([[t.prompt[1].mean, t.output[1].mean] for t in STAGES.values()])
    prompt, token = nnls(rows / wanted[:, None], np.ones(len(wanted)))[0].tolist()
    return pass_time(prompt, token)


def pass_time(prompt_s: float, token_s: float, crowding: float = CROWDING) -> IterationTime:
    """A pass from seconds per token of a prompt and per token of an answer alone; further sequences add a share."""
    floor = token_s * (1.0 - crowding)
    return IterationTime((0.0, 1e6), (floor, floor + prompt_s * 1e6), sequence=token_s * crowding)
