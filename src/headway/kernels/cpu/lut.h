// Look-up-table matmul (LUT-GEMM, arXiv 2206.09557) for weights kept as bit planes: what the kernels share.
//
// A weight of q bits is q planes of single bits, grouped along the columns:
//   uniform      w = scale * code + offset              code = sum_i 2^i u_i,  u_i in {0, 1}
//   non-uniform  w = sum_i alpha_i b_i + offset         b_i = 2 u_i - 1
// Four columns are a quad. For the activations x0..x3 of a quad there is one table of the 16 sums
//   T[j] = (+-x3 +-x2) + (+-x1 +-x0)                    + where bit i of j is set
// kept as int8 with one scale per segment (32 or 64 columns). The four bits of a row and plane are an index into it,
// so a product costs one byte look-up per four weight bits, and no weight is ever formed:
//   sum_c w x = scale * (sum_i 2^i sum_quads T[index_i] + (2^q - 1) sum x) / 2 + offset * sum x
// where (2^q - 1) sum x is rounded to the unit of the entries too: it is where the integer sum starts.
//
// Columns are padded with zero activations, group by group, to whole blocks of 32. The packed weight is one linear
// stream: tile of 16 rows, group, block, then the group's floats. Two layouts of a block (64 q bytes):
//   wide    one 64-byte line per plane, for a permute across 512 bits:
//             byte 4r + c    low half: row r, quad c         high half: row r, quad 4 + c          c = 0..3
//   narrow  32-byte lines, for byte shuffles inside 128-bit lanes (lane = quad):
//             pair line of planes 2p, 2p + 1 and half h of the rows, for the quads 4s .. 4s + 3:
//               lane L, byte 2j + e   low half: row 8h + j, plane 2p + e, quad 4s + L;  high half: quad 4s + 2 + L
//             plane line (the last plane of an odd q, and every plane of a non-uniform weight):
//               lane L, byte r        low half: row r, quad 4s + L;                     high half: quad 4s + 2 + L
//             order: s = 0, 1; in it the pairs p (h = 0, 1), then the single planes.
// After the last block of a group: 16 scales and 16 offsets (uniform), or 16 alphas per plane and 16 offsets, in f16
// or f32. Bytes read per weight: q/8 + 4/group (uniform, f16). Every level gives the same bits: integers are exact,
// and the float operations and their order are the same everywhere.
#pragma once
#include <stddef.h>
#include <stdint.h>

namespace headway::lut {

constexpr int64_t kRows = 16;         // rows of a tile
constexpr int64_t kColumns = 32;      // columns of a block
constexpr int64_t kTableBytes = 128;  // tables of a block: 8 quads of 16 entries

// How far ahead of their use the kernels (and their rivals) ask for lines of the weight stream: far beyond what the
// hardware prefetches by itself. All layers in turn from DRAM, one core: 1.25 ms without, 1.12 at 4 KiB, 1.0 at 8 and
// 12, 1.09 at 16, where a plain read takes 1.0; it costs 2 % in cache.
constexpr int64_t kAhead = 8192;

// A packed weight as its kernel sees it.
struct View {
  const uint8_t* data;
  int64_t tile_bytes;    // from one tile to the next
  int64_t out;           // rows of the weight; y is written no further
  int64_t blocks;        // of all columns, padded
  int64_t group_blocks;  // of a group; the last group may have fewer
  int bits;              // 1..4
  bool uniform;
  bool half;             // the group's floats are f16
};

// What a segment of activations has besides its tables.
struct Segment {
  float scale;       // half the scale of the entries; NaN where an activation is not finite
  float sum;         // of the activations
  int32_t start[4];  // for a uniform weight of 1..4 bits: (2^bits - 1) x sum, in the unit of the entries
};

// Activations as tables, row after row. A segment is `segment_blocks` blocks; none crosses a group's end.
struct Tables {
  const int8_t* entries;    // [row][block][8 quads][16]
  const Segment* segments;  // [row][segment]
  int64_t rows;
  int64_t entry_stride;     // bytes between rows
  int64_t segment_stride;   // segments between rows
  int64_t segment_blocks;   // 1 or 2
};

// The kernels of one instruction set.
struct Kernels {
  const char* name;
  bool wide;  // the layout `matmul` reads
  // y[row * ldy + o], for the rows o of the tiles [begin, end).
  void (*matmul)(const View& w, const Tables& x, float* y, int64_t ldy, int64_t begin, int64_t end);
  // Rows of one tile as 4-bit integer tiles (IntTiles in ../kernels.h), for batches that the dense kernel does faster.
  // Uniform weights with groups of whole blocks only.
  void (*codes)(const View& w, int64_t tile, uint8_t* out);
  // Tables of `blocks` blocks (32 activations each) in segments of `segment_blocks`; the last may be short.
  void (*build)(const float* x, int64_t blocks, int64_t segment_blocks, int8_t* entries, Segment* segments);
};

// Where in its block (64 * bits bytes) the nibble of a row, quad (0..7) and plane lies: byte, and shift 0 or 4.
struct Place {
  int64_t byte;
  int shift;
};
Place place(bool wide, int bits, bool uniform, int plane, int64_t quad, int64_t row);

const Kernels& portable_kernels();
#if HEADWAY_X86
const Kernels& avx2_kernels();
const Kernels& avx512_kernels();
const Kernels& vbmi_kernels();
#endif

}  // namespace headway::lut
