"""A made-up machine with round figures, and instruments that answer as if they measured it."""

from headway.core.target import ComputeRate, KernelPoint, KernelRate, MemoryLevel, Target

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30


def kernel(form, bits, seconds_per_bit=1e-12, ops_per_s=1e12, threads=1, call_s=1e-6):
    """A kernel that reads bits at a rate (three times slower from DRAM) and multiplies at another."""
    points = [
        KernelPoint(rows, size, max(bits * seconds_per_bit * slow, 2 * rows / ops_per_s))
        for rows in (1, 8, 128)
        for size, slow in ((4 * MIB, 1), (128 * MIB, 3))
    ]
    return KernelRate(form, bits, "avx2", threads, call_s, tuple(points))


def make_target(*kernels, cores=2):
    """Two levels of private cache, 32 MiB shared, DRAM at 30 GB/s a core."""
    return Target(
        name="example",
        fingerprint="f00d",
        memory=(
            MemoryLevel("L1", 32 * KIB, 2e11 * cores, 2e11, 1e-9),
            MemoryLevel("L2", MIB, 1e11 * cores, 1e11, 4e-9),
            MemoryLevel("L3", 32 * MIB, 9e10 * cores, 9e10, 1.2e-8, shared_by=cores),
            MemoryLevel("DRAM", 8 * GIB, 2e10 * cores, 3e10, 1e-7, shared_by=cores),
        ),
        compute=(ComputeRate("f32", "fma256", 1e11 * cores, 1e11), ComputeRate("int8", "vnni", 4e11 * cores, 4e11)),
        dispatch_s=1e-6,
        crossing_s=1e-7,
        ram_bytes=8 * GIB,
        available_bytes=4 * GIB,
        cores=cores,
        isa=("avx2",),
        barrier_s=2e-7,
        kernels=tuple(kernels),
    )


class FakeInstruments:
    """Answers like the machine of `make_target`; `caches` as [(bytes, bytes/s, seconds)], the last for all beyond."""

    def __init__(
        self, caches=((32 * KIB, 2e11, 1e-9), (MIB, 1e11, 4e-9), (24 * MIB, 9e10, 1.2e-8), (None, 3e10, 1e-7))
    ):
        self.caches = caches
        self.swept = 0

    def _at(self, size):
        return next(cache for cache in self.caches if cache[0] is None or size <= cache[0])

    def units(self):
        return [("fma256", "f32", "avx2"), ("vnni", "int8", "avx2")]

    def compute(self, unit, cpus, burst_s, total_s):
        rate = {"fma256": 1e11, "vnni": 4e11}[unit]
        return [[rate, rate * 0.01, rate] for _ in cpus]  # one burst was interrupted

    def read(self, bytes, burst_bytes, cpus, total_s):
        return [[self._at(bytes)[1]] * 3 for _ in cpus]

    def chase(self, bytes, cpu, total_s):
        return [self._at(bytes)[2]] * 3

    def barrier(self, cpus, total_s):
        return [2e-7] * 3

    def nothing(self):
        return None

    def Sweeper(self, bytes, cpus):
        return self

    def sweep(self):
        self.swept += 1
