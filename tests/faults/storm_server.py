"""Runs `headway optimize` again and again in forked processes and ends each by a signal at another instant.

    python storm_server.py FOLDER KILLS INTERRUPTS

Everything is imported once; each run is a process of its own whose home is FOLDER/home. A storm is many rounds: from
an empty cache, runs are ended at uniform instants until one finishes. What a round measures is what the undisturbed
run measured (the machine answers as it did then), so that its front can be compared. Prints a JSON document.
"""

from __future__ import annotations

import ctypes
import io
import json
import os
import random
import shutil
import signal
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

from known_machine import use_home

from headway.cli.main import main
from headway.core.artifact import read_manifest
from headway.core.cache import StepCache
from headway.core.ledger import Ledger
from headway.optimize import measuring, pipeline, search

FEWER = {"ROUNDS": 1, "PROPOSED": 2, "SURVIVORS": 1, "EXPLORED": 2, "PROOF_ROUNDS": 7}
PR_SET_CHILD_SUBREAPER = 36
ORPHAN_S = 5.0


class Storm:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.home = folder / "home"
        self.log = folder / "steps.log"
        self.answers = folder / "answers"
        """Cache of the undisturbed run."""
        self.ended: Counter[str] = Counter()
        self.repeated = self.finished = 0
        self.command = [
            *("optimize", str(folder / "tiny"), "--text", str(folder / "text"), "--budget", "quality>=0.9"),
            *("--minimize", "size", "--only", "int4", "--threads", "1", "--time", "1h", "-o", str(folder / "out")),
            *("--json", "--quiet"),
        ]

    # One run

    def start(self) -> int:
        pid = os.fork()
        if pid:
            return pid
        code = 70
        try:
            signal.signal(signal.SIGINT, signal.default_int_handler)
            output, errors = io.StringIO(), io.StringIO()
            with redirect_stdout(output), redirect_stderr(errors):
                code = main(self.command)
            (self.folder / "answer.json").write_text(output.getvalue())
            (self.folder / "errors").write_text(errors.getvalue())
        except BaseException:
            (self.folder / "errors").write_text(traceback.format_exc())
        finally:
            os._exit(code)

    def run(self, instant_s: float = float("inf"), number: int = signal.SIGKILL) -> int:
        """The wait status of one run that gets the signal at that instant."""
        pid = self.start()
        deadline = time.monotonic() + instant_s
        sent = False
        while True:
            found, status = os.waitpid(pid, os.WNOHANG)
            if found:
                return status
            if not sent and time.monotonic() >= deadline:
                os.kill(pid, number)
                sent = True
            time.sleep(0.002)

    def orphans(self) -> int:
        """Processes that a run left behind and that did not end by themselves; they are this process's children now."""
        deadline = time.monotonic() + ORPHAN_S
        while time.monotonic() < deadline:
            try:
                os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return 0
            time.sleep(0.005)
        return 1

    # What must be true

    def front(self) -> Any:
        """The recipes of the front and of the winner with everything measured, less the folders' names."""
        document = json.loads((self.folder / "answer.json").read_text())
        kept = [document["winner"], *document["front"]]
        return [document["met"], *({key: item[key] for key in ("recipe", "measured", "predicted")} for item in kept)]

    def said(self) -> str:
        """What the last run that ended by itself wrote to standard error."""
        errors = self.folder / "errors"
        return errors.read_text()[-2000:] if errors.exists() else ""

    def sound(self) -> None:
        """After any end: the ledger is whole, and the artifact is absent or whole."""
        ledger = Ledger(self.home / "state" / "ledger.sqlite3")
        ledger.check()
        ledger.all()
        if (self.folder / "out").exists():
            read_manifest(self.folder / "out")

    def steps_begun_again(self) -> int:
        """Steps of this round that were begun more than once; one that was finished must never be."""
        begun: Counter[str] = Counter()
        done: Counter[str] = Counter()
        for line in self.log.read_text().splitlines():
            what, depth, key = line.split()
            if what == "done":
                done[key] += 1
            elif depth == "0":
                begun[key] += 1
        assert max(done.values()) == 1, "a finished step was done again"
        return sum(count - 1 for count in begun.values())

    def forget(self) -> None:
        shutil.rmtree(self.home / "cache", ignore_errors=True)
        self.log.write_text("")

    def round(self, draw: Callable[[], tuple[float, int]], expected: Any, left: Counter[int]) -> None:
        """From an empty cache to a finished run; `left` are the signals still to be sent."""
        self.forget()
        ends = 0
        while True:
            instant, number = draw() if sum(left.values()) else (float("inf"), signal.SIGKILL)
            status = self.run(instant, number)
            assert not self.orphans(), "a process was left behind"
            self.sound()
            if os.WIFEXITED(status) and os.WEXITSTATUS(status) == 0:
                break
            if number == signal.SIGINT:
                assert os.WIFEXITED(status) and os.WEXITSTATUS(status) == 130, f"status {status}: {self.said()}"
                assert "interrupted" in self.said()
            else:
                assert os.WIFSIGNALED(status) and os.WTERMSIG(status) == number, f"status {status}: {self.said()}"
            self.ended[signal.Signals(number).name] += 1
            left[number] -= 1
            ends += 1
        assert self.front() == expected, "another front"
        again = self.steps_begun_again()
        assert again <= ends, f"{again} steps repeated after {ends} ends"
        self.repeated += again
        self.finished += 1


