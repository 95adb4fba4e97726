// Tokens in lanes: a few rows times a panel of tokens in registers; for strips of 1 to 8 rows.
//
//   acc[r][0..width-1] += values[entry, k, r] * panel[column + k][0..width-1]
//
//   panel [padded, width]   x transposed: one row a column of x, `width` tokens side by side
//     column c    t0 t1 t2 ... t(width-1)       width = kVectors x lanes, up to 8 / R vectors
//
// A kept weight costs one broadcast and `width` multiply-adds whose operand is in L1 or L2; R rows
// share each load of the panel. One token: scalar, x itself is the panel; with R = 1 the dot product
// runs along the entries instead, or along the columns of wide blocks. Sums are float32, in the order
// of the entries (of kSplit interleaved runs, of lanes for one token) and in pieces of kSumPiece terms:
// no dependence on threads.
#pragma once

#include "cpu/row_lanes.h"

namespace evoprune::EVOPRUNE_ISA {

// The strips of one tile of 16 rows.
template <typename T, typename Index>
struct Strips {
  const T* values;         // of the whole weight
  const Index* columns;    // of the whole weight
  const int32_t* row_ptr;  // of this tile's first strip
  int64_t strips;
  int bk;
};

template <typename T, int R, int kVectors>
struct TokenTile {
  static constexpr int kSplit = R * kVectors >= 5 ? 1 : R * kVectors >= 3 ? 2 : 4;
  static constexpr int kWidth = kVectors * kLanes;
  Vec acc[kSplit][R][kVectors];

  EVOPRUNE_INLINE void step(int s, const T* w, const float* x) {
    Vec weights[R];
    for (int r = 0; r < R; ++r) weights[r] = broadcast(to_float(w[r]));
#pragma GCC unroll 8
    for (int v = 0; v < kVectors; ++v) {
      const Vec xv = load(x + v * kLanes);
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) acc[s][r][v] = fma(weights[r], xv, acc[s][r][v]);
    }
  }

  template <typename Index>
  EVOPRUNE_INLINE void add_entries(const T* w, const Index* columns, int64_t entries, int bk,
                                   const float* panel) {
    for (auto& part : acc)
      for (auto& row : part)
        for (Vec& v : row) v = zero();
    if (bk == 1) {
      int64_t e = 0;
      for (; e + kSplit <= entries; e += kSplit) {
#pragma GCC unroll 4
        for (int s = 0; s < kSplit; ++s, w += R)
          step(s, w, panel + int64_t{columns[e + s]} * kWidth);
      }
      for (; e < entries; ++e, w += R) step(0, w, panel + int64_t{columns[e]} * kWidth);
      return;
    }
    for (int64_t e = 0; e < entries; ++e) {
      const float* x = panel + int64_t{columns[e]} * kWidth;
      int k = 0;
      for (; k + kSplit <= bk; k += kSplit, x += kSplit * kWidth) {
#pragma GCC unroll 4
        for (int s = 0; s < kSplit; ++s, w += R) step(s, w, x + s * kWidth);
      }
      for (; k < bk; ++k, w += R, x += kWidth) step(0, w, x);
    }
  }

  // sums [R][width]: the total of all entries, piece by piece.
  template <typename Index>
  EVOPRUNE_INLINE void run(const T* w, const Index* columns, int64_t entries, int bk,
                           const float* panel, float* sums) {
    const int64_t piece = entries_of_piece(kSplit, bk);
    int64_t e = 0;
    do {
      const int64_t count = entries - e < piece ? entries - e : piece;
      add_entries(w + e * bk * R, columns + e, count, bk, panel);
      for (int r = 0; r < R; ++r)
        for (int v = 0; v < kVectors; ++v) {
          Vec sum = acc[0][r][v];
          for (int s = 1; s < kSplit; ++s) sum += acc[s][r][v];
          float* total = sums + r * kWidth + v * kLanes;
          store(total, e == 0 ? sum : load(total) + sum);
        }
      e += count;
    } while (e < entries);
  }
};

