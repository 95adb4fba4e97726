// Rows in lanes: 16 output rows times a few tokens in registers; for strips of 16 rows.
//
//   acc[t][0..15] += values[entry, k, 0..15] * x[t, column + k]
//
//               w (16 rows)                 AVX2: 2 vectors x 6 tokens = 12 accumulators,
//   x[t0] ->    acc[t0] acc[t0]             + 2 of weights + 1 broadcast of 16 registers
//   x[t1] ->    acc[t1] acc[t1]             weights are loaded once per tile of tokens, from L1 or
//   ...                                     L2 after the first one
//
// One token: the weights stream once, each line prefetched 4 KB ahead; several accumulators hide
// the latency of the multiply-add. Sums are float32, in the order of the entries (of `kSplit`
// interleaved runs for few tokens) and in pieces of kSumPiece terms: no dependence on threads.
#pragma once

#include "cpu/strips.h"

namespace evoprune::EVOPRUNE_ISA {

inline constexpr int kRowVectors = kTile / kLanes;
inline constexpr int kRowTokens = EVOPRUNE_LEVEL == 2 ? 16 : EVOPRUNE_LEVEL == 1 ? 6 : 2;
inline constexpr int64_t kFewTokens = 48;  // up to these the weights are prefetched
// Of a tile that others follow: as many rows of x as have their addresses in registers.
inline constexpr int64_t kRowTokensOfMany = EVOPRUNE_LEVEL == 2 ? 12 : kRowTokens;

// One strip: where its entries are. Columns of uint16 are those of entries of one column (2:4v16).
template <typename T, typename Index>
struct Strip {
  static constexpr bool kSingle = sizeof(Index) == 2;
  const T* values;
  const Index* columns;
  int64_t entries;
  int bk;
};

constexpr int split_of(int accumulators) {
  return accumulators >= 6 ? 1 : accumulators >= 3 ? 2 : accumulators == 2 ? 4 : 8;
}

// Entries whose terms make a piece of each of `split` sums (kSumPiece); an entry is never split.
EVOPRUNE_INLINE int64_t entries_of_piece(int split, int bk) {
  const int64_t entries = int64_t{split} * kSumPiece / bk;
  return entries > 0 ? entries : 1;
}

template <typename T, int kTokens, bool kPrefetch>
struct RowTile {
  static constexpr int kSplit = split_of(kTokens * kRowVectors);
  Vec acc[kSplit][kTokens][kRowVectors];  // of a piece, in registers
  Vec total[kTokens][kRowVectors];

  EVOPRUNE_INLINE void step(int s, const T* w, const float* x, int64_t stride) {
    if constexpr (kPrefetch) prefetch(reinterpret_cast<const char*>(w) + 4096);
    Vec weights[kRowVectors];
    for (int v = 0; v < kRowVectors; ++v) weights[v] = load(w + v * kLanes);
#pragma GCC unroll 16
    for (int t = 0; t < kTokens; ++t) {
      const Vec xt = broadcast(x[t * stride]);
#pragma GCC unroll 4
      for (int v = 0; v < kRowVectors; ++v) acc[s][t][v] = fma(weights[v], xt, acc[s][t][v]);
    }
  }

  // The entries [e, end): their steps in kSplit interleaved sums.
  template <typename Index>
  EVOPRUNE_INLINE void add_entries(const Strip<T, Index>& strip, int64_t e, int64_t end,
                                   const float* x, int64_t stride) {
    const T* w = strip.values + e * strip.bk * kTile;
    if (Strip<T, Index>::kSingle || strip.bk == 1) {
      for (; e + kSplit <= end; e += kSplit) {
#pragma GCC unroll 8
        for (int s = 0; s < kSplit; ++s, w += kTile) step(s, w, x + strip.columns[e + s], stride);
      }
      for (; e < end; ++e, w += kTile) step(0, w, x + strip.columns[e], stride);
      return;
    }
    for (; e < end; ++e) {
      const float* xe = x + strip.columns[e];
      int k = 0;
      for (; k + kSplit <= strip.bk; k += kSplit) {
#pragma GCC unroll 8
        for (int s = 0; s < kSplit; ++s, w += kTile) step(s, w, xe + k + s, stride);
      }
      if constexpr (kSplit > 1)
        for (; k < strip.bk; ++k, w += kTile) step(0, w, xe + k, stride);
    }
  }

  EVOPRUNE_INLINE void start() {
    for (auto& part : acc)
      for (auto& token : part)
        for (Vec& v : token) v = zero();
  }
  EVOPRUNE_INLINE Vec sum(int t, int v) const {
    Vec sum = acc[0][t][v];
    for (int s = 1; s < kSplit; ++s) sum += acc[s][t][v];
    return sum;
  }

