// w8a8_linear: y = act(x W^T + b) with int8 weights, int8 activations and int32 sums.
//
//   y[t, n] = act(s[t] * scale[n] * sum over k of q[t, k] * w[n, k]  +  b[n])
//
// W in strips of 16 rows, a strip in lines of 64 bytes: 16 rows, 4 bytes of each row side by side.
//
//   line      r0: w0 w1 w2 w3 | r1: w0 w1 w2 w3 | .. | r15: w0 w1 w2 w3     values [lines, 16, 4]
//
//   picks     the four bytes of x that w0..w3 of a row meet
//   run       x[c .. c+3]: an entry is a run of lines, `columns` its first column (16x16 blocks)
//                 in every lane: the same four bytes, broadcast
//   strip     x[c0], x[c1], x[c2], x[c3]: `columns` has four for each line (16x1 blocks, 2:4v16)
//                 gathered once for the 16 rows, for 8 tokens at a time, then as above
//   row       two kept of x[8l .. 8l+3] and two of x[8l+4 .. 8l+7], other ones for each row (2:4)
//                 `columns` is int32 [lines / 4, 16]: in the word of four lines of a row, bits 2j of
//                 byte i say which of its group's four columns line j has in place i
//                 a shuffle of 16 bytes of x, its key made from the word by a shift and two masks
//
//   acc[t][0..15] += dot4(line, x of token t)         AVX2: two vectors, up to 5 tokens at a time;
//                                                     AVX-512: one vector, up to 16 tokens
//
// Work unit: a strip, all tokens. Sums are exact up to kMaxTerms terms of 127 * 127, so neither
// their order nor the level or the number of threads changes a bit; the end is in cpu/w8a8.h.
// Source: dynamic quantisation as torch.ao.nn.quantized.dynamic.Linear, but symmetric and per token.
#include "cpu/simd_bytes.h"
#include "cpu/w8a8.h"

namespace evoprune::EVOPRUNE_ISA {

namespace {

constexpr int kMostTokens = EVOPRUNE_LEVEL == 2 ? 16 : EVOPRUNE_LEVEL == 1 ? 5 : 2;
constexpr int kLine = 4 * kTile;  // bytes
constexpr int kGathered = 512;    // lines that are gathered at a time: 16 KB for 8 tokens
constexpr int kPrefetchAhead = 4096;

// A strip and where its outputs for some tokens go.
struct Strip {
  const W8a8Args& a;
  int64_t tile, first, count;  // entries
  const int8_t* values;
  TileRows rows;

  EVOPRUNE_INLINE Strip(const W8a8Args& args, int64_t t)
      : a(args),
        tile(t),
        first(args.row_ptr[t]),
        count(args.row_ptr[t + 1] - first),
        values(args.values + first * args.lines * kLine),
        rows(tile_rows(t, args.out_features)) {}
};

// The outputs of `tokens` tokens from `token` on, from their sums.
void finish_tokens(const Strip& strip, int64_t token, int tokens, const int32_t* sums) {
  const W8a8Args& a = strip.a;
  for (int t = 0; t < tokens; ++t)
    finish_integers(token_outputs(a.y, token + t, a.out_features, a.epilogue), sums + t * kTile,
                    a.x_scale[token + t], a.epilogue, strip.rows);
}

// The sums of some tokens and the 16 rows of a strip, in registers.
template <int kTokens>
struct Accumulators {
  IVec acc[kTokens][kByteVectors];

