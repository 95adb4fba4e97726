// strip_panels: a weight in strips (cpu/strips.h) times panels of positions, for convolutions.
//
//   acc[r][0..width-1] += values[entry, k, r] * panel[column + k][0..width-1]
//
//   strips of 16 rows      kRows rows x 3 vectors of positions in registers, so that a vector of x
//                          serves kRows rows and a broadcast weight serves 3 vectors; the groups of
//                          rows take turns at a piece of the columns, which stays in L1
//   strips of 1 to 8       cpu/token_lanes.h
//
// Against rows in lanes (cpu/row_lanes.h) the outputs lie in planes as they are summed, and x comes
// in whole runs of an image's row. Work unit: a tile of 16 rows, all tokens. Sums in float32, pieces of
// kSumPiece terms; the same for every number of threads.
#include "cpu/planes.h"
#include "cpu/token_lanes.h"

namespace evoprune::EVOPRUNE_ISA {

namespace {

constexpr int kRows = EVOPRUNE_LEVEL == 2 ? 8 : 4;

// Rows [0, kRows) of `w` over the entries [e, end): sums [kRows][width] of it, added where not first.
template <typename T, typename Index, int kVectors>
EVOPRUNE_INLINE void add_piece(const Strip<T, Index>& s, const T* w, int64_t e, int64_t end,
                               const float* panel, float* sums) {
  constexpr int kWidth = kVectors * kLanes;
  const bool first = e == 0;
  const int bk = Strip<T, Index>::kSingle ? 1 : s.bk;
  Vec acc[kRows][kVectors] = {};
  for (; e < end; ++e) {
    const float* x = panel + int64_t{s.columns[e]} * kWidth;
    for (int k = 0; k < bk; ++k, w += kTile, x += kWidth) {
      Vec xv[kVectors];
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) xv[v] = load(x + v * kLanes);
#pragma GCC unroll 8
      for (int r = 0; r < kRows; ++r) {
        const Vec weight = broadcast(to_float(w[r]));
#pragma GCC unroll 4
        for (int v = 0; v < kVectors; ++v) acc[r][v] = fma(weight, xv[v], acc[r][v]);
      }
    }
  }
  for (int r = 0; r < kRows; ++r)
    for (int v = 0; v < kVectors; ++v) {
      float* total = sums + r * kWidth + v * kLanes;
      store(total, first ? acc[r][v] : load(total) + acc[r][v]);
    }
}

// sums [16][width] of a strip of 16 rows.
template <typename T, typename Index, int kVectors>
void wide_strip(const Strip<T, Index>& s, const float* panel, float* sums) {
  const int64_t piece = entries_of_piece(1, s.bk);
  int64_t e = 0;
  do {
    const int64_t end = s.entries - e < piece ? s.entries : e + piece;
    const T* w = s.values + e * s.bk * kTile;
    for (int r = 0; r < kTile; r += kRows)
      add_piece<T, Index, kVectors>(s, w + r, e, end, panel, sums + r * kVectors * kLanes);
    e = end;
  } while (e < s.entries);
}

template <typename T, typename Index>
void wide_strips(int vectors, const Strip<T, Index>& s, const float* panel, float* sums) {
  if (vectors == 1) return wide_strip<T, Index, 1>(s, panel, sums);
  if (vectors == 2) return wide_strip<T, Index, 2>(s, panel, sums);
  wide_strip<T, Index, 3>(s, panel, sums);
}

void write_sums(const StripArgs& a, const TileRows& rows, const float* sums, int width,
                int64_t token) {
  if (a.planes.size == 0) return write_tile(a, rows, sums, width, token);
  const int64_t left = a.tokens - token;
  write_planes(a.y, a.planes, a.epilogue, a.out_features, rows.row, rows.count, sums, width, token,
               left < width ? left : width);
}

template <typename T, typename Index, int R>
void tiles(const StripArgs& a, int64_t begin, int64_t end) {
  constexpr int kMost = R == kTile ? kWideVectors : 8 / R;
  const int most = a.panel_vectors < kMost ? a.panel_vectors : kMost;
  float sums[kTile * kMost * kLanes] = {};
  for (int64_t tile = begin; tile < end; ++tile) {
    const TileRows rows = tile_rows(tile, a.out_features);
    for (int64_t token = 0; token < a.tokens; token += most * kLanes) {
      const float* panel = a.x + token * a.padded;
      const int vectors = panel_vectors(a.tokens - token, most);
      if constexpr (R == kTile) {
        wide_strips<T, Index>(vectors, strip_of<T, Index>(a, tile), panel, sums);
      } else {
        const Strips<T, Index> strips{
            static_cast<const T*>(a.values), static_cast<const Index*>(a.columns),
            a.row_ptr + tile * (kTile / R), (rows.count + R - 1) / R, a.bk};
        dispatch_tokens<T, Index, R, kMost>(vectors, strips, panel, sums);
      }
      write_sums(a, rows, sums, vectors * kLanes, token);
    }
  }
}

}  // namespace

void strip_panels(const StripArgs& a, int64_t begin, int64_t end) {
  with_strip(a, [&]<typename T, typename Index, int R>() { tiles<T, Index, R>(a, begin, end); });
}

}  // namespace evoprune::EVOPRUNE_ISA
