// `Weight`: one matrix W (out x in) packed for a kernel that computes y = x W^T; and `Acts`, the activations x.
//
// A weight system brings a subclass, its kernels and its binding (bindings.h); nothing else in the runtime changes.
//
//   tile of rows    kTile = 16 consecutive rows of W. The runtime splits a matrix between threads by tiles, so a
//                   result may never depend on which tiles are computed together, nor on how many rows x has.
//   block           kBlock = 32 consecutive columns. Activations are padded with zeros to whole blocks.
//   form            what a kernel wants to read instead of float32 activations (int8 groups, look-up tables ...).
//                   It is made once per activation matrix and shared by every weight that asks for the same form
//                   (q/k/v, gate/up) and by all threads.
#pragma once
#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

namespace headway {

struct Finish;  // kernels.h

constexpr int64_t kTile = 16;
constexpr int64_t kBlock = 32;

constexpr int64_t round_up(int64_t n, int64_t unit) { return (n + unit - 1) / unit * unit; }

// A prepared form of activations. Two weights share it when they name the same object, so make one static FormSpec
// per kind (and per parameter: `arg`).
struct FormSpec {
  const char* name;
  int64_t unit;  // columns (a multiple of kBlock) that are built independently of all others
  int64_t arg;   // a parameter of the form's own
  // Bytes for `rows` x `cols` (cols a multiple of kBlock; the last unit may be short).
  size_t (*bytes)(const FormSpec& self, int64_t rows, int64_t cols);
  // Build columns [begin, end) of all rows into `out`; begin and end are multiples of `unit` (end may be cols).
  // x[r * ldx + c], every column readable. Called by several threads with disjoint ranges. Must not allocate. An
  // activation that is not finite must make every product it enters NaN.
  void (*build)(const FormSpec& self, const float* x, int64_t ldx, int64_t rows, int64_t cols, int64_t begin,
                int64_t end, void* out);
};

// One activation matrix: `rows` x `cols` float32, rows `ldx` apart, and the forms built of it. `cols` is a multiple
// of kBlock; the columns beyond a weight's `in` are zero. Holds its buffers between uses (`reset`).
class Acts {
 public:
  void reset(const float* x, int64_t ldx, int64_t rows, int64_t cols);

  const float* x() const { return x_; }
  int64_t ldx() const { return ldx_; }
  int64_t rows() const { return rows_; }
  int64_t cols() const { return cols_; }

  // Serial part: make room. True if the form still has to be built for this `reset`.
  bool reserve(const FormSpec& spec);
  int64_t units(const FormSpec& spec) const { return (cols_ + spec.unit - 1) / spec.unit; }
  // Parallel part, after `reserve`: disjoint ranges of units.
  void build(const FormSpec& spec, int64_t unit_begin, int64_t unit_end);
  // reserve + build on this thread, if not yet done.
  void ensure(const FormSpec& spec);
  // For kernels; null if never built.
  const void* get(const FormSpec& spec) const;

  Acts();
  ~Acts();
  Acts(const Acts&) = delete;
  Acts& operator=(const Acts&) = delete;

 private:
  struct Slot;
  Slot* find(const FormSpec& spec) const;

  const float* x_ = nullptr;
  int64_t ldx_ = 0, rows_ = 0, cols_ = 0;
  std::vector<std::unique_ptr<Slot>> slots_;
};

class Weight {
 public:
  Weight(int64_t out, int64_t in) : out_(out), in_(in) {}
  virtual ~Weight() = default;
  Weight(const Weight&) = delete;
  Weight& operator=(const Weight&) = delete;

  int64_t out() const { return out_; }
  int64_t in() const { return in_; }
  int64_t tiles() const { return (out_ + kTile - 1) / kTile; }
  int64_t padded_in() const { return round_up(in_, kBlock); }

  virtual const char* kind() const = 0;
  // Bytes of the packed form: what one matmul reads.
  virtual size_t bytes() const = 0;

  // Where those bytes lie, if in one piece: for reading them plainly, the roof a kernel is judged by.
  virtual const void* data() const { return nullptr; }

  // The form `matmul` reads when x has `rows` rows; null: float32 as they are.
  virtual const FormSpec* form(int64_t rows) const = 0;

  // Tiles that are best multiplied in one call, where the matrix has that many for every thread.
  virtual int64_t tiles_together() const { return 1; }

  // Scratch bytes that one thread needs inside `matmul` (64-byte aligned when it comes).
  virtual size_t scratch_bytes(int64_t rows) const { (void)rows; return 0; }

  // y[r * ldy + o] = sum_c x[r][c] W[o][c] for the rows o of tiles [tile_begin, tile_end), o < out, and every row r
  // of `acts`, whose form `form(acts.rows())` is built. Writes nothing else. Called by several threads at once with
  // disjoint tiles; must not allocate, throw or wait.
  virtual void matmul(const Acts& acts, float* y, int64_t ldy, int64_t tile_begin, int64_t tile_end,
                      void* scratch) const = 0;

  // `matmul`, then `finish` of the whole tiles [tile_begin, tile_end). Rows that `finish` spreads out by gaps are one
  // tile wide, and 16 floats apart before that.
  virtual void matmul_finish(const Acts& acts, float* y, int64_t ldy, int64_t tile_begin, int64_t tile_end,
                             void* scratch, const Finish& finish) const;

  // The exact float32 values of one tile, transposed: out[(c - col_begin) * kTile + r], for columns
  // [col_begin, col_end), multiples of kBlock (col_end <= padded_in). Rows >= out and columns >= in come as zero.
  // This is what every claim of exactness refers to; must not allocate.
  virtual void expand(int64_t tile, int64_t col_begin, int64_t col_end, float* out) const = 0;

  // From `expand`; float32 activations, columns summed in order with fused multiply-add. Scratch: exact_scratch_bytes.
  virtual void matmul_exact(const Acts& acts, float* y, int64_t ldy, int64_t tile_begin, int64_t tile_end,
                            void* scratch) const;
  static size_t exact_scratch_bytes();

  // Rows `ids` (each 0 <= id < out) as float32, dst[i * ld + c], c < in. From `expand` unless overridden.
  virtual void gather(const int32_t* ids, int64_t n, float* dst, int64_t ld) const;

 private:
  int64_t out_, in_;
};

}  // namespace headway
