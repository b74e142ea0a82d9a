"""A target survives JSON, and answers with rates that keep their order."""

import copy
import json
import pickle

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headway.core.errors import BadInput
from headway.core.target import (
    SCHEMA,
    ComputeRate,
    Gpu,
    KernelPoint,
    KernelRate,
    MemoryLevel,
    Target,
)

rates = st.floats(1e6, 1e15)
seconds = st.floats(0, 1)
sizes = st.integers(0, 2**50)
names = st.text(max_size=12)

levels = st.builds(MemoryLevel, names, sizes, rates, rates, seconds, st.integers(1, 64), sizes)
points = st.builds(KernelPoint, st.integers(1, 4096), sizes, st.floats(0, 1))
kernels = st.builds(
    KernelRate, names, st.floats(0.1, 64), names, st.integers(1, 64), seconds, st.lists(points, max_size=3).map(tuple)
)
targets = st.builds(
    Target,
    name=names,
    fingerprint=names,
    memory=st.lists(levels, min_size=1, max_size=4, unique_by=lambda level: level.level).map(tuple),
    compute=st.lists(st.builds(ComputeRate, names, names, rates, rates), max_size=3).map(tuple),
    dispatch_s=seconds,
    crossing_s=seconds,
    ram_bytes=sizes,
    available_bytes=sizes,
    cores=st.integers(1, 256),
    isa=st.lists(names, max_size=3).map(tuple),
    barrier_s=seconds,
    kernels=st.lists(kernels, max_size=3).map(tuple),
    gpu=st.lists(st.builds(Gpu, names, sizes, names, st.integers(1, 200)), max_size=2).map(tuple),
    versions=st.dictionaries(names, names, max_size=3),
    level=names,
    measured_at=names,
)


def example() -> Target:
    return Target(
        name="example",
        fingerprint="f00d",
        memory=(
            MemoryLevel("L1", 32 << 10, 4e11, 2e11, 1e-9),
            MemoryLevel("L2", 1 << 20, 2e11, 1e11, 4e-9),
            MemoryLevel("L3", 32 << 20, 1.8e11, 9e10, 1.2e-8, shared_by=4, effective_bytes=24 << 20),
            MemoryLevel("DRAM", 8 << 30, 4e10, 3e10, 1e-7, shared_by=4),
        ),
        compute=(ComputeRate("f32", "fma256", 4e11, 1e11), ComputeRate("f32", "fma512", 8e11, 2e11)),
        dispatch_s=1e-6,
        crossing_s=1e-7,
        ram_bytes=8 << 30,
        available_bytes=4 << 30,
        cores=4,
        isa=("avx2",),
        versions={"torch": "2"},
    )


@settings(deadline=None)
@given(targets)
def test_json_gives_the_same_target_back(target):
    assert Target.from_json(json.loads(target.dumps())) == target
    assert pickle.loads(pickle.dumps(target)) == target  # noqa: S301
    assert copy.deepcopy(target) == target


def test_the_json_has_the_keys_that_scripts_read():
    document = json.loads(example().dumps())
    assert {"memory", "compute", "dispatch_s", "ram_bytes", "isa", "gpu", "schema"} <= set(document)
    assert {"level", "size_bytes", "read_bytes_per_s"} <= set(document["memory"][0])
    assert {"dtype", "unit", "ops_per_s"} <= set(document["compute"][0])


def test_a_file_is_read_back(tmp_path):
    path = tmp_path / "target.json"
    path.write_text(example().dumps())
    assert Target.load(path) == example()


def broken(change):
    document = example().to_json()
    change(document)
    return document


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda d: d.pop("cores"), "cores"),
        (lambda d: d.update(schema=SCHEMA + 1), "newer"),
        (lambda d: d.update(schema=True), "schema"),
        (lambda d: d.update(surprise=1), "surprise"),
        (lambda d: d.update(cores=0), "0 cores"),
        (lambda d: d.update(cores=1.5), "whole"),
        (lambda d: d.update(cores=True), "cores"),
        (lambda d: d.update(name=3), "name"),
        (lambda d: d.update(memory=[]), "memory"),
        (lambda d: d.update(memory={}), "list"),
        (lambda d: d.update(isa=["avx2", 1]), "isa[1]"),
        (lambda d: d.update(versions={"torch": 2}), "versions"),
        (lambda d: d.update(dispatch_s=-1), "dispatch_s"),
        (lambda d: d.update(dispatch_s=float("nan")), "dispatch_s"),
        (lambda d: d.update(dispatch_s=1.5), "dispatch_s=1.5: no operator takes over 1 s"),
        (lambda d: d["memory"].append(d["memory"][1]), "memory level 'L2' twice"),
        (lambda d: d.update(seed=0), "seed"),
        (lambda d: d["memory"][1].update(read_bytes_per_s=0), "memory[1].read_bytes_per_s"),
        (lambda d: d["memory"][1].update(read_bytes_per_s="fast"), "memory[1].read_bytes_per_s"),
        (lambda d: d["compute"].append(7), "compute[2]"),
    ],
)
def test_a_wrong_file_names_the_wrong_key(change, named):
    with pytest.raises(BadInput, match=named.replace("[", r"\[").replace("]", r"\]")):
        Target.from_json(broken(change))


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff\xfe", b"null", b"[" * 100_000])
def test_a_file_that_is_no_target_is_refused(tmp_path, content):
    path = tmp_path / "target.json"
    path.write_bytes(content)
    with pytest.raises(BadInput, match=r"target\.json"):
        Target.load(path)


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(BadInput, match="No such file"):
        Target.load(tmp_path / "none.json")


def test_the_level_that_holds_a_working_set():
    target = example()
    assert target.level_for(1000).level == "L1"
    assert target.level_for(40 << 10).level == "L2"
    assert target.level_for(40 << 10, threads=2).level == "L1"  # two private instances
    assert target.level_for(24 << 20).level == "L3"
    assert target.level_for((24 << 20) + 1, threads=4).level == "DRAM"  # one shared instance, as measured


@settings(deadline=None)
@given(st.floats(1, 1e12), st.floats(1, 1e12), st.integers(1, 8))
def test_a_larger_working_set_is_never_read_faster(one, other, threads):
    target = example()
    small, large = sorted((one, other))
    fast, slow = (target.read_rate(target.level_for(size, threads), threads) for size in (small, large))
    assert fast >= slow


@settings(deadline=None)
@given(st.integers(1, 16))
def test_one_more_thread_never_slows(threads):
    target = example()
    for level in target.memory:
        assert target.read_rate(level, threads + 1) >= target.read_rate(level, threads)
    assert target.compute_rate("f32", threads + 1) >= target.compute_rate("f32", threads)
    assert target.read_rate(target.dram, 4) == target.dram.read_bytes_per_s


def test_compute_rate_takes_the_fastest_unit_or_the_named_one():
    assert example().compute_rate("f32", 4) == 8e11
    assert example().compute_rate("f32", 1, "fma256") == 1e11
    with pytest.raises(BadInput, match="bf16"):
        example().compute_rate("bf16", 1)


def test_a_kernel_measured_again_replaces_the_old_rate():
    old = KernelRate("int4", 4.5, "avx2", 2, 1e-6, (KernelPoint(1, 10, 1e-11),))
    new = KernelRate("int4", 4.5, "avx2", 2, 2e-6, (KernelPoint(1, 10, 2e-11),))
    other = KernelRate("int4", 4.5, "avx512", 2, 1e-6, ())
    target = example().with_kernels([old, other]).with_kernels([new])
    assert set(target.kernels) == {new, other}
