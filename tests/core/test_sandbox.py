"""Children are held to their limits, report what they used, and outlive nobody."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from headway.core import sandbox_child
from headway.core.errors import BadInput, Lacking
from headway.core.sandbox import Limits, run_command, run_function

MB = 1 << 20
PYTHON = sys.executable


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def wait_until_dead(*pids: int, seconds: float = 20.0) -> bool:
    deadline = time.monotonic() + seconds
    while any(map(alive, pids)) and time.monotonic() < deadline:
        time.sleep(0.01)
    return not any(map(alive, pids))


def test_a_function_returns_its_value_and_its_output() -> None:
    found = run_function("sandboxed:add", {"a": 2, "b": 3})
    assert found.ok and found.value == {"sum": 5} and found.stdout == "adding\n"
    assert found.exit_code == 0 and found.killed_by is None and found.explain() == "finished"
    assert found.cpu_s > 0 and found.wall_s > 0 and found.peak_rss_bytes > MB


def test_an_exception_is_reported_with_its_traceback() -> None:
    found = run_function("sandboxed:fail", {"message": "no"})
    assert not found.ok and found.error == found.explain() == "ValueError: no"
    assert "in fail" in found.stderr and found.exit_code == 1


@pytest.mark.parametrize(
    ("function", "arguments", "words"),
    [
        ("sandboxed:unprintable", {}, "not JSON serializable"),
        ("sandboxed:leave", {"code": 7}, "did not return"),
        ("absent_module:f", {}, "No module named 'absent_module'"),
        ("sandboxed:absent", {}, "has no attribute 'absent'"),
    ],
)
def test_a_function_that_gives_no_value_says_why(function: str, arguments: dict[str, object], words: str) -> None:
    found = run_function(function, arguments)
    assert words in found.error and not found.ok


def test_a_name_without_a_function_is_bad_input() -> None:
    with pytest.raises(BadInput, match="module:function"):
        run_function("sandboxed")


def test_a_command_gets_its_input_environment_and_folder(tmp_path: Path) -> None:
    code = "import os, sys; print(os.environ['X'], os.getcwd(), sys.stdin.read()); sys.exit(3)"
    found = run_command([PYTHON, "-c", code], stdin=b"in", environment={"X": "é"}, folder=tmp_path)
    assert found.stdout == f"é {tmp_path} in\n" and found.exit_code == 3 and found.explain() == "exit code 3"


def test_input_nobody_reads_is_no_error() -> None:
    assert run_command([PYTHON, "-c", ""], stdin=b"x" * MB).ok


def test_a_program_that_is_not_there_is_bad_input() -> None:
    with pytest.raises(BadInput, match="cannot run 'no-such-program'"):
        run_command(["no-such-program"])
    with pytest.raises(Lacking, match="cannot start"):
        run_command(["true"], folder="/no/such/folder")


def test_peak_memory_is_that_of_the_child_not_of_this_process() -> None:
    """The kernel hands a parent's peak on through vfork: this process is made larger than the child on purpose."""
    ballast = bytearray(150 * MB)
    ballast[::4096] = b"1" * len(ballast[::4096])
    small = run_function("sandboxed:touch", {"megabytes": 0})
    large = run_function("sandboxed:touch", {"megabytes": 64})
    assert small.peak_rss_bytes < 60 * MB
    assert abs(large.peak_rss_bytes - small.peak_rss_bytes - 64 * MB) < 4 * MB
    assert len(ballast)


def test_memory_beyond_the_limit_ends_the_child() -> None:
    found = run_function("sandboxed:touch", {"megabytes": 300, "seconds": 30.0}, Limits(memory_bytes=100 * MB))
    assert found.killed_by == "memory" and found.exit_code is None
    assert found.explain() == "stopped at its memory limit" and found.wall_s < 25


def test_the_memory_limit_counts_all_descendants_together() -> None:
    found = run_function("sandboxed:children", {"count": 3, "megabytes": 60}, Limits(memory_bytes=150 * MB))
    assert found.killed_by == "memory" and found.wall_s < 30


def test_address_space_beyond_the_limit_fails_inside_the_child() -> None:
    found = run_function("sandboxed:allocate", {"megabytes": 4000}, Limits(address_bytes=1000 * MB))
    assert found.error.startswith("MemoryError")


def test_wall_and_cpu_time_beyond_their_limits_end_the_child() -> None:
    wall = run_function("sandboxed:sleep", {"seconds": 60}, Limits(wall_s=0.3))
    assert wall.killed_by == "wall" and 0.3 <= wall.wall_s < 20 and wall.signal == signal.SIGKILL
    cpu = run_function("sandboxed:spin", {}, Limits(cpu_s=1))
    assert cpu.killed_by == "cpu" and cpu.cpu_s >= 0.9


def test_a_crash_is_no_limit() -> None:
    found = run_command([PYTHON, "-c", "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)"])
    assert found.killed_by == "signal" and found.signal == signal.SIGSEGV
    assert found.explain() == f"ended by signal {int(signal.SIGSEGV)}"


def test_output_is_cut_at_its_limit_and_never_blocks_the_child() -> None:
    found = run_command([PYTHON, "-c", "print('x' * 3000000)"], Limits(output_bytes=1000))
    assert found.ok and found.stdout == "x" * 1000


def test_what_a_child_leaves_behind_is_ended_with_it(tmp_path: Path) -> None:
    path = tmp_path / "pid"
    assert run_function("sandboxed:detach", {"path": str(path)}).ok
    assert wait_until_dead(int(path.read_text()))


def test_a_killed_parent_takes_child_and_grandchild_along(tmp_path: Path) -> None:
    path = tmp_path / "pids"
    code = f"import sys; sys.path[:0] = {sys.path!r}; import sandboxed; sandboxed.run_inside({str(path)!r})"
    parent = subprocess.Popen([PYTHON, "-c", code])
    deadline = time.monotonic() + 60
    while not path.exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    pids = [int(pid) for pid in path.read_text().split()]
    assert all(map(alive, pids))
    parent.kill()
    parent.wait()
    assert wait_until_dead(*pids)


def test_ctrl_c_ends_the_child(tmp_path: Path) -> None:
    path = tmp_path / "pids"

    def interrupt() -> None:
        while not path.exists():
            time.sleep(0.02)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt, daemon=True).start()
    with pytest.raises(KeyboardInterrupt):
        run_function("sandboxed:tell_and_sleep", {"path": str(path)}, Limits(wall_s=60))
    assert wait_until_dead(*map(int, path.read_text().split()))


def test_descendants_and_their_memory_are_counted() -> None:
    with subprocess.Popen([PYTHON, "-c", "import time; time.sleep(60)"]) as process:
        assert process.pid in sandbox_child.below(os.getpid())
        deadline = time.monotonic() + 20  # it grows while the interpreter starts
        while sandbox_child.resident(os.getpid()) < MB and time.monotonic() < deadline:
            time.sleep(0.01)
        assert sandbox_child.resident(os.getpid()) >= MB
        process.kill()
    assert process.pid not in sandbox_child.below(os.getpid())


def test_the_call_side_answers_on_its_descriptor(monkeypatch: pytest.MonkeyPatch) -> None:
    request = {"module": "sandboxed", "function": "add", "arguments": {"a": 1, "b": 1}, "path": list(sys.path)}
    reader, writer = os.pipe()
    monkeypatch.setattr(sys, "stdin", io.StringIO(json.dumps(request)))
    sandbox_child.call(writer)
    with os.fdopen(reader) as file:
        assert json.load(file) == {"value": {"sum": 2}, "error": ""}
