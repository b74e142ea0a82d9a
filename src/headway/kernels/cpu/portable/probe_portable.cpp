// Probe kernels for any CPU, in 128-bit vectors of the compiler (SSE2, NEON or whatever the baseline has).
#include "../probe.h"

namespace headway::probe {
namespace {

typedef float F4 __attribute__((vector_size(16)));
typedef int16_t S8 __attribute__((vector_size(16)));
typedef uint64_t U2 __attribute__((vector_size(16)));

#if defined(__x86_64__) || defined(__i386__)
#define HOLD(value) asm volatile("" : "+x"(value))
#elif defined(__aarch64__)
#define HOLD(value) asm volatile("" : "+w"(value))
#else
#define HOLD(value) asm volatile("" : "+m"(value))
#endif

// Twelve named accumulators: an array of them would be spilled to the stack.
#define EACH(step) step(0) step(1) step(2) step(3) step(4) step(5) step(6) step(7) step(8) step(9) step(10) step(11)

void mul_add_f32(int64_t rounds) {
  F4 x = {1.f, 1.f, 1.f, 1.f}, y = x * 1e-9f;
#define START(i) F4 a##i = y;
  EACH(START)
#undef START
  for (int64_t round = 0; round < rounds; ++round) {
#define STEP(i) \
  HOLD(x);      \
  a##i = a##i + x * y;
    EACH(STEP)
#undef STEP
  }
#define KEEP(i) HOLD(a##i);
  EACH(KEEP)
#undef KEEP
}

// Bytes widened to 16 bits beforehand: one multiply-add of eight lanes.
void mul_add_s16(int64_t rounds) {
  S8 x = {1, 2, 3, 4, 5, 6, 7, 8}, y = x;
#define START(i) S8 a##i = y;
  EACH(START)
#undef START
  for (int64_t round = 0; round < rounds; ++round) {
#define STEP(i) \
  HOLD(x);      \
  a##i = a##i + x * y;
    EACH(STEP)
#undef STEP
  }
#define KEEP(i) HOLD(a##i);
  EACH(KEEP)
#undef KEEP
}

uint64_t read(const void* data, size_t bytes) {
  const U2* at = static_cast<const U2*>(data);
  const U2* end = at + bytes / sizeof(U2);
  U2 a = {0, 0}, b = a, c = a, d = a;
  for (; at != end; at += 8) {
    a |= at[0];
    b |= at[1];
    c |= at[2];
    d |= at[3];
    a |= at[4];
    b |= at[5];
    c |= at[6];
    d |= at[7];
  }
  a |= b | c | d;
  return a[0] | a[1];
}

const Unit kUnits[] = {
    {"muladd128", "f32", "", 12 * 4 * 2, mul_add_f32},
    {"muladd16x8", "int8", "", 12 * 8 * 2, mul_add_s16},
};
const Table kTable = {"portable", "", kUnits, sizeof(kUnits) / sizeof(kUnits[0]), read};

}  // namespace

const Table& portable_table() { return kTable; }

}  // namespace headway::probe
