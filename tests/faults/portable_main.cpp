// Runs every portable kernel on numbers drawn the same everywhere and prints, per kernel: name, cases, digest.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <vector>

#include "kernels.h"
#include "lut.h"

using namespace headway;

namespace {

struct Random {
  uint64_t state = 20;
  uint64_t next() {  // splitmix64
    uint64_t z = (state += 0x9e3779b97f4a7c15u);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
  }
  int64_t below(int64_t n) { return int64_t(next() % uint64_t(n)); }
  float real() { return float(int64_t(next() >> 40) - (1 << 23)) * 0x1p-22f; }
  std::vector<float> reals(int64_t n, bool awkward = true) {
    std::vector<float> v;
    for (int64_t i = 0; i < n; ++i) v.push_back(real());
    const float odd[] = {NAN, INFINITY, -INFINITY, 1e-42f, -1e-45f, 3e38f, -0.0f};
    if (awkward)
      for (float x : odd)
        if (below(3) == 0) v[size_t(below(n))] = x;
    return v;
  }
  std::vector<uint8_t> bytes(int64_t n) {
    std::vector<uint8_t> v;
    for (int64_t i = 0; i < n; ++i) v.push_back(uint8_t(next()));
    return v;
  }
};

Random rnd;

struct Digest {
  const char* name;
  uint64_t hash = 0xcbf29ce484222325u;
  int cases = 0;
  explicit Digest(const char* n) : name(n) {}
  ~Digest() { std::printf("%s %d %016llx\n", name, cases, static_cast<unsigned long long>(hash)); }
  void byte(uint8_t b) { hash = (hash ^ b) * 0x100000001b3u; }
  void word(uint32_t w) {
    for (int i = 0; i < 4; ++i) byte(uint8_t(w >> 8 * i));
  }
  void floats(const float* p, int64_t n) {  // any NaN is one NaN
    for (int64_t i = 0; i < n; ++i) {
      uint32_t bits;
      std::memcpy(&bits, p + i, 4);
      word(p[i] != p[i] ? 0x7fc00000u : bits);
    }
    ++cases;
  }
};

constexpr int kCases = 300;
const Kernels& k = kernels_portable;

void dense() {
  Digest d("dense");
  for (int i = 0; i < kCases; ++i) {
    const int storage = i % 3;
    const int64_t rows = 1 + rnd.below(65), out = 1 + rnd.below(65), cols = 1 + rnd.below(130), tiles = (out + 15) / 16;
    std::vector<float> x = rnd.reals(rows * cols), w = rnd.reals(tiles * 16 * cols, false), y(rows * out);
    std::vector<uint16_t> halves;
    for (size_t j = 0; j < w.size(); ++j) halves.push_back(uint16_t(rnd.next() & 0xbfff));
    const void* data = storage ? (const void*)halves.data() : (const void*)w.data();
    k.dense(data, storage, cols, out, x.data(), cols, rows, y.data(), out, 0, tiles);
    d.floats(y.data(), rows * out);
  }
}

void integer() {
  Digest d("integer");
  for (int i = 0; i < kCases; ++i) {
    IntTiles w{};
    w.bits = i % 2 ? 8 : 4;
    w.out = 1 + rnd.below(65);
    w.blocks = 1 + rnd.below(8);
    w.group = rnd.below(3) == 0 ? 16 : 32 * (1 + rnd.below(4));
    w.zero = int(rnd.below(16));
    w.has_min = int(rnd.below(2));
    w.wide_header = int(rnd.below(2));
    const int64_t rows = 1 + rnd.below(65), tiles = (w.out + 15) / 16, parts = w.group == 16 ? 2 : 1;
    const int64_t groups = w.group == 16 ? 2 * w.blocks : (32 * w.blocks + w.group - 1) / w.group;
    const size_t header = size_t(w.has_min + 1) * 16 * (w.wide_header ? 4 : 2);
    w.tile_bytes = size_t(groups) * header + size_t(w.blocks) * (w.bits == 4 ? 256 : 512);
    std::vector<uint8_t> data = rnd.bytes(int64_t(w.tile_bytes) * tiles + 8192 + 64);
    for (int64_t t = 0; t < tiles; ++t)  // headers: finite numbers
      for (int64_t b = 0, at = 0; b < w.blocks; ++b) {
        const bool begins = w.group == 16 || b * 32 % w.group == 0;
        for (int h = 0; begins && h < (w.group == 16 ? 2 : 1); ++h)
          for (size_t j = 0; j < header / (w.wide_header ? 4 : 2); ++j) {
            uint8_t* to = data.data() + t * w.tile_bytes + at;
            const float f = rnd.real();
            const uint16_t half = uint16_t(rnd.next() & 0xbbff);
            std::memcpy(to, w.wide_header ? (const void*)&f : &half, w.wide_header ? 4 : 2);
            at += w.wide_header ? 4 : 2;
          }
        at += w.bits == 4 ? 256 : 512;
      }
    w.data = data.data();
    const std::vector<float> x = rnd.reals(rows * w.blocks * 32);
    std::vector<char> acts(int8_bytes(rows, w.blocks, parts) + 64), scratch(1 << 20);
    std::vector<float> y(rows * w.out);
    k.quantise(x.data(), w.blocks * 32, rows, w.blocks, parts, 0, w.blocks, acts.data());
    k.integer(&w, acts.data(), rows, y.data(), w.out, 0, tiles, scratch.data());
    d.floats(y.data(), rows * w.out);
  }
}

void planes() {
  Digest d("planes");
  for (int i = 0; i < kCases; ++i) {
    const lut::Kernels& l = lut::portable_kernels();
    lut::View w{};
    w.bits = int(1 + rnd.below(4));
    w.uniform = rnd.below(2) == 0;
    w.half = rnd.below(2) == 0;
    w.out = 1 + rnd.below(65);
    w.blocks = 1 + rnd.below(8);
    w.group_blocks = 1 + rnd.below(w.blocks);
    const int64_t segment = w.group_blocks % 2 ? 1 : 2, rows = 1 + rnd.below(20), tiles = (w.out + 15) / 16;
    const int64_t groups = (w.blocks + w.group_blocks - 1) / w.group_blocks;
    const int64_t numbers = w.uniform ? 32 : 16 * (w.bits + 1), wide = w.half ? 2 : 4;
    w.tile_bytes = w.blocks * 64 * w.bits + groups * numbers * wide;
    std::vector<uint8_t> data = rnd.bytes(w.tile_bytes * tiles + 8192 + 64);
    for (int64_t t = 0; t < tiles; ++t)
      for (int64_t g = 0; g < groups; ++g) {
        const int64_t done = std::min((g + 1) * w.group_blocks, w.blocks);
        uint8_t* to = data.data() + t * w.tile_bytes + done * 64 * w.bits + g * numbers * wide;
        for (int64_t j = 0; j < numbers; ++j, to += wide) {
          const float f = rnd.real();
          const uint16_t half = uint16_t(rnd.next() & 0xbbff);
          std::memcpy(to, w.half ? (const void*)&half : &f, size_t(wide));
        }
      }
    w.data = data.data();
    const int64_t segments = (w.blocks + segment - 1) / segment;
    std::vector<int8_t> entries(rows * w.blocks * lut::kTableBytes + 64);
    std::vector<lut::Segment> sums(rows * segments);
    const std::vector<float> x = rnd.reals(rows * w.blocks * 32);
    for (int64_t r = 0; r < rows; ++r)
      l.build(x.data() + r * w.blocks * 32, w.blocks, segment, entries.data() + r * w.blocks * lut::kTableBytes,
              sums.data() + r * segments);
    const lut::Tables tables{entries.data(), sums.data(), rows, w.blocks * lut::kTableBytes, segments, segment};
    std::vector<float> y(rows * w.out);
    l.matmul(w, tables, y.data(), w.out, 0, tiles);
    d.floats(y.data(), rows * w.out);
  }
}

void vectors() {
  Digest norm("rms_norm"), cap("softcap"), turn("rope"), gate("glu"), most("argmax"), plus("add_scale");
  Digest sums("log_sum_exp");
  for (int i = 0; i < kCases; ++i) {
    const int64_t n = 1 + rnd.below(130), heads = 1 + rnd.below(4), dim = 2 * (1 + rnd.below(65));
    std::vector<float> a = rnd.reals(n), b = rnd.reals(n), y(n);
    k.rms_norm(a.data(), b.data(), 1e-5f, n, y.data());
    norm.floats(y.data(), n);
    y = a;
    k.softcap(y.data(), 30.0f, n);
    cap.floats(y.data(), n);
    y = a;
    k.glu(y.data(), b.data(), n, i % 2);
    gate.floats(y.data(), n);
    const float top = float(k.argmax(a.data(), n));
    most.floats(&top, 1);
    float high = 0, other = 0;
    const std::vector<float> p = rnd.reals(n, false), q = rnd.reals(n, false);
    const double of_p = k.log_sum_exp(p.data(), n, &high), of_q = k.log_sum_exp(q.data(), n, &other);
    const float said[] = {float(of_p), float(of_q), high, float(k.divergence(p.data(), of_p, q.data(), of_q, n))};
    sums.floats(said, 4);
    k.add(a.data(), b.data(), n);
    k.scale(a.data(), 0.3f, n);
    plus.floats(a.data(), n);
    std::vector<float> x = rnd.reals(heads * dim), c = rnd.reals(dim / 2, false), s = rnd.reals(dim / 2, false);
    k.rope(x.data(), heads, dim, c.data(), s.data());
    turn.floats(x.data(), heads * dim);
  }
}

void attention() {
  Digest d("attention");
  for (int i = 0; i < kCases; ++i) {
    PageShape shape{1 + rnd.below(3), 2 * (1 + rnd.below(65)), 0, int(rnd.below(3))};
    shape.padded_dim = (shape.head_dim + 15) / 16 * 16;
    const int64_t pages = 1 + rnd.below(4), keys = 1 + rnd.below(pages * kPageTokens), rows = 1 + rnd.below(9);
    const size_t bytes = page_head_bytes(&shape) * size_t(shape.kv_heads) + 4096;
    std::vector<std::vector<char>> store;
    for (int64_t page = 0; page < pages; ++page) store.emplace_back(bytes);
    std::vector<const void*> at;
    for (auto& page : store) at.push_back(page.data());
    for (int64_t t = 0; t < keys; ++t) {
      const bool awkward = i % 4 == 0 && rnd.below(20) == 0;
      const std::vector<float> kk = rnd.reals(shape.kv_heads * shape.head_dim, awkward);
      const std::vector<float> vv = rnd.reals(shape.kv_heads * shape.head_dim, awkward);
      k.kv_write(&shape, store[size_t(t / kPageTokens)].data(), t % kPageTokens, kk.data(), vv.data());
    }
    const std::vector<float> queries = rnd.reals(rows * shape.head_dim, false);
    std::vector<const float*> q;
    std::vector<int32_t> lo, hi;
    for (int64_t r = 0; r < rows; ++r) {
      q.push_back(queries.data() + r * shape.head_dim);
      lo.push_back(int32_t(rnd.below(keys)));
      hi.push_back(int32_t(lo.back() + 1 + rnd.below(keys - lo.back())));
    }
    std::vector<float> m(rows, -INFINITY), l(rows), o(rows * shape.padded_dim), out(rows * shape.head_dim);
    std::vector<float> scratch(attend_scratch_floats(&shape, rows) + 16);
    AttendArgs args{shape, at.data(), rnd.below(shape.kv_heads), rows, q.data(), lo.data(), hi.data(), 0, keys, keys,
                    0.2f, i % 3 ? 0.0f : 20.0f, m.data(), l.data(), o.data(), scratch.data()};
    k.attend(&args);
    std::vector<float*> to;
    for (int64_t r = 0; r < rows; ++r) to.push_back(out.data() + r * shape.head_dim);
    k.attend_finish(l.data(), o.data(), rows, shape.head_dim, shape.padded_dim, to.data());
    d.floats(out.data(), rows * shape.head_dim);
  }
}

}  // namespace

int main() {
  dense();
  integer();
  planes();
  vectors();
  attention();
}
