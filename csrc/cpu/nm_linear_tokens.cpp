// nm_linear_tokens: nm_linear for many tokens, patterns 1:4 and 2:4.
//
//   y[t, row] = act(bias[row] + sum over the slots s of row:  values[row, s] * x[t, (s / n) * 4 +
//   index[row, s]])
//
//   tokens in lanes: x is turned into panels of 64 tokens, so a column of a panel is a few vectors
//
//     panel [K, 64]        column c:  t0 t1 t2 .. t63        256 bytes
//     one kept value of one row:      w = broadcast(values[row, s])
//                                     c = 4 * (s / n) + index        index * 256 is two operations
//                                     sums[row, 0:64] += w * panel[c, 0:64]    fma with memory
//
// Against rows in lanes (nm_linear.cpp) no permute is needed: one load and one fma a vector, and
// the broadcast is shared by the vectors of the panel. A piece of 64 columns of the panel stays in
// L1 while a strip of row tiles passes; the sums of the strip lie in L2 between pieces.
//
// Work unit: (panel, row tile). Every sum runs over the slots in order: the result is the same for
// every number of threads. float32 sums, in the pieces of 64 columns. Weights: layout "cpu" of
// core/nm_layout.h.
#include "core/nm_layout.h"
#include "cpu/epilogue.h"
#include "cpu/kernels.h"
#include "cpu/simd.h"

namespace evoprune::EVOPRUNE_ISA {

namespace {

constexpr int kPanel = kNmTokenPanel;
constexpr int kPerWord = 16;                                         // 2-bit indices
constexpr int kVectors = kPanel / kLanes < 8 ? kPanel / kLanes : 8;  // of sums of a row
constexpr int kRows = kVectors < 8 ? 4 : 1;  // rows at once: 8 or 16 vectors of sums
constexpr int kPasses = kPanel / kLanes / kVectors;
constexpr int64_t kStrip = 16;  // tiles whose sums wait in L2
constexpr int64_t kColumnBytes = kPanel * sizeof(float);
static_assert(kColumnBytes == 256, "the offset of a column is its index shifted by 8");

// The byte offset of the column that slot s of a word names.
EVOPRUNE_INLINE uint32_t offset(uint32_t word, int s) {
  return (s < 4 ? word << (8 - 2 * s) : word >> (2 * s - 8)) & 0x300u;
}

// sums[r, 0:64] (+)= the given words of kRows rows.
template <int n, typename T>
EVOPRUNE_INLINE void add_rows(const T* values, const int32_t* meta, const float* panel,
                              int64_t words, bool first, float* sums) {
  Vec acc[kRows][kVectors];
  for (int r = 0; r < kRows; ++r)
    for (int v = 0; v < kVectors; ++v) acc[r][v] = zero();
  const char* x = reinterpret_cast<const char*>(panel);
  for (int64_t w = 0; w < words; ++w) {
    uint32_t word[kRows];
    for (int r = 0; r < kRows; ++r) word[r] = static_cast<uint32_t>(meta[r]);
#pragma GCC unroll 16
    for (int s = 0; s < kPerWord; ++s)
#pragma GCC unroll 4
      for (int r = 0; r < kRows; ++r) {
        const Vec value = broadcast(to_float(values[s * kNmTile + r]));
        const float* column =
            reinterpret_cast<const float*>(x + offset(word[r], s)) + s / n * 4 * kPanel;
#pragma GCC unroll 8
        for (int v = 0; v < kVectors; ++v)
          acc[r][v] = fma(load(column + v * kLanes), value, acc[r][v]);
      }
    values += kPerWord * kNmTile;
    meta += kNmTile;
    x += kPerWord / n * 4 * kColumnBytes;
  }
  for (int r = 0; r < kRows; ++r)
    for (int v = 0; v < kVectors; ++v) {
      float* total = sums + r * kPanel + v * kLanes;
      store(total, first ? acc[r][v] : load(total) + acc[r][v]);
    }
}

// The sums of a tile, token by token, to y.
void finish_tile(const NmLinearArgs& a, int64_t tile, int64_t token, const float* sums) {
  const int64_t row = tile * kNmTile, rows = a.rows - row < kNmTile ? a.rows - row : kNmTile;
  const int64_t tokens = a.tokens - token < kPanel ? a.tokens - token : kPanel;
  float by_token[4][kNmTile];
  for (int64_t t = 0; t < tokens; t += 4) {
    for (int r = 0; r < kNmTile; r += 4)
      transpose4(sums + r * kPanel + t, kPanel, &by_token[0][r], kNmTile);
    for (int64_t i = 0; i < 4 && t + i < tokens; ++i)
      finish(token_outputs(a.y, token + t + i, a.rows, a.epilogue), by_token[i], a.epilogue, row,
             rows);
  }
}

template <int n, typename T>
void strip(const NmLinearArgs& a, int64_t panel, int64_t from, int64_t to) {
  constexpr int64_t kPiece = n;  // words: 64 columns
  alignas(64) float sums[kStrip][kNmTile * kPanel];
  const int64_t words = a.slots / kPerWord;
  const float* x = a.x + panel * kPanel * a.x_stride;
  for (int64_t w = 0; w < words; w += kPiece) {
    const int64_t count = w + kPiece < words ? kPiece : words - w;
    const float* piece = x + w * (kPerWord / n) * 4 * kPanel;
    for (int64_t tile = from; tile < to; ++tile) {
      const T* values = static_cast<const T*>(a.values) + (tile * a.slots + w * kPerWord) * kNmTile;
      const int32_t* meta = a.meta + (tile * words + w) * kNmTile;
      for (int pass = 0; pass < kPasses; ++pass)
        for (int r = 0; r < kNmTile; r += kRows) {
          const int at = pass * kVectors * kLanes;
          add_rows<n>(values + r, meta + r, piece + at, count, w == 0,
                      sums[tile - from] + r * kPanel + at);
        }
    }
  }
  for (int64_t tile = from; tile < to; ++tile)
    finish_tile(a, tile, panel * kPanel, sums[tile - from]);
}

template <int n, typename T>
void run(const NmLinearArgs& a, int64_t begin, int64_t end) {
  const int64_t tiles = (a.rows + kNmTile - 1) / kNmTile;
  while (begin < end) {
    const int64_t panel = begin / tiles, from = begin % tiles;
    int64_t to = from + (end - begin);
    to = to < tiles ? to : tiles;
    to = to < from + kStrip ? to : from + kStrip;
    strip<n, T>(a, panel, from, to);
    begin += to - from;
  }
}

template <int n>
void run_dtype(const NmLinearArgs& a, int64_t begin, int64_t end) {
  switch (a.dtype) {
    case DType::f32:
      return run<n, float>(a, begin, end);
    case DType::bf16:
      return run<n, bf16>(a, begin, end);
    case DType::i8:
      return run<n, int8_t>(a, begin, end);
  }
}

}  // namespace

void nm_linear_tokens(const NmLinearArgs& a, int64_t begin, int64_t end) {
  a.n == 2 ? run_dtype<2>(a, begin, end) : run_dtype<1>(a, begin, end);
}

}  // namespace evoprune::EVOPRUNE_ISA
