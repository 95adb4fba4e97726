// Rows in lanes for few tokens, several tiles of rows side by side: their weights arrive from memory
// as several streams.
//
//   tile 0   [piece 0][piece 1][piece 2] ..        pieces of kStreamColumns columns x 16 rows
//   tile 1   [piece 0][piece 1][piece 2] ..
//   tile 2   [piece 0][piece 1][piece 2] ..        order: piece 0 of each tile, piece 1 of each, ..
//   tile 3   [piece 0][piece 1][piece 2] ..
//
// A core follows several sequential streams faster than one, since the prefetcher of each stream
// stops at a page and waits (measured on Zen 3, one token: 1.1 to 1.3 times as fast as one stream
// with software prefetch, for strips that are long enough). Sums are float32, a piece at a time: no
// dependence on threads or on the tiles beside.
#pragma once

#include "cpu/row_lanes.h"

namespace evoprune::EVOPRUNE_ISA {

inline constexpr int kStreams = 4;
inline constexpr int kStreamColumns = 16;  // of a piece: 1 KB of float
// The most tokens; none with AVX-512, where it was not measured.
inline constexpr int kStreamTokens = EVOPRUNE_LEVEL == 2 ? 0 : 2;
// Of a strip, on average: shorter strips have too few pieces.
inline constexpr int64_t kLongColumns = 256;

// A piece of a strip: entries, or a part of a wide entry.
template <typename T, typename Index>
struct Pieces {
  Strip<T, Index> strip;  // a wide entry counts as several of kStreamColumns columns
  int64_t entries = 0, of_piece = 1, of_entry = 1, count = 0;

  Pieces() = default;
  EVOPRUNE_INLINE explicit Pieces(Strip<T, Index> s) : strip(s) {
    of_entry = s.bk > kStreamColumns && s.bk % kStreamColumns == 0 ? s.bk / kStreamColumns : 1;
    strip.bk = static_cast<int>(s.bk / of_entry);
    entries = s.entries * of_entry;
    of_piece = of_entry > 1 || strip.bk >= kStreamColumns ? 1 : kStreamColumns / strip.bk;
    count = (entries + of_piece - 1) / of_piece;
  }

  // totals [kTokens][16] += piece i times kTokens tokens of x.
  template <int kTokens>
  EVOPRUNE_INLINE void add(int64_t i, const float* x, int64_t stride, float* totals) const {
    const int64_t e = i * of_piece, end = e + of_piece < entries ? e + of_piece : entries;
    RowTile<T, kTokens, false> tile;
    tile.start();
    if (of_entry > 1) {
      const Strip<T, Index> part{strip.values + e * strip.bk * kTile, strip.columns + e / of_entry,
                                 1, strip.bk};
      tile.add_entries(part, 0, 1, x + e % of_entry * strip.bk, stride);
    } else {
      tile.add_entries(strip, e, end, x, stride);
    }
    for (int t = 0; t < kTokens; ++t)
      for (int v = 0; v < kRowVectors; ++v) {
        float* total = totals + t * kTile + v * kLanes;
        store(total, load(total) + tile.sum(t, v));
      }
  }
};

// `count` tiles from `first`, kTokens tokens.
template <typename T, typename Index, int kTokens>
void stream_tiles(const StripArgs& a, int64_t first, int count) {
  alignas(64) float totals[kStreams][kTokens * kTile] = {};
  Pieces<T, Index> streams[kStreams];
  int64_t most = 0;
  for (int s = 0; s < count; ++s) {
    streams[s] = Pieces<T, Index>(strip_of<T, Index>(a, first + s));
    most = streams[s].count > most ? streams[s].count : most;
  }
  for (int64_t i = 0; i < most; ++i)
    for (int s = 0; s < count; ++s)
      if (i < streams[s].count) streams[s].template add<kTokens>(i, a.x, a.padded, totals[s]);
  for (int s = 0; s < count; ++s) {
    const TileRows rows = tile_rows(first + s, a.out_features);
    for (int t = 0; t < kTokens; ++t)
      finish(token_outputs(a.y, t, a.out_features, a.epilogue), totals[s] + t * kTile, a.epilogue,
             rows.row, rows.count);
  }
}

// Whether this product is better run as streams; depends on the whole weight, not on a thread's share.
inline bool has_streams(const StripArgs& a) {
  const int64_t tiles = (a.out_features + kTile - 1) / kTile;
  return a.tokens <= kStreamTokens && int64_t{a.row_ptr[tiles]} * a.bk >= kLongColumns * tiles;
}

// Tiles [begin, end) of rows, 1 to kTokens tokens.
template <typename T, typename Index, int kTokens = 2>
void rows_in_streams(const StripArgs& a, int64_t begin, int64_t end) {
  if constexpr (kTokens > 1) {
    if (a.tokens < kTokens) return rows_in_streams<T, Index, kTokens - 1>(a, begin, end);
  }
  for (int64_t tile = begin; tile < end; tile += kStreams)
    stream_tiles<T, Index, kTokens>(
        a, tile, static_cast<int>(end - tile < kStreams ? end - tile : kStreams));
}

}  // namespace evoprune::EVOPRUNE_ISA
