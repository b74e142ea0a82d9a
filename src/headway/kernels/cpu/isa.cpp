#include "isa.h"

#include <atomic>
#include <cstdlib>
#include <cstring>
#include <stdexcept>
#include <string>

#if HEADWAY_X86
#include <cpuid.h>
#endif

namespace headway {
namespace {

#if HEADWAY_X86
struct Registers {
  uint32_t a = 0, b = 0, c = 0, d = 0;
};

Registers cpuid(uint32_t leaf, uint32_t sub) {
  Registers r;
  if (!__get_cpuid_count(leaf, sub, &r.a, &r.b, &r.c, &r.d)) r = {};
  return r;
}

uint64_t xcr0() {
  uint32_t low, high;
  __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return (uint64_t(high) << 32) | low;
}

bool bit(uint32_t value, int at) { return (value >> at) & 1; }
#endif

Features detect() {
  Features f;
#if HEADWAY_X86
  const Registers one = cpuid(1, 0), seven = cpuid(7, 0), seven1 = cpuid(7, 1);
  const bool osxsave = bit(one.c, 27);
  const uint64_t saved = osxsave ? xcr0() : 0;
  const bool ymm = (saved & 0x6) == 0x6, zmm = (saved & 0xe6) == 0xe6;
  const bool avx2 = ymm && bit(one.c, 12) && bit(one.c, 29) && bit(one.c, 23) && bit(seven.b, 5) && bit(seven.b, 3) &&
                    bit(seven.b, 8);  // FMA, F16C, POPCNT, AVX2, BMI1, BMI2
  const bool avx512 = avx2 && zmm && bit(seven.b, 16) && bit(seven.b, 17) && bit(seven.b, 30) && bit(seven.b, 31) &&
                      bit(seven.c, 11);  // F, DQ, BW, VL, VNNI
  f.best = avx512 ? Isa::avx512 : avx2 ? Isa::avx2 : Isa::portable;
  f.vbmi = avx512 && bit(seven.c, 1);
  f.vpopcntdq = avx512 && bit(seven.c, 14);
  f.bf16 = avx512 && bit(seven1.a, 5);
  f.avx_vnni = avx2 && bit(seven1.a, 4);
#endif
  return f;
}

const Features& machine() {
  static const Features found = detect();
  return found;
}

Isa from_environment() {
  const char* wanted = std::getenv("HEADWAY_ISA");
  if (!wanted || !*wanted) return machine().best;
  for (Isa level : {Isa::portable, Isa::avx2, Isa::avx512}) {
    if (std::strcmp(wanted, name_of(level)) != 0) continue;
    if (!has(level))
      throw std::runtime_error(std::string("HEADWAY_ISA=") + wanted + ": this machine has only " +
                               name_of(machine().best) + "; unset it or name a lower level");
    return level;
  }
  throw std::runtime_error(std::string("HEADWAY_ISA=") + wanted + " is no instruction set; use avx512, avx2 or portable");
}

std::atomic<int> current{-1};

}  // namespace

const char* name_of(Isa level) {
  return level == Isa::avx512 ? "avx512" : level == Isa::avx2 ? "avx2" : "portable";
}

bool has(Isa level) { return int(level) <= int(machine().best); }

Isa isa() {
  int level = current.load(std::memory_order_relaxed);
  if (level < 0) {
    level = int(from_environment());
    current.store(level, std::memory_order_relaxed);
  }
  return Isa(level);
}

void set_isa(Isa level) {
  if (!has(level))
    throw std::runtime_error(std::string("this machine has no ") + name_of(level) + "; it has " +
                             name_of(machine().best));
  current.store(int(level), std::memory_order_relaxed);
}

const Features& features() {
  static const Features none{};
  static const Features avx2 = [] {
    Features f = machine();
    f.vbmi = f.bf16 = f.vpopcntdq = false;
    return f;
  }();
  return isa() == Isa::avx512 ? machine() : isa() == Isa::avx2 ? avx2 : none;
}

}  // namespace headway
