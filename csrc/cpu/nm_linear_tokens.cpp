// nm_linear_tokens: nm_linear for 16 tokens and more, patterns 1:4 and 2:4.
//
//   y[t, row] = act(bias[row] + sum over the slots s of row:  values[row, s] * x[t, (s / n) * 4 +
//   index[row, s]])
//
//   tokens in lanes: x is turned into panels of W = 16, 32 or 64 tokens, so a column of a panel is a
//   few vectors
//
//     panel [K, W]         column c:  t0 t1 t2 .. t(W-1)    4 W bytes
//     one kept value of one row:      w = broadcast(values[row, s])
//                                     c = 4 * (s / n) + index       index * 4 W is two operations
//                                     sums[row, 0:W] += w * panel[c, 0:W]      fma with memory
//
// Against rows in lanes (nm_linear.cpp) no permute is needed: one load and one fma a vector, and
// the broadcast is shared by the vectors of the panel; the loads are the limit. A piece of the panel
// stays in L1 while a strip of row tiles passes, and the next tile's weights are prefetched
// meanwhile; the sums of the strip lie in L2 between pieces.
// Which tokens come here, and in what panels: core/plan.h.
//
// Work unit: (panel, row tile). Every sum runs over the slots in order: the result is the same for
// every number of threads. float32 sums, in pieces of at most kSumPiece slots, which also end with a
// piece of the panel (so they depend on the size of L1). Weights: layout "cpu" of core/nm_layout.h.
#include "core/nm_layout.h"
#include "cpu/kernels.h"
#include "cpu/planes.h"
#include "cpu/simd.h"
#include "cpu/stored.h"

namespace evoprune::EVOPRUNE_ISA {

namespace {

constexpr int kPerWord = 16;        // 2-bit indices
constexpr int64_t kStrip = 16;      // tiles whose sums wait in L2
constexpr int64_t kMostWords = 16;  // of a piece
constexpr int64_t kSumWords = kSumPiece / kPerWord;

// A panel of `width` tokens: `vectors` sums of each of `rows` rows in registers at once.
template <int width_>
struct Panel {
  static constexpr int width = width_;
  static constexpr int limit = kLanes == 16 ? 16 : 8;  // sums, so that all else fits as well
  static constexpr int vectors = width / kLanes < 8 ? width / kLanes : 8;
  static constexpr int rows = limit / vectors;
  static constexpr int passes = width / kLanes / vectors;
  static constexpr int64_t column_bytes = width * sizeof(float);
  static constexpr int shift = width == 64 ? 8 : width == 32 ? 7 : width == 16 ? 6 : 5;
  static_assert(column_bytes == 1 << shift, "the offset of a column is its index shifted");

