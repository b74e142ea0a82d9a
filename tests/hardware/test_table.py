"""Tables hold every figure, readable."""

import pytest
from hardware_examples import kernel, make_target

from headway.hardware.table import bytes_text, probe_table, seconds_text


def test_every_rate_has_its_row():
    target = make_target(kernel("int4", 4.5))
    rows = probe_table(target)
    whats = [row[0] for row in rows]
    assert {"L1 read", "DRAM read", "f32 fma256", "operator dispatch", "barrier", "memory"} <= set(whats)
    assert sum(what.startswith("int4") for what in whats) == len(target.kernels[0].points)
    assert {row[0]: row[1:3] for row in rows}["DRAM read"] == ("30.0 GB/s", "40.0 GB/s")
    assert all(len(row) == 4 and all(isinstance(cell, str) for cell in row) for row in rows)


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1536, "1.5 KiB"),
        (48 << 10, "48 KiB"),
        (32 << 20, "32 MiB"),
        (5 << 50, "5120 TiB"),
    ],
)
def test_bytes_for_people(count, text):
    assert bytes_text(count) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(2.0, "2 s"), (0.0015, "1.5 ms"), (250e-6, "250 us"), (1.2e-8, "12 ns"), (1.44e-7, "144 ns"), (0, "0 ns")],
)
def test_seconds_for_people(seconds, text):
    assert seconds_text(seconds) == text
