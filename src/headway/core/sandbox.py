"""A child process with limits: run a function or a command, and learn how it ended and what it used at most.

The child is started through a small supervisor (`sandbox_child.py`) that sets the limits, watches the memory of the
child and all its descendants, reports the peak that the kernel counted, and dies with this process, the child with it.
Values cross as JSON over pipes; nothing is pickled and no shell runs.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal

from headway.core.errors import BadInput, Lacking
from headway.core.jsontext import json_text

KilledBy = Literal["wall", "cpu", "memory", "signal"]

OUTPUT_BYTES = 1 << 20
ANSWER_BYTES = 64 << 20
"""A function's answer may be this long."""

_SUPERVISOR = Path(__file__).with_name("sandbox_child.py")


@dataclass(frozen=True)
class Limits:
    """What a child may use; `None` leaves a resource unlimited."""

    wall_s: float | None = None
    cpu_s: float | None = None
    """Processor seconds of one process; rounded up to whole seconds."""
    memory_bytes: int | None = None
    """Resident memory of the child and all its descendants together; looked at every few milliseconds."""
    address_bytes: int | None = None
    """Address space of each process (RLIMIT_AS): an allocation beyond it fails inside the child."""
    output_bytes: int = OUTPUT_BYTES
    """Of each of standard output and standard error; the rest is read and dropped."""


@dataclass(frozen=True)
class Outcome:
    """How a child ended."""

    exit_code: int | None
    """`None` when a signal ended it."""
    signal: int | None
    killed_by: KilledBy | None
    """Which limit ended it; `signal` for a signal that no limit of ours sent (a crash, the kernel's OOM killer)."""
    stdout: str
    stderr: str
    wall_s: float
    cpu_s: float
    peak_rss_bytes: int
    """The kernel's count for the child or the largest of its waited-for descendants, whichever is larger."""
    value: Any = None
    """What the function returned (`run_function`)."""
    error: str = ""
    """Type and message of the exception the function raised."""

    @property
    def ok(self) -> bool:
        return self.exit_code == 0 and not self.error

    def explain(self) -> str:
        """One line: how it ended."""
        if self.killed_by == "signal":
            return f"ended by signal {self.signal}"
        if self.killed_by is not None:
            return f"stopped at its {self.killed_by} limit"
        if self.error:
            return self.error
        return "finished" if self.exit_code == 0 else f"exit code {self.exit_code}"


def run_command(
    command: Sequence[str],
    limits: Limits | None = None,
    *,
    stdin: bytes = b"",
    environment: Mapping[str, str] | None = None,
    folder: str | Path | None = None,
) -> Outcome:
    """Run a program (no shell) to its end or its limit.

    environment: the whole environment of the child; this process's own when not given. Raises `BadInput` for a
    program that cannot be started.
    """
    report = _supervise(list(command), limits or Limits(), stdin, environment, folder, ())
    return Outcome(**report)


def run_function(
    function: str,
    arguments: Mapping[str, Any] | None = None,
    limits: Limits | None = None,
    *,
    environment: Mapping[str, str] | None = None,
    folder: str | Path | None = None,
) -> Outcome:
    """Call `module:function(**arguments)` in a fresh interpreter with this one's import path; see `Outcome.value`.

    Arguments and value are JSON. An exception in the function becomes `Outcome.error` with its traceback in `stderr`.
    """
    module, _, name = function.partition(":")
    if not module or not name:
        raise BadInput(f"{function!r} does not name a function", "write module:function")
    request = {"module": module, "function": name, "arguments": arguments or {}, "path": sys.path}
    reader, writer = os.pipe()
    answer = bytearray()
    try:
        drain = threading.Thread(target=_drain, args=(os.fdopen(reader, "rb"), answer, ANSWER_BYTES), daemon=True)
        drain.start()
        command = [sys.executable, "-I", str(_SUPERVISOR), "call", str(writer)]
        stdin = json_text(request, indent=None).encode()
        report = _supervise(command, limits or Limits(), stdin, environment, folder, (writer,))
    finally:
        os.close(writer)
    drain.join()
    return Outcome(**report, **_answer(bytes(answer)))


def _answer(data: bytes) -> dict[str, Any]:
    try:
        answer = json.loads(data)
        return {"value": answer["value"], "error": answer["error"]}
    except (ValueError, KeyError, TypeError):
        return {"error": "the function did not return"}


def _supervise(
    command: list[str],
    limits: Limits,
    stdin: bytes,
    environment: Mapping[str, str] | None,
    folder: str | Path | None,
    keep: tuple[int, ...],
) -> dict[str, Any]:
    reader, writer = os.pipe()
    plan = {
        "command": command,
        "report": writer,
        "keep": list(keep),
        "parent": os.getpid(),
        "wall_s": limits.wall_s,
        "cpu_s": limits.cpu_s,
        "memory_bytes": limits.memory_bytes,
        "address_bytes": limits.address_bytes,
    }
    try:
        supervisor = subprocess.Popen(
            [sys.executable, "-I", "-S", str(_SUPERVISOR), "watch", json.dumps(plan)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=None if environment is None else dict(environment),
            cwd=folder,
            pass_fds=(writer, *keep),
            start_new_session=True,
        )
    except OSError as error:
        os.close(reader)
        raise Lacking(f"cannot start a child process: {error.strerror}", "free memory or raise the limit") from None
    finally:
        os.close(writer)
    texts = bytearray(), bytearray()
    streams = supervisor.stdout, supervisor.stderr
    drains = [
        threading.Thread(target=_drain, args=(stream, text, limits.output_bytes), daemon=True)
        for stream, text in zip(streams, texts, strict=True)
    ]
    try:
        for drain in drains:
            drain.start()
        _feed(supervisor, stdin)
        with os.fdopen(reader, "rb") as report_file:
            report = report_file.read()
        supervisor.wait()
    except BaseException:  # Ctrl-C: told so, the supervisor ends what it started
        supervisor.terminate()
        supervisor.wait()
        raise
    for drain in drains:
        drain.join(timeout=1.0)  # a descendant that lives on may hold the pipe
    return _report(report, bytes(texts[0]), bytes(texts[1]), command)


def _report(data: bytes, stdout: bytes, stderr: bytes, command: list[str]) -> dict[str, Any]:
    if not data:
        raise Lacking(f"the supervisor of {command[0]!r} was killed", "free memory and run again")
    report: dict[str, Any] = json.loads(data)
    if "cannot_start" in report:
        raise BadInput(f"cannot run {command[0]!r}: {report['cannot_start']}", "check the program's name and rights")
    texts = {"stdout": stdout.decode(errors="replace"), "stderr": stderr.decode(errors="replace")}
    return {**report, **texts}


def _feed(supervisor: subprocess.Popen[bytes], data: bytes) -> None:
    assert supervisor.stdin is not None
    with suppress(BrokenPipeError):  # the child did not want all of it
        supervisor.stdin.write(data)
    with suppress(BrokenPipeError):
        supervisor.stdin.close()


def _drain(stream: IO[bytes], into: bytearray, limit: int) -> None:
    with stream:
        while data := os.read(stream.fileno(), 1 << 16):
            into += data[: max(0, limit - len(into))]
