// nm_linear: y = act(x W^T + bias), W of an n:m pattern in the layout "cpu".
//
//   y[t, row] = act(bias[row] + sum over the slots s of row:  values[row, s] * x[t, (s / n) * m +
//   index[row, s]])
//
//   rows in lanes: a vector holds the same slot of 4, 8 or 16 rows of a tile
//
//     x[t, g*m ..]     | a0 a1 a2 a3 |             one load, repeated in every 128-bit lane
//     index of rows      1  3  0  0  2 ..          bits of one word of meta, shifted down slot by
//     slot permuted           a1 a3 a0 a0 a2 ..         one permute: every row picks its activation
//     values             w0 w1 w2 w3 w4 ..         one load, shared by the tokens of the block
//     sums of token t   += values * permuted       one fma
//
// A block of tokens keeps its sums in registers while a tile's values pass by once; y is written 16
// outputs at a time. Fewer than 8 tokens read x as it is; whole blocks of 8 read a panel in which
// the 4 columns of a group of all 8 tokens lie side by side. Per token, vector and slot: one permute
// and one fma, against two fma of a dense product at half density. Row tiles are walked in strips
// whose weights stay in L2 while the tokens pass. Many tokens of 1:4 and 2:4: nm_linear_tokens.cpp.
//
// Work unit: (token block, row tile). Every sum runs over the slots in one fixed order that depends
// only on the token's place in its block, so the result is the same for every number of threads.
// float32 sums, in pieces of at most kSumPiece slots. Source of the tiling: the 2:4 compressed layout
// of Mishra et al., "Accelerating Sparse Deep Neural Networks", 2021, turned to rows.
#include "core/nm_layout.h"
#include "cpu/epilogue.h"
#include "cpu/kernels.h"
#include "cpu/simd.h"
#include "cpu/simd_window.h"
#include "cpu/stored.h"

