// channel_gate and its backward on the device; the kernels are in channel_gate.cu and
// channel_gate_backward.cu.
#pragma once

#include "cuda/device.h"

namespace evoprune::cuda {

// An activation [batch, channels, inner], inner = H * W, and its gates. Of gates [channels] an
// activation in channels-last memory is one sample: batch = 1, inner = all rows.
struct ChannelGateArgs {
  const void* x;      // [batch, channels, inner], or [batch, inner, channels] in memory
  const void* gates;  // [channels] or [batch, channels]
  DType dtype, gate_dtype;
  int64_t batch, channels, inner;
  bool channels_last;  // which of the two memory orders
  bool per_sample;     // gates [batch, channels]
};

struct ChannelGateBackwardArgs {
  ChannelGateArgs forward;
  const void* grad;  // as x
  void* dx;          // as x
  void* dgates;      // as gates
};

// y: as x.
void channel_gate(const ChannelGateArgs& args, void* y, cudaStream_t stream);

// Floats of scratch memory that the backward needs: sums of parts of a channel.
int64_t channel_gate_workspace(const ChannelGateBackwardArgs& args, const DeviceLimits& limits);
void channel_gate_backward(const ChannelGateBackwardArgs& args, const DeviceLimits& limits,
                           float* workspace, cudaStream_t stream);

}  // namespace evoprune::cuda