// sums [16][width] of one tile, rows beyond the last strip left alone
template <typename T, typename Index, int R, int kVectors>
void tokens_tile(const Strips<T, Index>& s, const float* panel, float* sums) {
  constexpr int kWidth = kVectors * kLanes;
  for (int64_t i = 0; i < s.strips; ++i) {
    const int64_t first = s.row_ptr[i];
    TokenTile<T, R, kVectors> tile;
    tile.run(s.values + first * s.bk * R, s.columns + first, s.row_ptr[i + 1] - first, s.bk, panel,
             sums + i * R * kWidth);
  }
}

template <typename T, typename Index, int R, int kVectors>
EVOPRUNE_INLINE void dispatch_tokens(int vectors, const Strips<T, Index>& s, const float* panel,
                                     float* sums) {
  if constexpr (kVectors > 1) {
    if (vectors < kVectors)
      return dispatch_tokens<T, Index, R, kVectors - 1>(vectors, s, panel, sums);
  }
  tokens_tile<T, Index, R, kVectors>(s, panel, sums);
}

// The x of kLanes entries, one by one: 1.5 times as fast as the gather instruction on Zen 3.
template <typename Index>
EVOPRUNE_INLINE Vec gather(const float* x, const Index* columns) {
  Vec r;
#pragma GCC unroll 16
  for (int i = 0; i < kLanes; ++i) r[i] = x[columns[i]];
  return r;
}

// One token, one row of single columns: entries in lanes.
template <typename T, typename Index>
EVOPRUNE_INLINE float one_row(const T* w, const Index* columns, int64_t entries, const float* x) {
  Vec acc[2] = {zero(), zero()};
  int64_t e = 0;
  for (; e + 2 * kLanes <= entries; e += 2 * kLanes) {
    prefetch(reinterpret_cast<const char*>(w + e) + 2048);
    prefetch(reinterpret_cast<const char*>(columns + e) + 1024);
    acc[0] = fma(load(w + e), gather(x, columns + e), acc[0]);
    acc[1] = fma(load(w + e + kLanes), gather(x, columns + e + kLanes), acc[1]);
  }
  if (e + kLanes <= entries) {
    acc[0] = fma(load(w + e), gather(x, columns + e), acc[0]);
    e += kLanes;
  }
  float rest = 0;
  for (; entries < kLanes && e < entries; ++e) rest = fma(to_float(w[e]), x[columns[e]], rest);
  if (e < entries) {  // a vector that ends with the row: what it repeats is 0 on both sides
    const int64_t last = entries - kLanes;
    IVec fresh;
    for (int i = 0; i < kLanes; ++i) fresh[i] = i;
    fresh = fresh >= broadcast(static_cast<int32_t>(e - last));
    acc[1] = fma(keep_where(fresh, load(w + last)), keep_where(fresh, gather(x, columns + last)),
                 acc[1]);
  }
  return sum(acc[0] + acc[1]) + rest;
}

