// Which instruction set the kernels run with: found once by cpuid, lowered by HEADWAY_ISA, never raised.
//
// Kernels are compiled once per level (portable/, avx2/, avx512/) and called through tables of plain function
// pointers. A translation unit of a level includes no standard header with inline functions: the linker could pick
// its copy, compiled with instructions that another machine lacks, for everybody.
#pragma once
#include <cstdint>

namespace headway {

enum class Isa : int { portable = 0, avx2 = 1, avx512 = 2 };  // avx512 = F + BW + DQ + VL + VNNI

struct Features {
  Isa best = Isa::portable;  // what this machine has
  bool vbmi = false;         // byte permutes across 512 bits (AVX512_VBMI)
  bool bf16 = false;         // AVX512_BF16
  bool vpopcntdq = false;    // AVX512_VPOPCNTDQ
  bool avx_vnni = false;     // VNNI in VEX form, for avx2-level kernels
};

const Features& features();     // of the machine; bits above a forced lower level are cleared
Isa isa();                      // the level in use: HEADWAY_ISA if set (throws std::runtime_error if unusable)
bool has(Isa level);            // whether kernels of that level can run here (portable always can)
const char* name_of(Isa level); // "portable", "avx2", "avx512"
void set_isa(Isa level);        // switches the level in use; for tests and benchmarks, not while kernels run

}  // namespace headway
