"""Kill storms: run a command again and again, each time ended by a signal at another instant."""

from __future__ import annotations

import random
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Ended:
    """How one run ended: `code` as in `Popen.returncode`, and what it had printed."""

    code: int
    output: str
    errors: str


def instants(count: int, total_s: float, seed: int = 0) -> Iterator[float]:
    """`count` uniform instants of a run that takes `total_s` seconds."""
    generator = random.Random(seed)
    return (generator.uniform(0.0, total_s) for _ in range(count))


def ended_at(
    command: Sequence[str],
    instant_s: float,
    signal: int,
    *,
    ready: str = "",
    environment: Mapping[str, str] | None = None,
) -> Ended:
    """Start `command` and send it the signal at that instant, counted from the line `ready` where one is given.

    A command that ends before is left alone.
    """
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment and dict(environment)
    )
    assert process.stdout is not None
    before = ""
    while ready and not before.endswith(ready + "\n"):
        line = process.stdout.readline()
        if not line:
            break
        before += line
    deadline = time.monotonic() + instant_s
    while process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.001)
    if process.poll() is None:
        process.send_signal(signal)
    output, errors = process.communicate()
    return Ended(process.returncode, before + output, errors)
