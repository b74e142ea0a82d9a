"""Facts are read from /proc, /sys and control groups of any layout, and a machine without them still works."""

import os

import pytest
from hardware_examples import GIB, KIB, MIB

from headway.hardware.machine import Cache, cpu_list, cpu_quota, memory_limit, read_machine, room_bytes, size_bytes

CPUINFO = """processor\t: 0
model name\t: Example CPU 9000
flags\t\t: fpu sse2 avx2 fma smep avx512f avx_vnni

processor\t: 1
model name\t: Another
flags\t\t: fpu
"""


def lay_out(root, files):
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def cache(index, level, kind, size, shared):
    at = f"sys/devices/system/cpu/cpu1/cache/index{index}"
    return {f"{at}/level": level, f"{at}/type": kind, f"{at}/size": size, f"{at}/shared_cpu_list": shared}


@pytest.fixture
def files():
    return {
        "proc/cpuinfo": CPUINFO,
        "proc/meminfo": "MemTotal:       16777216 kB\nMemFree: 5 kB\nMemAvailable:   8388608 kB\n",
        "proc/self/status": "Name:\tx\nCpus_allowed_list:\t1-3,6\n",
        "proc/sys/kernel/osrelease": "6.1.0\n",
        **cache(0, "1", "Data", "48K", "1"),
        **cache(1, "1", "Instruction", "32K", "1"),
        **cache(2, "2", "Unified", "2M", "1"),
        **cache(3, "3", "Unified", "32768K", "0-7"),
    }


def test_a_whole_machine(tmp_path, files):
    machine = read_machine(lay_out(tmp_path, files))
    assert machine.cpu == "Example CPU 9000"
    assert machine.isa == ("sse2", "avx2", "fma", "avx512f", "avx_vnni")
    assert machine.cpus == (1, 2, 3, 6)
    assert machine.caches == (Cache(1, 48 * KIB, 1), Cache(2, 2 * MIB, 1), Cache(3, 32 * MIB, 4))
    assert (machine.ram_bytes, machine.available_bytes) == (16 * GIB, 8 * GIB)
    assert machine.cores == 4
    assert machine.kernel == "6.1.0"
    assert machine.name == "Example CPU 9000, 4 cores, 16 GiB"


def test_a_machine_without_cache_sysfs_or_cpuinfo(tmp_path):
    machine = read_machine(lay_out(tmp_path, {"proc/meminfo": "MemTotal: 1048576 kB\n"}))
    assert machine.caches == ()
    assert machine.flags == ()
    assert machine.cpu
    assert machine.available_bytes == GIB
    assert machine.cores >= 1


def test_an_arm_machine(tmp_path, files):
    text = "processor: 0\nFeatures: fp asimd sve i8mm\nCPU implementer: 0x41\nCPU part: 0xd40\n"
    machine = read_machine(lay_out(tmp_path, {**files, "proc/cpuinfo": text}))
    assert machine.cpu == "0x41 0xd40"
    assert machine.isa == ("asimd", "sve", "i8mm")


def test_forced_kernels_are_another_machine(tmp_path, files, monkeypatch):
    monkeypatch.delenv("HEADWAY_ISA", raising=False)
    seen = {read_machine(lay_out(tmp_path / "free", files)).fingerprint}
    for level in ("portable", "avx2"):
        monkeypatch.setenv("HEADWAY_ISA", level)
        seen.add(read_machine(lay_out(tmp_path / level, files)).fingerprint)
    assert len(seen) == 3


def test_the_fingerprint_tells_machines_apart_and_forgives_reboots(tmp_path, files):
    first = read_machine(lay_out(tmp_path / "a", files)).fingerprint
    moved = {**files, "proc/meminfo": "MemTotal: 16777200 kB\nMemAvailable: 100 kB\n"}
    assert read_machine(lay_out(tmp_path / "b", moved)).fingerprint == first
    for name, text in (
        ("proc/meminfo", "MemTotal: 8388608 kB\n"),
        ("proc/sys/kernel/osrelease", "6.2.0\n"),
        ("proc/self/status", "Cpus_allowed_list:\t1\n"),
        ("proc/cpuinfo", CPUINFO.replace(" avx512f", "")),
    ):
        other = read_machine(lay_out(tmp_path / name.replace("/", "-"), {**files, name: text}))
        assert other.fingerprint != first


GROUP2 = {"proc/self/cgroup": "0::/user/box\n", "sys/fs/cgroup/user/box/x": "", "sys/fs/cgroup/user/x": ""}
GROUP1 = {
    "proc/self/cgroup": "5:cpu,cpuacct:/docker/abc\n4:memory:/docker/abc\n0::/\n",
    "sys/fs/cgroup/unified/x": "",
}