  // The total of all entries, piece by piece; x: the first token, rows `stride` floats apart.
  template <typename Index>
  EVOPRUNE_INLINE void run(const Strip<T, Index>& strip, const float* x, int64_t stride) {
    const int64_t piece = entries_of_piece(kSplit, strip.bk);
    int64_t e = 0;
    do {
      start();
      const int64_t end = strip.entries - e < piece ? strip.entries : e + piece;
      add_entries(strip, e, end, x, stride);
      for (int t = 0; t < kTokens; ++t)
        for (int v = 0; v < kRowVectors; ++v)
          total[t][v] = e == 0 ? sum(t, v) : total[t][v] + sum(t, v);
      e = end;
    } while (e < strip.entries);
  }
};

// Where the sums of a tile go.
struct RowOutput {
  void* y;         // the first token of the tile, row 0 of the weight
  int64_t stride;  // between tokens
  TileRows rows;
  const Epilogue* epilogue;
};

template <typename T, typename Index, int kTokens, bool kPrefetch>
void rows_times_tokens(const Strip<T, Index>& strip, const float* x, int64_t stride,
                       const RowOutput& out) {
  RowTile<T, kTokens, kPrefetch> tile;
  tile.run(strip, x, stride);
  const Epilogue& e = *out.epilogue;
  const bool plain = e.activation <= Activation::relu && e.y_dtype == DType::f32;
  if (plain && out.rows.count == kTile) {  // nothing but scale, bias and relu
    const bool relu = e.activation == Activation::relu;
    for (int v = 0; v < kRowVectors; ++v) {
      const int64_t row = out.rows.row + v * kLanes;
      const Vec scale = load_scale(e, row, kLanes), bias = load_bias(e, row, kLanes);
      float* y = static_cast<float*>(out.y) + row;
      for (int t = 0; t < kTokens; ++t, y += out.stride) {
        const Vec z = fma(tile.total[t][v], scale, bias);
        store(y, relu ? (z < 0.0f ? zero() : z) : z);
      }
    }
    return;
  }
  float sums[kTokens][kTile];
  for (int t = 0; t < kTokens; ++t)
    for (int v = 0; v < kRowVectors; ++v) store(sums[t] + v * kLanes, tile.total[t][v]);
  for (int t = 0; t < kTokens; ++t)
    finish(token_outputs(out.y, t, out.stride, e), sums[t], e, out.rows.row, out.rows.count);
}

// The sizes of tiles: few, so that the code stays small; a size above 4 drops to the next even one,
// above 8 to the next multiple of 4.
constexpr int next_smaller(int tokens) {
  return tokens > 8 ? tokens - 4 : tokens > 4 ? tokens - 2 : tokens - 1;
}

// The largest tile of at most `left` tokens; returns how many it took.
template <typename T, typename Index, bool kPrefetch, int kTokens = kRowTokens>
EVOPRUNE_INLINE int64_t dispatch_rows(int64_t left, const Strip<T, Index>& strip, const float* x,
                                      int64_t stride, const RowOutput& out) {
  if constexpr (kTokens > 1) {
    if (left < kTokens)
      return dispatch_rows<T, Index, kPrefetch, next_smaller(kTokens)>(left, strip, x, stride, out);
  }
  rows_times_tokens<T, Index, kTokens, kPrefetch>(strip, x, stride, out);
  return kTokens;
}

template <typename T, typename Index>
EVOPRUNE_INLINE Strip<T, Index> strip_of(const StripArgs& a, int64_t tile) {
  const int64_t first = a.row_ptr[tile];
  return {static_cast<const T*>(a.values) + first * a.bk * kTile,
          static_cast<const Index*>(a.columns) + first, a.row_ptr[tile + 1] - first, a.bk};
}

// Tiles [begin, end) of rows, all tokens: tokens in groups whose x stays in L2, each tile of rows
// over all token tiles of the group.
template <typename T, typename Index>
void rows_in_lanes(const StripArgs& a, int64_t begin, int64_t end) {
  const bool few = a.tokens <= kFewTokens;
  for (int64_t g = 0; g < a.tokens; g += a.group_tokens) {
    const int64_t last = a.tokens - g < a.group_tokens ? a.tokens : g + a.group_tokens;
    for (int64_t tile = begin; tile < end; ++tile) {
      const Strip<T, Index> strip = strip_of<T, Index>(a, tile);
      RowOutput out{nullptr, a.out_features, tile_rows(tile, a.out_features), &a.epilogue};
      for (int64_t t = g; t < last;) {
        out.y = token_outputs(a.y, t, a.out_features, a.epilogue);
        const float* x = a.x + t * a.padded;
        const int64_t left = last - t, most = left > kRowTokens ? kRowTokensOfMany : left;
        if (few && t == g)
          t += dispatch_rows<T, Index, true>(most, strip, x, a.padded, out);
        else
          t += dispatch_rows<T, Index, false>(most, strip, x, a.padded, out);
      }
    }
  }
}

}  // namespace evoprune::EVOPRUNE_ISA
