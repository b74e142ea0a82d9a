#include "dfloat11_weight.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <map>
#include <mutex>
#include <stdexcept>
#include <vector>

#include "isa.h"
#include "kernels.h"
#include "pool.h"

namespace headway::dfloat11 {

std::atomic<uint64_t> Dfloat11Weight::expanded{0};

const Level& level() {
#if HEADWAY_X86
  switch (isa()) {
    case Isa::avx512: return level_avx512;
    case Isa::avx2: return level_avx2;
    default: break;
  }
#endif
  return level_portable;
}

namespace {

constexpr int64_t kPiece = 4096;  // exponents decoded at a time where tiles are not expanded whole

void fill_entry(Tables& t, uint64_t index) {
  const uint64_t window = index << (64 - kIndexBits);
  uint64_t entry = 0;
  int bits = 0, count = 0;
  for (; count < kMostSymbols; ++count) {
    uint8_t symbol;
    const int length = one_code(&t, window << bits, &symbol);
    if (length == 0 || bits + length > kIndexBits) break;
    entry |= uint64_t(symbol) << (8 * count);
    bits += length;
  }
  t.entry[index] = count ? entry | uint64_t(bits) << 48 | uint64_t(count) << 56 : 0;
}

std::shared_ptr<const Tables> make_tables(const uint8_t (&lengths)[256]) {
  auto t = std::make_shared<Tables>();
  std::memset(t.get(), 0, sizeof *t);
  uint64_t next = 0;  // left-aligned
  bool full = false;
  int32_t at = 0;
  for (int length = 1; length <= kMostBits; ++length) {
    t->offset[length] = at;
    t->first[length] = next;
    for (unsigned exponent = 0; exponent < 256; ++exponent) {
      if (lengths[exponent] != length) continue;
      if (full) throw std::invalid_argument("the lengths of a codebook exceed a prefix code");
      t->symbols[at++] = symbol_of(exponent);
      t->length[symbol_of(exponent)] = uint8_t(length);
      ++t->count[length];
      t->longest = length;
      next += uint64_t(1) << (64 - length);
      full = next == 0;
      if (!full && next < t->first[length]) throw std::invalid_argument("the lengths of a codebook exceed a prefix code");
    }
    t->last[length] = next - 1;
  }
  if (!full && !(at == 1 && t->longest == 1))
    throw std::invalid_argument("the lengths of a codebook are no full prefix code");
  for (unsigned exponent = 0; exponent < 256; ++exponent)
    if (lengths[exponent] > kMostBits) throw std::invalid_argument("a code is longer than 32 bits");
  for (uint64_t index = 0; index < uint64_t(1) << kIndexBits; ++index) fill_entry(*t, index);
  return t;
}

}  // namespace

std::shared_ptr<const Tables> tables_of(const uint8_t (&lengths)[256]) {
  static std::mutex lock;
  static std::map<std::array<uint8_t, 256>, std::weak_ptr<const Tables>> known;
  std::array<uint8_t, 256> key;
  std::copy_n(lengths, 256, key.begin());
  const std::lock_guard guard(lock);
  auto found = known[key].lock();
  if (!found) {
    std::erase_if(known, [](const auto& item) { return item.second.expired(); });
    known[key] = found = make_tables(lengths);
  }
  return found;
}

uint64_t Stored::gap(int64_t chunk) const {
  const int64_t bit = chunk * 5;
  unsigned pair = unsigned(gaps[bit / 8]) << 8;
  if (bit / 8 + 1 < gap_bytes) pair |= gaps[bit / 8 + 1];
  return pair >> (11 - bit % 8) & 31;
}

Dfloat11Weight::Dfloat11Weight(const Stored& stored, std::shared_ptr<const Tables> tables)
    : Weight(stored.out, stored.in), tables_(std::move(tables)), code_bytes_(stored.code_bytes) {
  const int64_t second = round_up(stored.code_bytes + kSlack, 64);
  const int64_t third = second + round_up(stored.weights() + kSlack, 64);
  packed_ = Buffer(size_t(third) + size_t(tiles()) * sizeof(uint64_t), Owner::weights);
  std::memcpy(packed_.data(), stored.code, size_t(stored.code_bytes));
  std::memcpy(packed_.as<uint8_t>() + second, stored.sign_mantissa, size_t(stored.weights()));
  sign_mantissa_ = packed_.as<uint8_t>() + second;
  starts_ = reinterpret_cast<uint64_t*>(packed_.as<uint8_t>() + third);
  find_tiles(stored);
}

// Each block is decoded alone, as the format allows: it must begin where its gap says, hold as many codes as its
// positions say and end where the next one begins.
void Dfloat11Weight::find_tiles(const Stored& stored) {
  const uint64_t bits = uint64_t(stored.code_bytes) * 8;
  const int64_t tile_weights = kTile * in();
  std::atomic<int64_t> damaged{stored.blocks};
  const auto bad = [&](int64_t block) {
    int64_t seen = damaged.load();
    while (block < seen && !damaged.compare_exchange_weak(seen, block)) {
    }
  };
  const auto check = [&](int64_t block) {
    const uint64_t begin = uint64_t(block * kBlockBytes) * 8 + stored.gap(block * kBlockChunks);
    int64_t at = stored.positions[block];
    const int64_t end = stored.positions[block + 1];
    uint8_t symbols[kPiece + kSlack];
    uint64_t bit = begin;
    while (at < end) {
      if (at % tile_weights == 0) starts_[at / tile_weights] = bit;
      const int64_t stop = std::min({end, at + kPiece, (at / tile_weights + 1) * tile_weights});
      // A code may be missing or run past the end: count on nothing, one code at a time where there is no room.
      while (at < stop) {
        const int64_t sure = std::min(stop - at, int64_t(bits > bit ? (bits - bit) / kMostBits : 0));
        if (sure > 0) {
          Chain chain{bit, symbols, sure};
          const uint64_t before = bit;
          level().decode(tables_.get(), code(), &chain, 1);
          if (chain.bit > bits || chain.bit < before + uint64_t(sure)) return false;
          bit = chain.bit;
          at += sure;
          continue;
        }
        uint8_t symbol;
        const int length = bit < bits ? one_code(tables_.get(), window_at(code(), bit), &symbol) : 0;
        if (length == 0 || bit + uint64_t(length) > bits) return false;
        bit += uint64_t(length);
        ++at;
      }
    }
    const uint64_t next = uint64_t((block + 1) * kBlockBytes) * 8;
    if (block + 1 < stored.blocks) return bit == next + stored.gap((block + 1) * kBlockChunks);
    return bit <= bits && bits - bit < 8;
  };
  Pool::Session session;
  session.run(stored.blocks, [&](int64_t block, int) {
    if (!check(block)) bad(block);
  });
  if (damaged.load() < stored.blocks) throw Damaged{damaged.load(), "its codes and positions do not agree"};
}

size_t Dfloat11Weight::scratch_bytes(int64_t) const {
  const int64_t dense = kTile * padded_in() * 2 * kChains + 2 * kSlack;
  return size_t(dense + kChains * round_up(kTile * in() + kSlack, 64));
}

void Dfloat11Weight::expand_tiles(int64_t tile, int64_t n, void* scratch) const {
  const int64_t apart = round_up(kTile * in() + kSlack, 64), dense = kTile * padded_in();
  auto* to = static_cast<uint16_t*>(scratch);
  uint8_t* symbols = static_cast<uint8_t*>(scratch) + kChains * dense * 2 + 2 * kSlack;
  Chain chains[kChains];
  for (int64_t i = 0; i < n; ++i) {
    const int64_t count = rows_of(tile + i) * in();
    chains[i] = {starts_[tile + i], symbols + i * apart, count};
    for (int64_t at = 0; at < count; at += 64) __builtin_prefetch(sign_mantissa(tile + i) + at, 0, 2);
  }
  const Level& l = level();
  l.decode(tables_.get(), code(), chains, int(n));
  for (int64_t i = 0; i < n; ++i) {
    const int64_t rows = rows_of(tile + i);
    uint16_t* panel = to + i * dense;
    l.join(symbols + i * apart, sign_mantissa(tile + i), rows * in(), panel);  // in order: each spills into the next
    if (rows < kTile)
      for (int64_t c = in() - 1; c >= 0; --c)
        for (int64_t r = kTile - 1; r >= 0; --r) panel[c * kTile + r] = r < rows ? panel[c * rows + r] : uint16_t(0);
    std::memset(panel + in() * kTile, 0, size_t((padded_in() - in()) * kTile) * 2);
  }
  expanded.fetch_add(uint64_t(n), std::memory_order_relaxed);
}

void Dfloat11Weight::matmul_exact(const Acts& acts, float* y, int64_t ldy, int64_t tile_begin, int64_t tile_end,
                                  void* scratch) const {
  matmul(acts, y, ldy, tile_begin, tile_end, scratch);
}

void Dfloat11Weight::matmul(const Acts& acts, float* y, int64_t ldy, int64_t tile_begin, int64_t tile_end,
                            void* scratch) const {
  for (int64_t tile = tile_begin; tile < tile_end; tile += kChains) {
    const int64_t n = std::min<int64_t>(kChains, tile_end - tile);
    expand_tiles(tile, n, scratch);
    kernels().dense(scratch, 2, padded_in(), in(), out() - tile * kTile, acts.x(), acts.ldx(), acts.rows(),
                    y + tile * kTile, ldy, 0, n, nullptr);
  }
}

// The symbols of a tile in order up to weight `end` of it, a piece at a time: f(first, count, bfloat16 bits).
template <class F> void Dfloat11Weight::walk(int64_t tile, int64_t end, F&& f) const {
  uint8_t symbols[kPiece + kSlack];
  uint16_t values[kPiece + kSlack];
  const uint8_t* rest = sign_mantissa(tile);
  uint64_t bit = starts_[tile];
  for (int64_t at = 0; at < end; at += kPiece) {
    Chain chain{bit, symbols, std::min(kPiece, end - at)};
    const int64_t n = chain.left;
    level().decode(tables_.get(), code(), &chain, 1);
    bit = chain.bit;
    level().join(symbols, rest + at, n, values);
    f(at, n, values);
  }
}

namespace {
float value_of(uint16_t bits) {
  const uint32_t wide = uint32_t(bits) << 16;
  float value;
  std::memcpy(&value, &wide, 4);
  return value;
}
}  // namespace

void Dfloat11Weight::expand(int64_t tile, int64_t col_begin, int64_t col_end, float* out) const {
  const int64_t rows = rows_of(tile), begin = col_begin * rows;
  std::memset(out, 0, size_t((col_end - col_begin) * kTile) * sizeof(float));
  walk(tile, std::min(col_end, in()) * rows, [&](int64_t first, int64_t n, const uint16_t* values) {
    for (int64_t i = std::max(first, begin); i < first + n; ++i)
      out[(i / rows - col_begin) * kTile + i % rows] = value_of(values[i - first]);
  });
}

void Dfloat11Weight::gather(const int32_t* ids, int64_t n, float* dst, int64_t ld) const {
  for (int64_t k = 0; k < n; ++k) {
    const int64_t tile = ids[k] / kTile, row = ids[k] % kTile, rows = rows_of(tile);
    float* to = dst + k * ld;
    walk(tile, rows * in(), [&](int64_t first, int64_t count, const uint16_t* values) {
      int64_t c = first <= row ? 0 : (first - row + rows - 1) / rows;
      for (; c * rows + row < first + count; ++c) to[c] = value_of(values[c * rows + row - first]);
    });
  }
}

void Dfloat11Weight::unpack(uint16_t* to) const {
  Pool::Session session;
  session.run(tiles(), [&](int64_t tile, int) {
    const int64_t rows = rows_of(tile);
    walk(tile, rows * in(), [&](int64_t first, int64_t n, const uint16_t* values) {
      by_rows(tile, first, n, values, to);
    });
  });
}

void Dfloat11Weight::unpack_plainly(const uint8_t* luts, int64_t rows, uint16_t* to) const {
  std::vector<uint16_t> values(size_t(kTile * in()));
  for (int64_t tile = 0; tile < tiles(); ++tile) {
    expand_plainly(tile, luts, rows, values.data());
    by_rows(tile, 0, rows_of(tile) * in(), values.data(), to);
  }
}

void Dfloat11Weight::by_rows(int64_t tile, int64_t first, int64_t n, const uint16_t* values, uint16_t* to) const {
  const int64_t rows = rows_of(tile);
  for (int64_t i = 0; i < n; ++i) to[(tile * kTile + (first + i) % rows) * in() + (first + i) / rows] = values[i];
}

void Dfloat11Weight::expand_plainly(int64_t tile, const uint8_t* luts, int64_t rows, uint16_t* to) const {
  const uint8_t *rest = sign_mantissa(tile), *lengths = luts + (rows - 1) * 256;
  uint64_t bit = starts_[tile];
  const uint64_t end = uint64_t(code_bytes_) * 8;
  const int64_t n = rows_of(tile) * in();
  for (int64_t i = 0; i < n && bit < end; ++i) {
    const uint64_t window = window_at(code(), bit);
    int shift = 56;
    int64_t symbol = luts[window >> shift & 255];
    while (symbol >= 240 && shift > 32 && 256 - symbol < rows) {
      shift -= 8;
      symbol = luts[(256 - symbol) * 256 + int64_t(window >> shift & 255)];
    }
    bit += lengths[symbol];
    to[i] = uint16_t((rest[i] & 0x80) << 8 | symbol << 7 | (rest[i] & 0x7f));
  }
}

}  // namespace headway::dfloat11
