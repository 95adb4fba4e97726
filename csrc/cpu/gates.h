// The arguments of the channel kernels, a part of the table in cpu/kernels.h: gates, the batch norm
// behind them, sums of channels, and channels moved alone.
#pragma once

#include <cstdint>

namespace evoprune {

enum class FloatType : int32_t { f32 = 0, bf16 = 1, f16 = 2, f64 = 3 };

// x [samples, channels, inner] in planes, or [samples, inner, channels] in rows (channels_last). A
// *group* is what one row of gates [channels] is for: a sample where the gates are [B, C], else all.
//
//   unit    planes: one plane; rows: kRowBlock rows of a group, the last block of it shorter
//   part    what a unit adds to a sum: parts [parts, channels], a row of it a sample or a block
//
// Sums and coefficients are float, and double where x is double ("wide").
inline constexpr int64_t kRowBlock = 64;
struct ChannelLayout {
  FloatType dtype;
  bool rows, per_sample;
  int64_t samples, channels, inner;

  int64_t groups() const { return per_sample ? samples : 1; }
  int64_t group_rows() const { return per_sample ? inner : samples * inner; }
  int64_t blocks() const { return (group_rows() + kRowBlock - 1) / kRowBlock; }  // of a group
  int64_t parts() const { return rows ? groups() * blocks() : samples; }
  int64_t units() const { return rows ? parts() : samples * channels; }
  int64_t group_of(int64_t part) const { return !per_sample ? 0 : rows ? part / blocks() : part; }
  int64_t count_of(int64_t part) const {  // values of a channel in a part
    if (!rows) return inner;
    const int64_t left = group_rows() - part % blocks() * kRowBlock;
    return left < kRowBlock ? left : kRowBlock;
  }
};

// y = x * gates, +0.0 where a gate is 0.
struct ChannelGateArgs {
  ChannelLayout layout;
  const void* x;
  const void* gates;  // wide [groups, channels]
  void* y;
};
// dx = grad * gates as above; parts of sum grad * x.
struct ChannelGateBackwardArgs {
  ChannelLayout layout;
  const void *grad, *x;
  const void* gates;
  void* dx;
  void* parts;  // wide [parts, channels]
};
// Parts of sum |x|.
struct ChannelSizesArgs {
  ChannelLayout layout;
  const void* x;
  void* parts;
};
// Parts of the mean of x, and of the sum of squares of x - mean; 0 or anything where a gate is 0.
struct GateStatisticsArgs {
  ChannelLayout layout;
  const void *x, *gates;
  void *means, *squares;  // wide [parts, channels] each
};
// What both passes over a gated batch norm multiply by; see cpu/gate_norm.cpp.
struct GateNormTerms {
  const void* gates;   // wide [groups, channels]; x counts as 0 where it is 0
  const void* scale;   // wide [groups, channels]: y = x * scale + shift
  const void* shift;   // wide [channels]
  const void* spread;  // wide [groups, channels]: xhat = x * spread + centre
  const void* centre;  // wide [channels]
  bool relu;
};
struct GateNormArgs {
  ChannelLayout layout;
  GateNormTerms terms;
  const void* x;
  void* y;
};
inline constexpr int kGateNormSums = 5;
struct GateNormSumsArgs {
  ChannelLayout layout;
  GateNormTerms terms;
  const void *grad, *x;
  void* parts;     // wide [parts, kGateNormSums, channels]
  bool gates_too;  // else the first two sums only
};
struct GateNormGradArgs {
  ChannelLayout layout;
  GateNormTerms terms;
  const void *grad, *x;
  const void *of_grad, *of_xhat, *constant;  // wide [groups, channels] each
  bool training;                             // else dx = grad * of_grad
  void* dx;
};

// scores [rows, channels] -> the k highest of each row, ascending; a work unit is a row.
struct TopkChannelsArgs {
  const float* scores;
  int64_t channels, k;
  int64_t* index;  // [rows, k]
};

// Channels of x [units, channels, inner] to y [units, kept, inner], or back into zeros; a work unit
// is one of `units`.
struct MoveChannelsArgs {
  const void* x;
  void* y;
  const int64_t* index;  // [kept]
  const int64_t* place;  // [channels] of a scatter: which of `kept`, or -1
  int64_t channels, kept, inner, element_bytes;
  bool scatter;
};

// Their part of the table.
struct ChannelKernels {
  void (*gate)(const ChannelGateArgs&, int64_t begin, int64_t end);
  void (*gate_backward)(const ChannelGateBackwardArgs&, int64_t begin, int64_t end);
  void (*sizes)(const ChannelSizesArgs&, int64_t begin, int64_t end);
  void (*topk)(const TopkChannelsArgs&, int64_t begin, int64_t end);
  void (*move)(const MoveChannelsArgs&, int64_t begin, int64_t end);
  void (*statistics)(const GateStatisticsArgs&, int64_t begin, int64_t end);
  void (*norm)(const GateNormArgs&, int64_t begin, int64_t end);
  void (*norm_sums)(const GateNormSumsArgs&, int64_t begin, int64_t end);
  void (*norm_grad)(const GateNormGradArgs&, int64_t begin, int64_t end);
};

}  // namespace evoprune
