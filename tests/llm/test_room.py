"""A model that there is no room for is refused before its weights are packed; one that fits runs."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from tiny_models import TinyFolder, llama_tensors

from headway.core.errors import Lacking
from headway.llm.hugging_face import load_folder
from headway.llm.room import check_room

PACKED = 4 * (1024 * 1024 * 2 + 3 * 1024 * 3072)
"""Bytes of the largest matrices of the tiny model that is made wide here."""


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = TinyFolder(tmp_path_factory.mktemp("room") / "wide")
    folder.config |= {"hidden_size": 1024, "intermediate_size": 3072, "num_hidden_layers": 1}
    folder.tensors = llama_tensors(folder.config)
    folder.write()
    return folder.path


def group(root: Path, free: int) -> Path:
    """A machine of 16 GiB whose control group leaves `free` bytes."""
    for name, text in {
        "proc/meminfo": "MemTotal: 16777216 kB\nMemAvailable: 8388608 kB\n",
        "proc/self/cgroup": "0::/box\n",
        "sys/fs/cgroup/box/memory.max": str(1_000_000_000),
        "sys/fs/cgroup/box/memory.current": str(1_000_000_000 - free),
    }.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def needed(path: Path) -> int:
    """What the message of a refusal says, to the byte that decides it."""
    model = load_folder(path)
    weights = {site.name: model.weight(site.name) for site in model.sites()}
    low, high = 0, 2 * PACKED
    while high - low > 1:
        middle = (low + high) // 2
        try:
            check_room("wide", model.architecture, weights, group(path.parent / "machine", middle))
            high = middle
        except Lacking:
            low = middle
    return high


def test_a_group_with_nine_tenths_of_the_prediction_refuses_with_both_numbers(wide: Path, tmp_path: Path) -> None:
    model = load_folder(wide)
    weights = {site.name: model.weight(site.name) for site in model.sites()}
    needs = needed(wide)
    assert PACKED < needs < PACKED * 1.3
    with pytest.raises(Lacking, match=r"^wide needs [\d.]+ MB of memory, [\d.]+ MB is left; ") as refused:
        check_room("wide", model.architecture, weights, group(tmp_path, int(0.9 * needs)))
    assert refused.value.exit_code == 3
    said = [float(number) * 1e6 for number in re.findall(r"([\d.]+) MB", str(refused.value))]
    assert said == pytest.approx([needs, 0.9 * needs], rel=0.01)
    check_room("wide", model.architecture, weights, group(tmp_path, int(1.1 * needs)))


def test_weights_that_are_packed_take_nothing_more(wide: Path, tmp_path: Path) -> None:
    model = load_folder(wide)
    weights = {site.name: model.weight(site.name) for site in model.sites()}
    for weight in weights.values():
        weight.native()
    check_room("wide", model.architecture, weights, group(tmp_path, needed(wide) // 10))


RUN = """
import json, resource, sys
from pathlib import Path

from headway.core.errors import Lacking
from headway.kernels import cpu
from headway.llm import native
from headway.llm.hugging_face import load_folder

cpu.set_threads(1)
model = load_folder(Path(sys.argv[1]))
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
limit = used + int(sys.argv[2])
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
try:
    model.generate([1, 2, 3], max_tokens=4)
    print(json.dumps({"exit": 0, "packed": cpu.memory()["weights"]["peak"]}))
except Lacking as error:
    print(json.dumps({"exit": error.exit_code, "packed": cpu.memory()["weights"]["peak"], "said": str(error)}))
"""


@pytest.mark.parametrize(("share", "code"), [(0.9, 3), (1.1, 0)])
def test_an_address_limit_decides_before_anything_is_packed(wide: Path, share: float, code: int) -> None:
    room = str(int(share * needed(wide)))
    done = subprocess.run([sys.executable, "-c", RUN, str(wide), room], capture_output=True, text=True, check=False)
    assert not done.returncode, done.stderr
    found = json.loads(done.stdout)
    assert found["exit"] == code
    assert (found["packed"] == 0) == (code == 3)
    if code == 3:
        assert "needs" in found["said"] and "is left" in found["said"]
