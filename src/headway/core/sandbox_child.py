"""The other side of `sandbox`: run as a script by a bare interpreter, so it imports the standard library alone.

`watch PLAN` forks the child, holds it to its limits and reports how it ended on the descriptor the plan names.
`call FD` is such a child: it reads a request from standard input, calls one function and answers on FD.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import resource
import select
import signal
import sys
import time
from pathlib import Path
from typing import Any

PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36
LOOK_S = 0.005


def die_with(parent: int, told_by: int) -> None:
    """Get the signal `told_by` when the process `parent`, which started this one, ends."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, told_by, 0, 0, 0)
    if os.getppid() != parent:  # it ended before the kernel was told
        os.kill(os.getpid(), told_by)


def watch(plan: dict[str, Any]) -> None:
    """Run `plan["command"]` within its limits and write the report."""
    signal.signal(signal.SIGTERM, end_all)
    die_with(plan["parent"], signal.SIGTERM)
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)  # orphans of the child come here, to be killed
    started = time.monotonic()
    failed, told = os.pipe()
    supervisor = os.getpid()
    child = os.fork()
    if child == 0:
        become(plan, supervisor, told)
    os.close(told)
    for descriptor in (0, 1, 2, *plan["keep"]):  # ends of pipes that the child alone should hold
        os.close(descriptor)
    reason = os.read(failed, 1000).decode()
    if reason:
        os.waitpid(child, 0)
        report(plan, {"cannot_start": reason})
        return
    report(plan, held(child, plan, started))


def end_all(*_: Any) -> None:
    """The parent is gone or gave up: leave no descendant behind."""
    kill_below(os.getpid())
    os._exit(1)


def become(plan: dict[str, Any], supervisor: int, told: int) -> None:
    """In the child: take the limits and turn into the command; tell the reason when that fails."""
    try:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        os.close(plan["report"])
        die_with(supervisor, signal.SIGKILL)
        for name, kind in (("cpu_s", resource.RLIMIT_CPU), ("address_bytes", resource.RLIMIT_AS)):
            if plan[name] is not None:
                whole = int(-(-plan[name] // 1))
                resource.setrlimit(kind, (whole, whole + (name == "cpu_s")))
        os.execvp(plan["command"][0], plan["command"])
    except BaseException as error:
        os.write(told, str(error).encode() or b"unknown")
    os._exit(127)


def held(child: int, plan: dict[str, Any], started: float) -> dict[str, Any]:
    """Wait for the child; kill it and its descendants when a limit is passed."""
    killed_by = None
    peak = 0
    ended_or_not = os.pidfd_open(child)
    while True:
        select.select([ended_or_not], [], [], LOOK_S)
        pid, status, usage = os.wait4(-1, os.WNOHANG)
        peak = max(peak, usage.ru_maxrss * 1024)
        if pid == child:
            break
        if killed_by is None and (killed_by := passed(plan, started)) is not None:
            kill_below(os.getpid())
    kill_below(os.getpid())
    ended = os.WTERMSIG(status) if os.WIFSIGNALED(status) else None
    used = usage.ru_utime + usage.ru_stime
    if killed_by is None and ended is not None:
        over = plan["cpu_s"] is not None and ended in (signal.SIGXCPU, signal.SIGKILL)
        killed_by = "cpu" if over and used >= plan["cpu_s"] * 0.9 else "signal"
    return {
        "exit_code": None if ended is not None else os.WEXITSTATUS(status),
        "signal": ended,
        "killed_by": killed_by,
        "wall_s": time.monotonic() - started,
        "cpu_s": used,
        "peak_rss_bytes": peak,
    }


def passed(plan: dict[str, Any], started: float) -> str | None:
    """The limit that is passed now, if any."""
    if plan["memory_bytes"] is not None and resident(os.getpid()) > plan["memory_bytes"]:
        return "memory"
    if plan["wall_s"] is not None and time.monotonic() - started > plan["wall_s"]:
        return "wall"
    return None


def below(pid: int) -> list[int]:
    """All living descendants of a process."""
    found = []
    todo = [pid]
    while todo:
        tasks = Path(f"/proc/{todo.pop()}/task")
        children: list[int] = []
        with contextlib.suppress(OSError, ValueError):  # it may end while we look
            for task in list(tasks.iterdir()):
                children += [int(child) for child in (task / "children").read_text().split()]
        found += children
        todo += children
    return found


def resident(pid: int) -> int:
    """Resident bytes of all descendants of a process."""
    pages = 0
    for child in below(pid):
        with contextlib.suppress(OSError, IndexError, ValueError):
            pages += int(Path(f"/proc/{child}/statm").read_text().split()[1])
    return pages * resource.getpagesize()


def kill_below(pid: int) -> None:
    """SIGKILL to every descendant, until none is left that was not killed."""
    killed: set[int] = set()
    while fresh := set(below(pid)) - killed:
        for child in fresh:
            with contextlib.suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)
        killed |= fresh


def report(plan: dict[str, Any], content: dict[str, Any]) -> None:
    os.write(plan["report"], json.dumps(content).encode())


def call(answer: int) -> None:
    """Call the function that standard input names and write what it returned."""
    request = json.load(sys.stdin)
    sys.path[:] = request["path"]
    value: Any = None
    error = ""
    try:
        module = __import__(request["module"], fromlist=[request["function"]])
        value = getattr(module, request["function"])(**request["arguments"])
        text = json.dumps({"value": value, "error": ""})
    except BaseException as raised:
        import traceback

        traceback.print_exc()
        error = f"{type(raised).__name__}: {raised}"
        text = json.dumps({"value": None, "error": error[:10000]})
    sys.stdout.flush()
    with os.fdopen(answer, "wb") as file:
        file.write(text.encode())
    if error:
        sys.exit(1)


if __name__ == "__main__":
    if sys.argv[1] == "watch":
        watch(json.loads(sys.argv[2]))
    else:
        call(int(sys.argv[2]))
