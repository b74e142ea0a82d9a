"""Run a command in an empty network namespace, and learn where it connected and what it wrote.

System calls are watched by strace. Where user namespaces are off, connections are watched all the same; where strace
or its right to trace is missing, an audit hook in every Python process takes its place. `Seen.how` says which it was.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).parent
NAMESPACE = ("unshare", "-rn")
MAKES = "creat,mkdir,mkdirat,rename,renameat,renameat2,link,linkat,symlink,symlinkat,mknod,mknodat"
TRACER = (
    "strace",
    "-f",
    "--seccomp-bpf",
    "-y",
    "-qq",
    "-s",
    "4096",
    "-e",
    f"trace=connect,open,openat,openat2,{MAKES}",
    "-e",
    "signal=none",
)
_CALL = re.compile(r"^(?:\d+ +)?(\w+)\((.*)")
_PATH = re.compile(r'(?:(?:AT_FDCWD|\d+)<([^>]*)>, )?"((?:[^"\\]|\\.)*)"')
_WRITES = re.compile(r"O_(WRONLY|RDWR|CREAT|TMPFILE)")
_ADDRESS = re.compile(r'inet_addr\("([^"]*)"\)|inet_pton\(AF_INET6, "([^"]*)"')
DEVICES = ("/dev/null", "/dev/tty", "/dev/pts/", "/dev/ptmx", "/proc/self/", "/proc/thread-self/")


@dataclass(frozen=True)
class Seen:
    how: str
    output: str
    connected: list[str]
    """Addresses that are not loopback."""
    written: list[str]
    """Paths opened to write or made, devices left out."""

    def outside(self, folders: Sequence[Path]) -> list[str]:
        inside = tuple(f"{os.path.realpath(folder)}/" for folder in folders)
        return sorted({p for p in self.written if not f"{os.path.realpath(p)}/".startswith(inside)})


def works(command: Sequence[str]) -> bool:
    return bool(shutil.which(command[0])) and not subprocess.run([*command, "true"], capture_output=True).returncode


def watched(command: Sequence[str], environment: Mapping[str, str], folder: Path) -> Seen:
    """Run it to its end with exit code 0."""
    log = folder / "calls.log"
    log.unlink(missing_ok=True)
    tracer = (*TRACER, "-o", str(log))
    alone = NAMESPACE if works(NAMESPACE) else ()
    traced = works(tracer)
    given = {**environment, "PYTHONDONTWRITEBYTECODE": "1"}
    if not traced:
        given |= {"HEADWAY_AUDIT_LOG": str(log), "PYTHONPATH": str(HERE / "audit")}
    log.unlink(missing_ok=True)
    words = [*alone, *(tracer if traced else ()), *command]
    run = subprocess.run(words, env=given, capture_output=True, text=True, cwd=folder)
    assert run.returncode == 0, f"{command}: {run.stderr[-2000:]}"
    connected, written = (_traced if traced else _audited)(log.read_text(errors="replace"))
    how = " and ".join(
        [*(["an empty network namespace"] if alone else []), "strace" if traced else "an audit hook in every Python"]
    )
    return Seen(how, run.stdout, connected, [path for path in written if not path.startswith(DEVICES)])


def _traced(log: str) -> tuple[list[str], list[str]]:
    connected, written = [], []
    for line in log.splitlines():
        found = _CALL.match(line)
        if found is None:
            continue
        call, arguments = found.groups()
        if call == "connect":
            address = _ADDRESS.search(arguments)
            connected += [where for where in (address.groups() if address else ()) if where]
            continue
        if call.startswith("open") and not _WRITES.search(arguments):
            continue
        if re.search(r"= -1 E(NOENT|EXIST|ROFS|ACCES|NOTDIR)", arguments):  # nothing came of it
            continue
        base, path = _PATH.findall(arguments)[-1]  # of two, the last is the new name
        written.append(str(Path(base, path)))
    return [where for where in connected if not loopback(where)], written


def _audited(log: str) -> tuple[list[str], list[str]]:
    lines = [line.split(" ", 1) for line in log.splitlines()]
    connected = [where for what, where in lines if what == "connect" and not loopback(where)]
    return connected, [path for what, path in lines if what == "write"]


def loopback(address: str) -> bool:
    return address.startswith(("127.", "::1", "localhost"))