  // What the bias of x will add is taken off first.
  EVOPRUNE_INLINE void start(const Strip& strip) {
    for (int v = 0; v < kByteVectors; ++v) {
      const int32_t* row_sums = strip.a.row_sums + strip.tile * kTile + v * kLanes;
      const IVec from = kByteBias == 0 ? IVec{} : load_lanes(row_sums) * -kByteBias;
      for (int t = 0; t < kTokens; ++t) acc[t][v] = from;
    }
  }
  EVOPRUNE_INLINE void load(const int32_t* sums) {
    for (int t = 0; t < kTokens; ++t)
      for (int v = 0; v < kByteVectors; ++v) acc[t][v] = load_lanes(sums + t * kTile + v * kLanes);
  }
  EVOPRUNE_INLINE void store(int32_t* sums) const {
    for (int t = 0; t < kTokens; ++t)
      for (int v = 0; v < kByteVectors; ++v)
        std::memcpy(sums + t * kTile + v * kLanes, &acc[t][v], sizeof(IVec));
  }
  EVOPRUNE_INLINE void finish(const Strip& strip, int64_t token) const {
    const W8a8Args& a = strip.a;
    const Epilogue& e = a.epilogue;
    if (e.activation == Activation::none && e.y_dtype == DType::f32 && strip.rows.count == kTile) {
      for (int v = 0; v < kByteVectors; ++v) {
        const int64_t row = strip.rows.row + v * kLanes;
        const Vec scale = load_scale(e, row, kLanes), bias = load_bias(e, row, kLanes);
        float* y = static_cast<float*>(a.y) + token * a.out_features + row;
        for (int t = 0; t < kTokens; ++t, y += a.out_features) {
          const Vec z = scale_sums(acc[t][v], scale, a.x_scale[token + t]);
          evoprune::EVOPRUNE_ISA::store(y, e.bias == nullptr ? z : z + bias);
        }
      }
      return;
    }
    int32_t sums[kTokens * kTile];
    store(sums);
    finish_tokens(strip, token, kTokens, sums);
  }
  // One line against four bytes of every token, `step` bytes from one to the next.
  EVOPRUNE_INLINE void add_line(const int8_t* line, const int8_t* x, int64_t step) {
    IVec w[kByteVectors];
    for (int v = 0; v < kByteVectors; ++v) w[v] = load_lanes(line + 4 * v * kLanes);
#pragma GCC unroll 16
    for (int t = 0; t < kTokens; ++t) {
      const Bytes xt(broadcast_bytes(x + t * step));
      for (int v = 0; v < kByteVectors; ++v) add(t, v, dot_x(start(t, v), xt, w[v]));
    }
  }
  // One line against what `key` picks of a window of every token.
  EVOPRUNE_INLINE void add_picked(const int8_t* line, IVec (&key)[kByteVectors], const int8_t* x,
                                  int64_t step) {
    for (int v = 0; v < kByteVectors; ++v) {
      const Bytes w(load_lanes(line + 4 * v * kLanes));
#pragma GCC unroll 16
      for (int t = 0; t < kTokens; ++t)
        add(t, v, dot_w(start(t, v), ByteWindow(x + t * step).pick(key[v]), w));
    }
  }

