// channel_gate: every channel of an activation times its gate.
//
//   y[b, c, i] = x[b, c, i] * gate[b, c]; +0 where the gate is 0, whatever x holds
//
//   memory   | plane (b, c): inner elements | plane (b, c + 1) | ..       channels_last false
//            | row (b, i): channels elements | row (b, i + 1)  | ..       channels_last true
//   threads  |  0  |  1  |  2  |  3  | ..      16 bytes each, across the ends of planes and rows
//
// A plane (a row) is a period of the flat memory: element f lies in period f / period, at place
// f % period. A block takes kSteps stretches of 256 vectors, divides once for its first element in
// 64 bits, and each thread divides its 32-bit offset from there. So every access is an aligned
// vector for any H * W; only the last vector of the tensor, or a tensor that does not start at a
// multiple of 16 bytes, is read element by element.
//
// Bound by memory: x is read once and y written once; a vector whose gates are all closed is not
// read. Products in float, rounded once. Source: Liu et al., "Learning Efficient Convolutional
// Networks through Network Slimming", ICCV 2017.
#include "cuda/channel_gate.cuh"
#include "cuda/launch.cuh"

namespace evoprune::cuda {

namespace {

constexpr int kThreads = 256;
constexpr int kSteps = 4;

// Gate of the element at `place` of `period`; both memory orders.
__device__ __forceinline__ int64_t gate_index(const ChannelGateArgs& a, uint32_t period,
                                              uint32_t place) {
  if (a.channels_last) {
    const uint32_t sample = a.per_sample ? period / static_cast<uint32_t>(a.inner) : 0;
    return sample * a.channels + place;
  }
  return a.per_sample ? period : period % static_cast<uint32_t>(a.channels);
}

// The gates of kCount elements that follow each other in memory, `left` of them inside. Of planes
// of a vector or more at most two differ; within a row they follow each other as well.
template <int kCount>
__device__ __forceinline__ void read_gates(const ChannelGateArgs& a, uint32_t length, int64_t left,
                                           uint32_t period, uint32_t place, float (&g)[kCount]) {
  int64_t index = gate_index(a, period, place);
  const uint32_t ends = length - place;
  if (!a.channels_last && length >= kCount) {
    const float gate = gate_at(a, index);
    const float next = ends < left && ends < kCount ? gate_of_plane(a, period + 1) : gate;
#pragma unroll
    for (int i = 0; i < kCount; ++i) g[i] = i < ends ? gate : next;
    return;
  }
  if (a.channels_last && ends >= kCount) return gates_at(a, index, g);
#pragma unroll 1
  for (int i = 0; i < kCount; ++i) {
    const float gate = i < left ? gate_at(a, index) : 0.0f;
#pragma unroll
    for (int j = 0; j < kCount; ++j)  // registers have no index
      if (i == j) g[j] = gate;
    if (++place == length) {
      place = 0;
      index = gate_index(a, ++period, 0);
    } else {
      index += a.channels_last;
    }
  }
}

}  // namespace

template <typename T>
__global__ void __launch_bounds__(kThreads)
    channel_gate_kernel(ChannelGateArgs a, T* y, int64_t size, bool aligned) {
  constexpr int kPer = kPer16Bytes<T>;
  const uint32_t length = static_cast<uint32_t>(a.channels_last ? a.channels : a.inner);
  const int64_t first = static_cast<int64_t>(blockIdx.x) * (kThreads * kPer * kSteps);
  const uint32_t first_period = static_cast<uint32_t>(first / length);
  const uint32_t first_place = static_cast<uint32_t>(first - int64_t{first_period} * length);
  const T* x = static_cast<const T*>(a.x);
#pragma unroll 1
  for (int step = 0; step < kSteps; ++step) {
    const uint32_t offset = (step * kThreads + threadIdx.x) * kPer;
    const int64_t left = size - first - offset;
    if (left <= 0) return;
    const uint32_t place = first_place + offset;
    float g[kPer];
    read_gates(a, length, left, first_period + place / length, place % length, g);
    const bool whole = left >= kPer;
    Vector<T, kPer> v;
    bool open = false;
#pragma unroll
    for (int i = 0; i < kPer; ++i) {
      open |= g[i] != 0.0f;
      v.at[i] = from_float<T>(0.0f);
    }
    if (open && aligned && whole) {
      v = load_vector(x + first + offset);
    } else if (open) {
#pragma unroll
      for (int i = 0; i < kPer; ++i)
        if (i < left) v.at[i] = x[first + offset + i];
    }
#pragma unroll
    for (int i = 0; i < kPer; ++i) v.at[i] = gated(v.at[i], g[i]);
    T* to = y + first + offset;
    if (whole) {
      *reinterpret_cast<Vector<T, kPer>*>(to) = v;
    } else {
#pragma unroll
      for (int i = 0; i < kPer; ++i)
        if (i < left) to[i] = v.at[i];
    }
  }
}

namespace {

template <typename T>
void launch_forward(const ChannelGateArgs& args, void* y, cudaStream_t stream) {
  const int64_t size = args.batch * args.channels * args.inner;
  const bool aligned = reinterpret_cast<uintptr_t>(args.x) % 16 == 0;
  const dim3 grid(static_cast<unsigned>(ceil_div(size, kThreads * kPer16Bytes<T> * kSteps)));
  launch(channel_gate_kernel<T>, grid, kThreads, 0, stream, args, static_cast<T*>(y), size,
         aligned);
}

}  // namespace

void channel_gate(const ChannelGateArgs& args, void* y, cudaStream_t stream) {
  if (args.batch * args.channels * args.inner == 0) return;
  switch (args.dtype) {
    case DType::f16:
      return launch_forward<__half>(args, y, stream);
    case DType::bf16:
      return launch_forward<__nv_bfloat16>(args, y, stream);
    default:
      return launch_forward<float>(args, y, stream);
  }
}

}  // namespace evoprune::cuda