def remember_steps(storm: Storm) -> None:
    """Log each step that is begun and finished, and let the machine answer as it did in the undisturbed run."""
    build, cached = StepCache._build, measuring.Bench._cached
    depth = 0

    def note(what: str, at: int, key: str) -> None:
        with storm.log.open("a") as log:
            log.write(f"{what} {at} {key}\n")

    def logged(self: StepCache, entry: Path, fill: Any) -> None:
        nonlocal depth
        note("begin", depth, entry.name)
        depth += 1
        build(self, entry, fill)
        depth -= 1
        note("done", depth, entry.name)

    def replayed(self: measuring.Bench, what: str, measure: Any, *parts: Any) -> Any:
        assert self.context.cache is not None
        answer = storm.answers / self._key(self.context.cache, what, *parts) / "value.json"

        def as_then() -> Any:
            found = measure()
            return json.loads(answer.read_text()) if what in ("timing", "memory") and answer.exists() else found

        return cached(self, what, as_then, *parts)

    StepCache._build = logged  # type: ignore[method-assign]
    measuring.Bench._cached = replayed  # type: ignore[method-assign]


def storm(folder: Path, kills: int, interrupts: int) -> dict[str, Any]:
    use_home(folder / "home")
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    for name, value in FEWER.items():
        setattr(pipeline, name, value)
    search.TRIALS = 20
    here = Storm(folder)
    remember_steps(here)
    here.forget()
    begun = time.monotonic()
    assert here.run() == 0, here.said()
    whole_s = time.monotonic() - begun
    expected, steps = here.front(), len({line.split()[2] for line in here.log.read_text().splitlines()})
    shutil.copytree(here.home / "cache" / "steps", here.answers)
    left = Counter({int(signal.SIGKILL): kills, int(signal.SIGINT): interrupts})
    generator = random.Random(7)

    def draw() -> tuple[float, int]:
        return generator.uniform(0.0, whole_s), generator.choice(list(left.elements()))

    while sum(left.values()):
        here.round(draw, expected, left)
    return {
        "kills": here.ended["SIGKILL"],
        "interrupts": here.ended["SIGINT"],
        "rounds": here.finished,
        "steps_of_a_run": steps,
        "repeated": here.repeated,
        "whole_run_s": whole_s,
        "front": len(expected) - 2,
    }


if __name__ == "__main__":
    print(json.dumps(storm(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))))
