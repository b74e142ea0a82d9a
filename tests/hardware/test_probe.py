"""The probe fills a target, keeps it, and measures again what it cannot read."""

import json
import os
import sys
from types import SimpleNamespace

import pytest
from hardware_examples import GIB, KIB, MIB, FakeInstruments

from headway.core.errors import BadInput, Lacking
from headway.core.progress import Progress
from headway.core.target import KernelRate, Target
from headway.hardware import bench as bench_module
from headway.hardware import probe as probe_module
from headway.hardware.bench import Bench, call_seconds, native_instruments
from headway.hardware.machine import Cache, Machine, read_machine
from headway.hardware.probe import current_target, find_gpus, kept_target, probe, remember, target_file

MACHINE = Machine(
    "Example", "x86_64", ("avx2",), (0, 1), None, 8 * GIB, 4 * GIB, "6",
    (Cache(1, 32 * KIB, 1), Cache(2, MIB, 1), Cache(3, 32 * MIB, 2)),
)  # fmt: skip


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("HEADWAY_HOME", str(tmp_path))
    return tmp_path


@pytest.fixture
def measured():
    return probe("quick", machine=MACHINE, instruments=FakeInstruments())


def test_a_probe_fills_every_part(measured):
    assert [level.level for level in measured.memory] == ["L1", "L2", "L3", "DRAM"]
    assert {(rate.dtype, rate.unit): rate.ops_per_s_one_core for rate in measured.compute} == {
        ("f32", "fma256"): 1e11,
        ("int8", "vnni"): 4e11,
    }
    assert measured.compute[0].ops_per_s == 2e11
    assert measured.dispatch_s > 0 and measured.crossing_s > 0 and measured.barrier_s == 2e-7
    assert (measured.cores, measured.ram_bytes, measured.isa) == (2, 8 * GIB, ("avx2",))
    assert measured.fingerprint == MACHINE.fingerprint
    assert "python" in measured.versions


def test_another_level_is_refused():
    with pytest.raises(BadInput, match="quick, default, deep"):
        probe("thorough", machine=MACHINE, instruments=FakeInstruments())


def test_progress_ends_at_its_total():
    class Counting(Progress):
        done, total = 0.0, None

        def task(self, what, total=None):
            from contextlib import contextmanager

            from headway.core.progress import Task

            outer = self
            outer.total = total

            class One(Task):
                def advance(self, steps=1):
                    outer.done += steps

            @contextmanager
            def inside():
                yield One()

            return inside()

    listener = Counting()
    probe("quick", listener, machine=MACHINE, instruments=FakeInstruments())
    assert listener.done == listener.total


def test_without_torch_dispatch_is_the_crossing(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    target = probe("quick", machine=MACHINE, instruments=FakeInstruments())
    assert target.dispatch_s == target.crossing_s
    assert list(find_gpus()) == []


def test_gpus_are_listed_through_torch(monkeypatch):
    card = SimpleNamespace(name="Card", total_memory=80 * GIB, major=9, minor=0, multi_processor_count=132)
    cuda = SimpleNamespace(is_available=lambda: True, device_count=lambda: 2, get_device_properties=lambda index: card)
    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(cuda=cuda))
    gpus = list(find_gpus())
    assert [gpu.name for gpu in gpus] == ["Card", "Card"]
    assert (gpus[0].capability, gpus[0].memory_bytes) == ("9.0", 80 * GIB)


def test_what_is_kept_comes_back(measured):
    remember(measured)
    assert kept_target(MACHINE) == measured


@pytest.mark.parametrize("damage", ["", "{", '{"schema": 99}'])
def test_a_damaged_file_is_nothing_kept(measured, damage):
    remember(measured)
    target_file(MACHINE).write_text(damage)
    assert kept_target(MACHINE) is None
    assert kept_target(Machine(**{**vars(MACHINE), "cpu": "Other"})) is None


