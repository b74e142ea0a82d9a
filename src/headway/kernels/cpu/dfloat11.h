// DFloat11 (arXiv 2504.11651): bfloat16 weights whose exponents are Huffman coded, expanded just before a product.
//
// A bfloat16 is sign 1, exponent 8, mantissa 7 bits. One matrix is stored as
//   sign_mantissa  1 byte a weight: (bits >> 8 & 0x80) | (bits & 0x7f)
//   code           the exponents, most significant bit first; chunks of 8 bytes, blocks of 512 chunks = 4096 bytes
//   gaps           per chunk, 5 bits: offset in the chunk of the first code that starts there
//   positions      per block: how many weights start before it; the last entry is the number of weights
// The order of the weights is that of the packed dense form: tiles of 16 rows (fewer in the last), each column by
// column; columns beyond `in` are not stored. What a tile's codes expand to is what the dense kernel reads.
//
// In memory the gaps give way to the bit at which each tile starts, found in the pass that checks the stream: tiles
// are the chains that a core decodes side by side, and no weight is decoded twice.
//
// Cost of expanding one weight: 0.33 byte of code, 1 byte of sign and mantissa, 2 bytes written to the second-level
// cache; per look-up, which yields about four weights, 7 instructions.
#pragma once
#include <stddef.h>
#include <stdint.h>

namespace headway::dfloat11 {

constexpr int kIndexBits = 11;    // of a look-up: 2^11 entries of 8 bytes are 16 KiB, half of a first-level cache
constexpr int kMostSymbols = 6;   // in one entry
constexpr int kLookUps = 5;       // from one 8-byte load: 5 x 11 <= 57 bits
constexpr int kChains = 4;        // streams decoded side by side: they hide the latency of a look-up
constexpr int kMostBits = 32;     // of a code: the 5 bits of a gap
constexpr int64_t kChunkBytes = 8, kBlockChunks = 512, kBlockBytes = kChunkBytes * kBlockChunks;
constexpr int64_t kSlack = 64;    // bytes that may be written past the last exponent of a chain

// A symbol is an exponent rotated right by one bit: its low seven bits then belong to the high byte of a bfloat16 and
// its top bit to the low byte, so that joining it with sign and mantissa is two selections of bits.
static inline uint8_t symbol_of(unsigned exponent) { return (uint8_t)(exponent >> 1 | exponent << 7); }
static inline unsigned exponent_of(uint8_t symbol) { return (unsigned)((symbol << 1 | symbol >> 7) & 0xff); }

// Decoding tables of one codebook (a canonical prefix code: shorter codes first, then by exponent).
struct Tables {
  // By the next 11 bits: bytes 0..5 symbols that end within them, byte 6 their bits, byte 7 their count. All 0 where
  // not even one code ends: a long code, or none.
  uint64_t entry[1 << kIndexBits];
  // The codes of a length, 1 to 32: how many, the first and (filled up with ones) the last, left-aligned in 64 bits,
  // and where their symbols begin in `symbols`.
  int32_t count[kMostBits + 1], offset[kMostBits + 1];
  uint64_t first[kMostBits + 1], last[kMostBits + 1];
  uint8_t symbols[256];
  uint8_t length[256];             // by symbol
  int longest;
};

struct Chain {
  uint64_t bit;    // of the next code, from the start of `code`
  uint8_t* out;    // symbols go here; kSlack more bytes may be written
  int64_t left;    // symbols to decode
};

struct Level {
  const char* name;
  // Decode each chain to its end, up to kChains of them side by side. The codes were checked before; `code` has 64
  // readable bytes beyond its end.
  void (*decode)(const Tables* t, const uint8_t* code, Chain* chains, int n);
  // out[i] = the bfloat16 of symbol and sign and mantissa; up to 63 elements more may be written.
  void (*join)(const uint8_t* symbols, const uint8_t* sign_mantissa, int64_t n, uint16_t* out);
};

extern const Level level_portable;
#if HEADWAY_X86
extern const Level level_avx2, level_avx512;
#endif

// The next code of `window` (left-aligned): its length, or 0 where there is none. For codes longer than a look-up.
static inline int one_code(const Tables* t, uint64_t window, uint8_t* symbol) {
  for (int length = 1; length <= t->longest; ++length)
    if (t->count[length] && window <= t->last[length]) {
      *symbol = t->symbols[t->offset[length] + (int32_t)((window - t->first[length]) >> (64 - length))];
      return length;
    }
  return 0;
}

static inline __attribute__((always_inline)) uint64_t window_at(const uint8_t* code, uint64_t bit) {
  uint64_t raw;
  __builtin_memcpy(&raw, code + (bit >> 3), 8);
#if __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
  raw = __builtin_bswap64(raw);
#endif
  return raw << (bit & 7);  // 57 bits at least
}

}  // namespace headway::dfloat11