namespace evoprune::EVOPRUNE_ISA {

// n = 0: any n, known only at run time.
template <int n_, int m_, int window_>
struct Pattern {
  static constexpr int n = n_, m = m_, window = window_;
  static constexpr int bits = window <= 4 ? 2 : window <= 16 ? 4 : 8;
  static constexpr int per_word = 32 / bits;
};

constexpr int kVecs = kNmTile / kLanes;         // vectors in a tile
constexpr int kTokens = kNmPanel;               // of the largest block
constexpr int kStreams = kLanes == 16 ? 1 : 4;  // tiles side by side; AVX-512: not measured
constexpr int64_t kStreamSlots = 16;            // of a tile at a time: 1 KB of float
constexpr int64_t kStripTiles = 64;             // whose weights take at most 3/8 of L2
constexpr int kUnrolledGroups =
    kLanes == 4 ? 1 : 16;  // at baseline: seconds to compile, not minutes

// Tokens share one pass over the weights: `tokens` x `vecs` x `chains` sums in registers.
template <int tokens_>
struct Block {
  static constexpr int tokens = tokens_;
  static constexpr int limit = kLanes == 16 ? 16 : 8;  // sums, so that all else fits as well
  static constexpr int vecs = tokens * kVecs <= limit            ? kVecs
                              : tokens * 2 <= limit && kVecs > 1 ? 2
                                                                 : 1;
  static constexpr int chains = tokens * vecs <= 2 ? 4 : tokens * vecs <= 4 ? 2 : 1;
};

// Where x lies: token t, column c of a group of 4 at x + t * token + group * 4-column group.
struct Steps {
  int64_t token, group;
};

// One word of indices of known n: the slots are unrolled.
template <class P, class B, typename T>
EVOPRUNE_INLINE void add_word(Vec (&acc)[B::tokens][B::vecs][B::chains], const float* x,
                              Steps steps, const T* values, const int32_t* meta) {
  IVec index[B::vecs];
  for (int v = 0; v < B::vecs; ++v) index[v] = load_bits<IVec>(meta + v * kLanes);
#pragma GCC unroll kUnrolledGroups
  for (int g = 0; g < P::per_word / P::n; ++g) {
    Vec w[P::n][B::vecs];
    IVec key[P::n][B::vecs];
#pragma GCC unroll 4
    for (int s = 0; s < P::n; ++s)
#pragma GCC unroll 4
      for (int v = 0; v < B::vecs; ++v) {
        w[s][v] = load(values + (g * P::n + s) * kNmTile + v * kLanes);
        key[s][v] = Window<P::window>::key(index[v] >> ((g * P::n + s) * P::bits));
      }
#pragma GCC unroll 24
    for (int t = 0; t < B::tokens; ++t) {
      const Window<P::window> window(x + t * steps.token + g * steps.group);
#pragma GCC unroll 4
      for (int s = 0; s < P::n; ++s)
#pragma GCC unroll 4
        for (int v = 0; v < B::vecs; ++v) {
          Vec& sum = acc[t][v][(g * P::n + s) % B::chains];
          sum = fma(w[s][v], window.pick(key[s][v]), sum);
        }
    }
  }
}

// Any n: one slot after the other.
template <class P, class B, typename T>
EVOPRUNE_INLINE void add_slots(const NmLinearArgs& a, Vec (&acc)[B::tokens][B::vecs][B::chains],
                               const float* x, const T* values, const int32_t* meta, int64_t from,
                               int64_t to) {
  int in_group = static_cast<int>(from * P::per_word % a.n);
  x += from * P::per_word / a.n * a.m;
  values += from * P::per_word * kNmTile;
  meta += from * kNmTile;
  for (int64_t w = from; w < to; ++w, meta += kNmTile) {
    IVec index[B::vecs];
    for (int v = 0; v < B::vecs; ++v) index[v] = load_bits<IVec>(meta + v * kLanes);
    for (int s = 0; s < P::per_word; ++s, values += kNmTile) {
      IVec key[B::vecs];
      for (int v = 0; v < B::vecs; ++v) key[v] = Window<P::window>::key(index[v]);
#pragma GCC unroll 24
      for (int t = 0; t < B::tokens; ++t) {
        const Window<P::window> window(x + t * a.token_step);
#pragma GCC unroll 4
        for (int v = 0; v < B::vecs; ++v)
          acc[t][v][0] = fma(load(values + v * kLanes), window.pick(key[v]), acc[t][v][0]);
      }
      for (int v = 0; v < B::vecs; ++v) index[v] = index[v] >> P::bits;
      if (++in_group == a.n) {
        in_group = 0;
        x += a.m;
      }
    }
  }
}

// sums[t, 0:16] (+)= the piece of words [from, to) of one tile, for B::tokens tokens that start at x.
template <class P, class B, typename T>
static void tile_sums(const NmLinearArgs& a, int64_t tile, int64_t from, int64_t to, const float* x,
                      float* sums) {
  const int64_t words = a.slots / P::per_word;
  const Steps steps =
      B::tokens == kTokens ? Steps{4, 4 * kTokens} : Steps{a.token_step, a.group_step};
  for (int v0 = 0; v0 < kVecs; v0 += B::vecs) {
    const T* values = static_cast<const T*>(a.values) + tile * a.slots * kNmTile + v0 * kLanes;
    const int32_t* meta = a.meta + tile * words * kNmTile + v0 * kLanes;
    Vec acc[B::tokens][B::vecs][B::chains] = {};
    if constexpr (P::n == 0) {
      add_slots<P, B>(a, acc, x, values, meta, from, to);
    } else {
      constexpr int groups = P::per_word / P::n;
      for (int64_t w = from; w < to; ++w)
        add_word<P, B>(acc, x + w * groups * steps.group, steps, values + w * P::per_word * kNmTile,
                       meta + w * kNmTile);
    }
    for (int t = 0; t < B::tokens; ++t)
      for (int v = 0; v < B::vecs; ++v) {
        Vec sum = acc[t][v][0];
        for (int c = 1; c < B::chains; ++c) sum += acc[t][v][c];
        float* total = sums + t * kNmTile + (v0 + v) * kLanes;
        store(total, from == 0 ? sum : load(total) + sum);
      }
  }
}

static void finish_tile(const NmLinearArgs& a, int64_t tile, int64_t token, int tokens,
                        const float* sums) {
  const int64_t row = tile * kNmTile, left = a.rows - row;
  for (int t = 0; t < tokens; ++t)
    finish(token_outputs(a.y, token + t, a.rows, a.epilogue), sums + t * kNmTile, a.epilogue, row,
           left < kNmTile ? left : kNmTile);
}

// A full block of tokens with a strip of tiles, in pieces of K so that x of the block and the
// piece of a tile stay in L1.
template <class P, typename T>
static void full_block(const NmLinearArgs& a, int64_t token, int64_t from, int64_t to) {
  constexpr int64_t kPiece = kSumPiece / P::per_word;  // words
  alignas(64) float sums[kStripTiles][kTokens * kNmTile];
  const int64_t words = a.slots / P::per_word;
  const float* x = a.x + token * a.x_stride;
  for (int64_t w = 0; w < words; w += kPiece)
    for (int64_t tile = from; tile < to; ++tile)
      tile_sums<P, Block<kTokens>, T>(a, tile, w, w + kPiece < words ? w + kPiece : words, x,
                                      sums[tile - from]);
  for (int64_t tile = from; tile < to; ++tile)
    finish_tile(a, tile, token, kTokens, sums[tile - from]);
}

// B::tokens < kTokens tokens with a strip of tiles, kStreams tiles side by side: a core follows
// several streams of weights faster than one (cpu/row_streams.h).
template <class P, class B, typename T>
static void some_tokens(const NmLinearArgs& a, int64_t token, int64_t from, int64_t to) {
  constexpr int64_t kPiece = kStreamSlots / P::per_word > 0 ? kStreamSlots / P::per_word : 1;
  const int64_t words = a.slots / P::per_word;
  const float* x =
      a.x + (a.panels ? token / kTokens * kTokens * a.x_stride + token % kTokens * a.token_step
                      : token * a.token_step);
  for (int64_t first = from; first < to; first += kStreams) {
    float sums[kStreams][B::tokens * kNmTile];
    const int64_t last = first + kStreams < to ? first + kStreams : to;
    for (int64_t w = 0; w < words || w == 0; w += kPiece)
      for (int64_t tile = first; tile < last; ++tile)
        tile_sums<P, B, T>(a, tile, w, w + kPiece < words ? w + kPiece : words, x,
                           sums[tile - first]);
    for (int64_t tile = first; tile < last; ++tile)
      finish_tile(a, tile, token, B::tokens, sums[tile - first]);
  }
}

// The tokens [begin, end) with the tiles [first, last): strips of tiles outside, blocks of tokens
// inside.
template <class P, typename T>
static void region(const NmLinearArgs& a, int64_t begin, int64_t end, int64_t first, int64_t last) {
  const int64_t tile_bytes = a.slots * kNmTile * static_cast<int64_t>(sizeof(T)) + 1;
  const int64_t fitting = a.l2_bytes * 3 / 8 / tile_bytes + 1;
  const int64_t strip = fitting < kStripTiles ? fitting : kStripTiles;
  for (int64_t from = first; from < last; from += strip) {
    const int64_t to = from + strip < last ? from + strip : last;
    int64_t token = begin;
    if constexpr (P::n > 0)
      for (; a.panels && end - token >= kTokens; token += kTokens)
        full_block<P, T>(a, token, from, to);
    if constexpr (kTokens > 8)
      for (; end - token >= 8; token += 8) some_tokens<P, Block<8>, T>(a, token, from, to);
    for (; end - token >= 4; token += 4) some_tokens<P, Block<4>, T>(a, token, from, to);
    for (; end - token >= 2; token += 2) some_tokens<P, Block<2>, T>(a, token, from, to);
    for (; end - token >= 1; token += 1) some_tokens<P, Block<1>, T>(a, token, from, to);
  }
}

template <class P, typename T>
static void run(const NmLinearArgs& a, int64_t begin, int64_t end) {
  const int64_t tiles = (a.rows + kNmTile - 1) / kNmTile;
  while (begin < end) {
    const int64_t block = begin / tiles, first = begin % tiles;
    const int64_t last = first + end - begin < tiles ? first + end - begin : tiles;
    const int64_t token = block * a.block_tokens;
    const int64_t stop = token + a.block_tokens < a.tokens ? token + a.block_tokens : a.tokens;
    region<P, T>(a, token, stop, first, last);
    begin += last - first;
  }
}

template <class P>
static void run_dtype(const NmLinearArgs& a, int64_t begin, int64_t end) {
  with_stored(a.dtype, [&]<typename T>() { run<P, T>(a, begin, end); });
}

void nm_linear(const NmLinearArgs& a, int64_t begin, int64_t end) {
  if (a.m == 4 && a.n == 2) return run_dtype<Pattern<2, 4, 4>>(a, begin, end);
  if (a.m == 4 && a.n == 1) return run_dtype<Pattern<1, 4, 4>>(a, begin, end);
  if (a.m <= 4) return run_dtype<Pattern<0, 0, 4>>(a, begin, end);
  if (a.m <= 8) return run_dtype<Pattern<0, 0, 8>>(a, begin, end);
  if (a.m <= 16) return run_dtype<Pattern<0, 0, 16>>(a, begin, end);
  return run_dtype<Pattern<0, 0, 32>>(a, begin, end);
}

}  // namespace evoprune::EVOPRUNE_ISA