  // The byte offset of the column that slot s of a word names.
  static EVOPRUNE_INLINE uint32_t offset(uint32_t word, int s) {
    return (2 * s < shift ? word << (shift - 2 * s) : word >> (2 * s - shift)) & 3u << shift;
  }
};

// The weights that come next: those of the next tile, a share of them for each group of rows.
struct Ahead {
  const char* values;
  int64_t slot_bytes;
};

// sums[r, 0:width] (+)= the given words of P::rows rows, in pieces of kSumPiece slots.
template <class P, int n>
EVOPRUNE_INLINE void add_rows(const float* values, const int32_t* meta, const float* panel,
                              int64_t words, bool first, Ahead ahead, float* sums) {
  const char* x = reinterpret_cast<const char*>(panel);
  for (int64_t from = 0; from < words; from += kSumWords) {
    Vec acc[P::rows][P::vectors] = {};
    const int64_t to = from + kSumWords < words ? from + kSumWords : words;
    for (int64_t w = from; w < to; ++w) {
      uint32_t word[P::rows];
      for (int r = 0; r < P::rows; ++r) word[r] = static_cast<uint32_t>(meta[r]);
#pragma GCC unroll 16
      for (int s = 0; s < kPerWord; ++s) {
        if (s % (kPerWord / P::rows) == 0) {
          prefetch(ahead.values);
          ahead.values += ahead.slot_bytes;
        }
#pragma GCC unroll 16
        for (int r = 0; r < P::rows; ++r) {
          const Vec value = broadcast(values[s * kNmTile + r]);
          const float* column =
              reinterpret_cast<const float*>(x + P::offset(word[r], s)) + s / n * 4 * P::width;
#pragma GCC unroll 8
          for (int v = 0; v < P::vectors; ++v)
            acc[r][v] = fma(load(column + v * kLanes), value, acc[r][v]);
        }
      }
      values += kPerWord * kNmTile;
      meta += kNmTile;
      x += kPerWord / n * 4 * P::column_bytes;
    }
    for (int r = 0; r < P::rows; ++r)
      for (int v = 0; v < P::vectors; ++v) {
        float* total = sums + r * P::width + v * kLanes;
        store(total, first && from == 0 ? acc[r][v] : load(total) + acc[r][v]);
      }
  }
}

// The sums of a tile to y: token by token, or in planes.
template <class P>
void finish_tile(const NmLinearArgs& a, int64_t tile, int64_t token, const float* sums) {
  const int64_t row = tile * kNmTile, rows = a.rows - row < kNmTile ? a.rows - row : kNmTile;
  const int64_t tokens = a.tokens - token < P::width ? a.tokens - token : P::width;
  if (a.planes.size > 0)
    return write_planes(a.y, a.planes, a.epilogue, a.rows, row, rows, sums, P::width, token,
                        tokens);
  float by_token[4][kNmTile];
  for (int64_t t = 0; t < tokens; t += 4) {
    for (int r = 0; r < kNmTile; r += 4)
      transpose4(sums + r * P::width + t, P::width, &by_token[0][r], kNmTile);
    for (int64_t i = 0; i < 4 && t + i < tokens; ++i)
      finish(token_outputs(a.y, token + t + i, a.rows, a.epilogue), by_token[i], a.epilogue, row,
             rows);
  }
}

// The values of a piece of a tile as float: where they lie, or widened into `buffer`.
inline const float* as_float(const float* values, int64_t, float*) {
  return values;
}
template <typename T>
const float* as_float(const T* values, int64_t count, float* buffer) {
  for (int64_t i = 0; i < count; i += kLanes) store(buffer + i, load(values + i));
  return buffer;
}

template <class P, int n, typename T>
void strip(const NmLinearArgs& a, int64_t panel, int64_t from, int64_t to) {
  constexpr int64_t kWordBytes = kPerWord / n * 4 * P::column_bytes;  // of a panel, for a word
  const int64_t words = a.slots / kPerWord, fitting = a.piece_bytes / kWordBytes;
  const int64_t piece_words = fitting < 1 ? 1 : fitting < kMostWords ? fitting : kMostWords;
  alignas(64) float sums[kStrip][kNmTile * P::width];
  alignas(64) float widened[sizeof(T) == 4 ? 1 : kMostWords * kPerWord * kNmTile];
  const float* x = a.x + panel * P::width * a.x_stride;
  for (int64_t w = 0; w < words; w += piece_words) {
    const int64_t count = w + piece_words < words ? piece_words : words - w;
    const float* piece = x + w * (kPerWord / n) * 4 * P::width;
    for (int64_t tile = from; tile < to; ++tile) {
      const T* stored = static_cast<const T*>(a.values) + (tile * a.slots + w * kPerWord) * kNmTile;
      const float* values = as_float(stored, count * kPerWord * kNmTile, widened);
      const int32_t* meta = a.meta + (tile * words + w) * kNmTile;
      // the same piece of the next tile; behind the last one a piece that is not needed
      const T* next = tile + 1 < to ? stored + a.slots * kNmTile : stored;
      for (int pass = 0; pass < P::passes; ++pass)
        for (int r = 0; r < kNmTile; r += P::rows) {
          const int at = pass * P::vectors * kLanes;
          const Ahead ahead{reinterpret_cast<const char*>(next + r * count * kNmTile),
                            kNmTile * static_cast<int64_t>(sizeof(T))};
          add_rows<P, n>(values + r, meta + r, piece + at, count, w == 0, ahead,
                         sums[tile - from] + r * P::width + at);
        }
    }
  }
  for (int64_t tile = from; tile < to; ++tile)
    finish_tile<P>(a, tile, panel * P::width, sums[tile - from]);
}

template <class P, int n, typename T>
void run(const NmLinearArgs& a, int64_t begin, int64_t end) {
  const int64_t tiles = (a.rows + kNmTile - 1) / kNmTile;
  while (begin < end) {
    const int64_t panel = begin / tiles, from = begin % tiles;
    int64_t to = from + (end - begin);
    to = to < tiles ? to : tiles;
    to = to < from + kStrip ? to : from + kStrip;
    strip<P, n, T>(a, panel, from, to);
    begin += to - from;
  }
}

template <int n, typename T>
void run_width(const NmLinearArgs& a, int64_t begin, int64_t end) {
  switch (a.panel_tokens) {
    case 16:
      return run<Panel<16>, n, T>(a, begin, end);
    case 32:
      return run<Panel<32>, n, T>(a, begin, end);
    default:
      return run<Panel<64>, n, T>(a, begin, end);
  }
}

}  // namespace

void nm_linear_tokens(const NmLinearArgs& a, int64_t begin, int64_t end) {
  with_stored(a.dtype, [&]<typename T>() {
    a.n == 2 ? run_width<2, T>(a, begin, end) : run_width<1, T>(a, begin, end);
  });
}

}  // namespace evoprune::EVOPRUNE_ISA
