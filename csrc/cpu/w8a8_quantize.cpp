// w8a8_quantize: x -> int8 with one scale a token.
//
//   s[t] = max |x[t, :]| / 127,   q[t, k] = round(x[t, k] * (1 / s[t]))  in [-127, 127], half to even
//
//   panel = 1   rows     q[t, k]                   out [tokens, stride]
//   panel = 8   panels   q[8p + 0..7, k]           out [panels, stride, 8]: 8 tokens side by side,
//                                                  so that a column is one load for all of them
//
// Columns from K on, and tokens beyond the last, are 0. A token of zeros has scale 0, and so has one
// so small that 1 / s overflows (nothing above 3.8e-37). A token with a NaN or an infinity has no
// scale: it becomes NaN and its row 0, so all of its outputs are NaN.
// Stored as q + kByteBias, what the level multiplies (cpu/simd_bytes.h). Work unit: a panel. The
// arithmetic is that of IEEE, division included: the same numbers at every level.
#include "cpu/simd_bytes.h"
#include "cpu/w8a8.h"

namespace evoprune::EVOPRUNE_ISA {

namespace {

constexpr int32_t kInfinityBits = 0x7f800000;

// The bits of max |x|, or more than kInfinityBits where x holds a NaN: as integers, non-negative
// floats are in order and NaN comes last.
template <typename T>
int32_t largest_bits(const T* x, int64_t columns) {
  IVec most[4] = {};
  int64_t c = 0;
  for (; c + 4 * kLanes <= columns; c += 4 * kLanes)
    for (int i = 0; i < 4; ++i) {
      const IVec bits = (IVec)load(x + c + i * kLanes) & 0x7fffffff;
      most[i] = bits > most[i] ? bits : most[i];
    }
  for (; c < columns; c += kLanes) {
    const int64_t left = columns - c;
    const IVec bits = (IVec)(left < kLanes ? load_first(x + c, left) : load(x + c)) & 0x7fffffff;
    most[0] = bits > most[0] ? bits : most[0];
  }
  int32_t result = 0;
  for (const IVec& part : most)
    for (int i = 0; i < kLanes; ++i) result = part[i] > result ? part[i] : result;
  return result;
}

// 1.5 * 2^23: a sum with it is rounded to an integer, which its low bits then hold.
constexpr float kRound = 12582912.0f;

// `count` quantised zeros; `out` may be null where there are none.
EVOPRUNE_INLINE void fill(int8_t* out, int64_t count) {
  if (count > 0) std::memset(out, kByteBias, static_cast<size_t>(count));
}

EVOPRUNE_INLINE IVec quantize(Vec x, Vec inverse) {
  return (IVec)(x * inverse + kRound) ^ kByteBias;
}

// A row of `stride` bytes; returns the scale.
template <typename T>
float quantize_row(const T* x, int64_t columns, int8_t* out, int64_t stride) {
  const int32_t bits = largest_bits(x, columns);
  float largest;
  std::memcpy(&largest, &bits, 4);
  const bool finite = bits < kInfinityBits;
  const float scale = finite ? largest / 127.0f : __builtin_nanf("");
  const bool usable = 1.0f / scale < __builtin_inff();  // not where the scale is 0 or NaN
  const Vec inverse = broadcast(1.0f / scale);
  int64_t c = 0;
  for (; usable && c + 4 * kLanes <= columns; c += 4 * kLanes) {
    IVec q[4];
    for (int i = 0; i < 4; ++i) q[i] = quantize(load(x + c + i * kLanes), inverse);
    store_low_bytes(out + c, q);
  }
  for (; usable && c < columns; ++c)
    out[c] = static_cast<int8_t>(quantize(broadcast(to_float(x[c])), inverse)[0]);
  fill(out + c, stride - c);
  return usable || !finite ? scale : 0.0f;
}

// Rows [kW8a8Panel, stride] -> columns [stride, kW8a8Panel].
void transpose(const int8_t* rows, int64_t stride, int8_t* out) {
  for (int64_t c = 0; c < stride; ++c)
    for (int t = 0; t < kW8a8Panel; ++t) out[c * kW8a8Panel + t] = rows[t * stride + c];
}

template <typename T>
void quantize_panel(const QuantizeArgs& a, int64_t panel) {
  const int64_t first = panel * a.panel;
  int8_t* out = a.out + first * a.stride;
  int8_t* rows = a.panel == 1 ? out : a.scratch + first * a.stride;
  for (int t = 0; t < a.panel; ++t) {
    int8_t* row = rows + t * a.stride;
    if (first + t < a.tokens)
      a.scale[first + t] = quantize_row(static_cast<const T*>(a.x) + (first + t) * a.columns,
                                        a.columns, row, a.stride);
    else
      fill(row, a.stride);
  }
  if (a.panel > 1) transpose(rows, a.stride, out);
}

}  // namespace

void w8a8_quantize(const QuantizeArgs& a, int64_t begin, int64_t end) {
  for (int64_t panel = begin; panel < end; ++panel) {
    if (a.dtype == DType::bf16)
      quantize_panel<bf16>(a, panel);
    else
      quantize_panel<float>(a, panel);
  }
}

}  // namespace evoprune::EVOPRUNE_ISA