@pytest.mark.parametrize(
    ("group", "limits", "quota"),
    [
        (GROUP2, {"user/box/cpu.max": "150000 100000"}, 1.5),
        (GROUP2, {"user/box/cpu.max": "max 100000"}, None),
        (GROUP2, {"user/box/cpu.max": "max 100000", "user/cpu.max": "50000 100000"}, 0.5),
        (GROUP2, {"user/box/cpu.max": "300000 100000", "user/cpu.max": "200000 100000"}, 2.0),
        (GROUP2, {"user/box/cpu.max": "nonsense"}, None),
        (GROUP2, {"user/box/cpu.max": "100000 0"}, None),
        (GROUP2, {}, None),
        ({"proc/self/cgroup": "0::/../../elsewhere\n"}, {"cpu.max": "100000 100000"}, 1.0),
        (GROUP1, {"cpu,cpuacct/docker/abc/cpu.cfs_quota_us": "250000",
                  "cpu,cpuacct/docker/abc/cpu.cfs_period_us": "100000"}, 2.5),
        (GROUP1, {"cpu,cpuacct/docker/abc/cpu.cfs_quota_us": "-1",
                  "cpu,cpuacct/docker/abc/cpu.cfs_period_us": "100000"}, None),
        (GROUP1, {"cpu/cpu.cfs_quota_us": "100000", "cpu/cpu.cfs_period_us": "50000"}, 2.0),  # the container's own root
    ],
)  # fmt: skip
def test_cpu_quotas_of_both_versions(tmp_path, files, group, limits, quota):
    root = lay_out(tmp_path, {**files, **group, **{f"sys/fs/cgroup/{name}": text for name, text in limits.items()}})
    assert cpu_quota(root) == quota
    assert read_machine(root).cores == (4 if quota is None else max(1, min(4, int(quota))))


@pytest.mark.parametrize(
    ("group", "limits", "limit", "free"),
    [
        (GROUP2, {"user/box/memory.max": "max"}, None, None),
        (GROUP2, {"user/box/memory.max": str(4 * GIB), "user/box/memory.current": str(3 * GIB)}, 4 * GIB, GIB),
        (GROUP2, {"user/box/memory.max": str(4 * GIB), "user/box/memory.current": str(3 * GIB),
                  "user/box/memory.stat": f"anon 1\ninactive_file {GIB}\n"}, 4 * GIB, 2 * GIB),
        (GROUP2, {"user/memory.max": str(2 * GIB), "user/memory.current": str(3 * GIB)}, 2 * GIB, 0),
        (GROUP1, {"memory/docker/abc/memory.limit_in_bytes": "9223372036854771712"}, None, None),
        (GROUP1, {"memory/docker/abc/memory.limit_in_bytes": str(GIB),
                  "memory/docker/abc/memory.usage_in_bytes": str(GIB // 2)}, GIB, GIB // 2),
        (GROUP1, {}, None, None),
    ],
)  # fmt: skip
def test_memory_limits_of_both_versions(tmp_path, files, group, limits, limit, free):
    root = lay_out(tmp_path, {**files, **group, **{f"sys/fs/cgroup/{name}": text for name, text in limits.items()}})
    assert memory_limit(root) == (limit, free)
    machine = read_machine(root)
    assert machine.ram_bytes == (limit or 16 * GIB)
    assert machine.available_bytes == min(8 * GIB, 8 * GIB if free is None else free)


def test_lists_and_sizes_of_the_kernel():
    assert cpu_list("0-2,5, 7-7\n") == [0, 1, 2, 5, 7]
    assert cpu_list("") == cpu_list("x-y") == []
    assert [size_bytes(text) for text in ("48K", "2M", "1G", "512", "", "K", "lots")] == [
        48 * KIB, 2 * MIB, GIB, 512, 0, 0, 0,
    ]  # fmt: skip


def test_this_machine_can_be_read():
    machine = read_machine()
    assert machine.cores >= 1
    assert 0 < machine.available_bytes <= machine.ram_bytes
    assert machine.fingerprint == read_machine().fingerprint


def test_room_is_the_least_of_what_machine_groups_and_address_space_leave(tmp_path, files):
    assert room_bytes(lay_out(tmp_path / "free", files)) == 8 * GIB
    limits = "Limit   Soft Limit   Hard Limit   Units\nMax address space         {}   unlimited   bytes\n"
    unlimited = {"proc/self/limits": limits.format("unlimited"), "proc/self/statm": "1000 1 1 1 0 1 0\n"}
    assert room_bytes(lay_out(tmp_path / "unlimited", {**files, **unlimited})) == 8 * GIB
    limited = {**unlimited, "proc/self/limits": limits.format(GIB)}
    page = os.sysconf("SC_PAGE_SIZE")
    assert room_bytes(lay_out(tmp_path / "address", {**files, **limited})) == GIB - 1000 * page
    group = {"sys/fs/cgroup/user/box/memory.max": str(2 * GIB), "sys/fs/cgroup/user/box/memory.current": str(GIB + 9)}
    assert room_bytes(lay_out(tmp_path / "group", {**files, **GROUP2, **group})) == GIB - 9
    assert room_bytes(lay_out(tmp_path / "both", {**files, **GROUP2, **group, **limited})) == GIB - 1000 * page
    over = {**limited, "proc/self/limits": limits.format(5)}
    assert room_bytes(lay_out(tmp_path / "over", {**files, **over})) == 0
