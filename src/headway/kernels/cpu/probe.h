// Micro-benchmarks of the machine: the tables that each instruction set's probe_*.cpp fills.
// Those files are built with wide flags, so this header holds no inline code and no std headers.
#pragma once

#include <stddef.h>
#include <stdint.h>

namespace headway::probe {

// One kind of arithmetic. `run` issues independent operations only, so it takes the unit's throughput, not latency.
struct Unit {
  const char* name;   // e.g. "fma512"
  const char* dtype;  // "f32", "bf16", "int8" or "byte"
  const char* needs;  // CPU feature as __builtin_cpu_supports spells it; "" = none beyond the table's own
  double ops_per_round;
  void (*run)(int64_t rounds);
};

struct Table {
  const char* isa;
  const char* needs;
  const Unit* units;
  size_t count;
  // Loads every byte of a 64-byte aligned buffer once; `bytes` is a multiple of 1024. Returns a digest of them.
  uint64_t (*read)(const void* data, size_t bytes);
};

const Table& portable_table();
#ifdef HEADWAY_X86
const Table& avx2_table();
const Table& avx512_table();
#endif

}  // namespace headway::probe