 private:
  // Few sums would wait for the latency of a product; they start from 0 and are added at the end.
  static constexpr bool kFew = kTokens * kByteVectors < 4;
  EVOPRUNE_INLINE IVec start(int t, int v) const { return kFew ? IVec{} : acc[t][v]; }
  EVOPRUNE_INLINE void add(int t, int v, IVec sum) { acc[t][v] = kFew ? acc[t][v] + sum : sum; }
};

// ---- the ways to pick: sums of kTokens tokens += the strip times their x ----
template <int kTokens>
EVOPRUNE_INLINE void add_runs(Accumulators<kTokens>& s, const Strip& strip, const int8_t* x) {
  const int64_t lines = strip.a.lines, stride = strip.a.x_stride;
  const int32_t* columns = static_cast<const int32_t*>(strip.a.columns) + strip.first;
  const int8_t* w = strip.values;
  for (int64_t e = 0; e < strip.count; ++e) {
    const int8_t* xe = x + columns[e];
    for (int64_t l = 0; l < lines; ++l, w += kLine) {
      prefetch(w + kPrefetchAhead);
      s.add_line(w, xe + 4 * l, stride);
    }
  }
}

template <int kTokens>
EVOPRUNE_INLINE void add_rows(Accumulators<kTokens>& s, const Strip& strip, const int8_t* x) {
  const int32_t* words = static_cast<const int32_t*>(strip.a.columns) + strip.first / 4 * kTile;
  const int64_t stride = strip.a.x_stride;
  const int8_t* w = strip.values;
  for (int64_t e = 0; e < strip.count; e += 4, words += kTile, x += 32) {
    prefetch(words + kPrefetchAhead / 16);
#pragma GCC unroll 4
    for (int j = 0; j < 4; ++j, w += kLine) {
      prefetch(w + kPrefetchAhead);
      IVec key[kByteVectors];
      for (int v = 0; v < kByteVectors; ++v)
        key[v] = ((load_lanes(words + v * kLanes) >> (2 * j)) & 0x03030303) |
                 (j % 2 == 0 ? 0x04040000 : 0x0c0c0808);
      s.add_picked(w, key, x + j / 2 * 16, stride);
    }
  }
}

using Bytes16 = int8_t __attribute__((vector_size(16)));
using Halves8 = int16_t __attribute__((vector_size(16)));

// The 8 bytes at p, one of each token of a panel.
EVOPRUNE_INLINE Bytes16 load_tokens(const int8_t* p) {
  using Long = int64_t __attribute__((vector_size(16)));
  int64_t tokens;
  std::memcpy(&tokens, p, 8);
  return (Bytes16)Long{tokens, 0};
}
EVOPRUNE_INLINE Halves8 side_by_side(Bytes16 a, Bytes16 b) {
  return (Halves8)__builtin_shufflevector(a, b, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7,
                                          23);
}

// The bytes of four columns of a panel, token by token.
template <int kPanel, typename Index>
EVOPRUNE_INLINE void gather_line(const int8_t* x, const Index* columns, int8_t* out) {
  const int8_t* c[4];
  for (int i = 0; i < 4; ++i) c[i] = x + int64_t{columns[i]} * kPanel;
  if constexpr (kPanel == 1) {
    for (int i = 0; i < 4; ++i) out[i] = *c[i];
  } else {
    static_assert(kPanel == 8);
    const Halves8 low = side_by_side(load_tokens(c[0]), load_tokens(c[1]));
    const Halves8 high = side_by_side(load_tokens(c[2]), load_tokens(c[3]));
    const Halves8 first = __builtin_shufflevector(low, high, 0, 8, 1, 9, 2, 10, 3, 11);
    const Halves8 last = __builtin_shufflevector(low, high, 4, 12, 5, 13, 6, 14, 7, 15);
    std::memcpy(out, &first, 16);
    std::memcpy(out + 16, &last, 16);
  }
}

template <int kPanel, int kTokens>
EVOPRUNE_INLINE void add_gathered(Accumulators<kTokens>& s, const int8_t* w, const int8_t* gathered,
                                  int64_t lines) {
  for (int64_t l = 0; l < lines; ++l, w += kLine, gathered += 4 * kPanel) {
    prefetch(w + kPrefetchAhead);
    s.add_line(w, gathered, 4);
  }
}

// ---- tiles of tokens ----
constexpr int next_smaller(int tokens) {
  return tokens > 8 ? tokens - 4 : tokens > 4 && tokens % 2 == 0 ? tokens - 2 : tokens - 1;
}

// Calls body.template operator()<tokens>() for the largest tile of at most `left`; returns its size.
template <int kTokens = kMostTokens, typename Body>
EVOPRUNE_INLINE int64_t with_tile(int64_t left, const Body& body) {
  if constexpr (kTokens > 1) {
    if (left < kTokens) return with_tile<next_smaller(kTokens)>(left, body);
  }
  body.template operator()<kTokens>();
  return kTokens;
}

template <Picks kPicks>
void strip_from_rows(const W8a8Args& a, int64_t tile) {
  const Strip strip(a, tile);
  for (int64_t token = 0; token < a.tokens;)
    token += with_tile(a.tokens - token, [&]<int kTokens>() {
      Accumulators<kTokens> s;
      s.start(strip);
      if constexpr (kPicks == Picks::run)
        add_runs(s, strip, a.x + token * a.x_stride);
      else
        add_rows(s, strip, a.x + token * a.x_stride);
      s.finish(strip, token);
    });
}

// Tokens [token, token + tokens) of one panel.
template <int kPanel, typename Index>
EVOPRUNE_INLINE void strip_times_panel(const Strip& strip, int64_t token, int64_t tokens) {
  constexpr int kMost = kPanel < kMostTokens ? kPanel : kMostTokens;
  const Index* columns = static_cast<const Index*>(strip.a.columns) + strip.first * 4;
  const int8_t* x = strip.a.x + token * strip.a.x_stride;
  alignas(64) int8_t gathered[kGathered * 4 * kPanel];
  int32_t sums[kPanel * kTile];
  int64_t line = 0;
  do {
    const int64_t left = strip.count - line, lines = left < kGathered ? left : kGathered;
    for (int64_t l = 0; l < lines; ++l)
      gather_line<kPanel>(x, columns + (line + l) * 4, gathered + l * 4 * kPanel);
    for (int64_t t = 0; t < tokens;)
      t += with_tile<kMost>(tokens - t, [&]<int kTokens>() {
        Accumulators<kTokens> s;
        if (line == 0)
          s.start(strip);
        else
          s.load(sums + t * kTile);
        add_gathered<kPanel>(s, strip.values + line * kLine, gathered + 4 * t, lines);
        if (line + lines == strip.count)
          s.finish(strip, token + t);
        else
          s.store(sums + t * kTile);
      });
    line += lines;
  } while (line < strip.count);
}

template <int kPanel, typename Index>
void strip_from_panels(const W8a8Args& a, int64_t tile) {
  const Strip strip(a, tile);
  for (int64_t token = 0; token < a.tokens; token += kPanel) {
    const int64_t left = a.tokens - token;
    strip_times_panel<kPanel, Index>(strip, token, left < kPanel ? left : kPanel);
  }
}

template <int kPanel>
void picked_by_strip(const W8a8Args& a, int64_t tile) {
  return a.narrow ? strip_from_panels<kPanel, uint16_t>(a, tile)
                  : strip_from_panels<kPanel, int32_t>(a, tile);
}

}  // namespace

void w8a8_linear(const W8a8Args& a, int64_t begin, int64_t end) {
  for (int64_t tile = begin; tile < end; ++tile) {
    if (a.picks == Picks::run)
      strip_from_rows<Picks::run>(a, tile);
    else if (a.picks == Picks::row)
      strip_from_rows<Picks::row>(a, tile);
    else if (a.panel == 1)
      picked_by_strip<1>(a, tile);
    else
      picked_by_strip<kW8a8Panel>(a, tile);
  }
}

}  // namespace evoprune::EVOPRUNE_ISA