def test_another_version_forgets_the_kernels_it_did_not_run(measured, monkeypatch):
    kept = measured.with_kernels([KernelRate("int4", 4.5, "avx2", 1, 0.0, ())])
    remember(kept)
    assert kept_target(MACHINE) == kept
    monkeypatch.setattr(probe_module.importlib.metadata, "version", lambda package: "99")
    assert kept_target(MACHINE).kernels == ()


def test_a_file_of_another_machine_under_this_name_is_nothing_kept(measured):
    remember(measured)
    document = json.loads(measured.dumps())
    target_file(MACHINE).write_text(json.dumps({**document, "fingerprint": "other"}))
    assert kept_target(MACHINE) is None


def test_the_current_target_is_measured_once(monkeypatch):
    monkeypatch.setattr(probe_module, "native_instruments", FakeInstruments)
    monkeypatch.setattr(probe_module, "read_machine", lambda: MACHINE)
    monkeypatch.setattr(os, "getloadavg", lambda: (0.5, 9.0, 9.0))
    first = current_target()
    monkeypatch.setattr(probe_module, "native_instruments", lambda: pytest.fail("measured again"))
    assert current_target() == first


def test_rates_of_a_busy_machine_are_not_kept(monkeypatch):
    monkeypatch.setattr(probe_module, "native_instruments", FakeInstruments)
    monkeypatch.setattr(probe_module, "read_machine", lambda: MACHINE)
    monkeypatch.setattr(os, "getloadavg", lambda: (2.1 * MACHINE.cores, 0.0, 0.0))
    said = []
    listener = Progress()
    monkeypatch.setattr(listener, "note", said.append)
    current_target(listener)
    assert kept_target(MACHINE) is None and "busy" in said[0]


def test_a_missing_extension_is_named(monkeypatch):
    def missing(name):
        raise ImportError("no such file")

    monkeypatch.setattr(bench_module.importlib, "import_module", missing)
    with pytest.raises(Lacking, match="extension"):
        native_instruments()


def test_a_call_costs_more_than_nothing():
    assert call_seconds(lambda: sum(range(1000)), 0.001) > call_seconds(lambda: None, 0.001) > 0


def test_an_interrupted_burst_falls_out():
    assert Bench(FakeInstruments(), (0, 1), 0.001).compute("fma256", every=True) == 2e11


# On the real machine: order only, never an exact figure.


@pytest.fixture(scope="module")
def real():
    machine = read_machine()
    return Bench(native_instruments(), machine.cpus[: machine.cores], 0.01)


def test_the_caches_of_this_machine_are_read_faster_than_its_memory(real):
    assert real.read(16 * KIB, every=False) > 1.5 * real.read(256 * MIB, every=False)
    assert real.latency(16 * KIB) < 0.5 * real.latency(256 * MIB)


def test_every_unit_of_this_machine_runs(real):
    units = real.instruments.units()
    assert {"f32", "int8"} <= {dtype for _, dtype, _ in units}
    for unit, _, _ in units:
        assert real.compute(unit, every=False) > 1e8


def test_wrong_requests_to_the_instruments_are_refused(real):
    with pytest.raises(ValueError, match="no unit"):
        real.instruments.compute("warp", [0], 1e-4, 0.01)
    for bad in ([], list(range(2000))):
        with pytest.raises(ValueError, match="cpus"):
            real.instruments.read(1 << 20, 1 << 16, bad, 0.01)
    for total in (0.0, -1.0, float("nan"), 1e9):
        with pytest.raises(ValueError, match="total_s"):
            real.instruments.barrier([0], total)
    with pytest.raises(ValueError, match="bytes"):
        real.instruments.read(10, 1 << 16, [0], 0.01)
    with pytest.raises(ValueError, match="bytes"):
        real.instruments.chase(64, 0, 0.01)


def test_a_target_of_this_machine_survives_its_file(tmp_path):
    target = probe("quick")
    path = tmp_path / "t.json"
    path.write_text(target.dumps())
    assert Target.load(path) == target
    assert target.memory[-1].level == "DRAM"