// One token: sums [16].
template <typename T, typename Index, int R>
void one_token_tile(const Strips<T, Index>& s, const float* x, float* sums) {
  for (int64_t i = 0; i < s.strips; ++i) {
    const int64_t first = s.row_ptr[i], entries = s.row_ptr[i + 1] - first;
    const T* w = s.values + first * s.bk * R;
    const Index* columns = s.columns + first;
    if (R == 1 && s.bk == 1) {
      sums[i] = one_row(w, columns, entries, x);
      continue;
    }
    float acc[4][R] = {};
    if (R == 1 && s.bk >= kLanes) {
      Vec along = zero();
      for (int64_t e = 0; e < entries; ++e, w += s.bk) {
        const float* xe = x + columns[e];
        int k = 0;
        for (; k + kLanes <= s.bk; k += kLanes) along = fma(load(w + k), load(xe + k), along);
        for (; k < s.bk; ++k) acc[0][0] = fma(to_float(w[k]), xe[k], acc[0][0]);
      }
      acc[0][0] += sum(along);
    } else if (s.bk == 1) {
      int64_t e = 0;
      for (; e + 4 <= entries; e += 4, w += 4 * R) {
        prefetch(reinterpret_cast<const char*>(w) + 1024);
        prefetch(reinterpret_cast<const char*>(columns + e) + 512);
#pragma GCC unroll 4
        for (int p = 0; p < 4; ++p)
          for (int r = 0; r < R; ++r)
            acc[p][r] = fma(to_float(w[p * R + r]), x[columns[e + p]], acc[p][r]);
      }
      for (; e < entries; ++e, w += R)
        for (int r = 0; r < R; ++r) acc[0][r] = fma(to_float(w[r]), x[columns[e]], acc[0][r]);
    } else {
      const int64_t piece = entries_of_piece(1, s.bk);
      for (int64_t e = 0; e < entries;) {
        const int64_t end = entries - e < piece ? entries : e + piece;
        float part[R] = {};
        for (; e < end; ++e) {
          const float* xe = x + columns[e];
          for (int k = 0; k < s.bk; ++k, w += R)
            for (int r = 0; r < R; ++r) part[r] = fma(to_float(w[r]), xe[k], part[r]);
        }
        for (int r = 0; r < R; ++r) acc[0][r] += part[r];
      }
    }
    for (int r = 0; r < R; ++r) sums[i * R + r] = (acc[0][r] + acc[1][r]) + (acc[2][r] + acc[3][r]);
  }
}

// Vectors of the panel that starts at a token with `left` tokens to go.
EVOPRUNE_INLINE int panel_vectors(int64_t left, int most) {
  const int64_t vectors = (left + kLanes - 1) / kLanes;
  return vectors < most ? static_cast<int>(vectors) : most;
}

inline void write_tile(const StripArgs& a, const TileRows& rows, const float* sums, int width,
                       int64_t token) {
  const int64_t left = a.tokens - token;
  const int64_t tokens = left < width ? left : width;
  float by_token[kLanes * kTile];
  for (int64_t t = 0; t < tokens; t += kLanes) {
    for (int r = 0; r < kTile; r += 4)
      for (int l = 0; l < kLanes; l += 4)
        transpose4(sums + r * width + t + l, width, by_token + l * kTile + r, kTile);
    for (int64_t l = 0; l < kLanes && t + l < tokens; ++l)
      finish(token_outputs(a.y, token + t + l, a.out_features, a.epilogue), by_token + l * kTile,
             a.epilogue, rows.row, rows.count);
  }
}

// Tiles [begin, end) of rows, all tokens, panel by panel.
template <typename T, typename Index, int R>
void tokens_in_lanes(const StripArgs& a, int64_t begin, int64_t end) {
  constexpr int kMost = 8 / R;
  const int most = a.panel_vectors < kMost ? a.panel_vectors : kMost;
  float sums[kTile * kMost * kLanes] = {};
  const int64_t step = a.tokens == 1 ? 1 : most * kLanes;
  for (int64_t token = 0; token < a.tokens; token += step) {
    const float* panel = a.x + token * a.padded;
    const int vectors = panel_vectors(a.tokens - token, most);
    for (int64_t tile = begin; tile < end; ++tile) {
      const TileRows rows = tile_rows(tile, a.out_features);
      const Strips<T, Index> strips{static_cast<const T*>(a.values),
                                    static_cast<const Index*>(a.columns),
                                    a.row_ptr + tile * (kTile / R), (rows.count + R - 1) / R, a.bk};
      if (a.tokens == 1) {
        one_token_tile<T, Index, R>(strips, a.x, sums);
        finish(a.y, sums, a.epilogue, rows.row, rows.count);
      } else {
        dispatch_tokens<T, Index, R, kMost>(vectors, strips, panel, sums);
        write_tile(a, rows, sums, vectors * kLanes, token);
      }
    }
  }
}

}  // namespace evoprune::EVOPRUNE_ISA
