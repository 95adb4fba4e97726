// nm_w8a8_linear: a 2:4 weight of int8 values times tokens that are rounded to int8, on the tensor
// cores.
//
//   s[t] = max |x[t, :]| / 127,  q[t, k] = round(x[t, k] * (1 / s[t]))      w8a8_quantize_kernel
//   y[t, n] = act((sum over the kept k of W[n, k] q[t, k] * scale[n]) * s[t] + bias[n])
//
//   x [M, K]  ->  q int8 [M, K16], zeros from K on     s [M]     K16: K up to a multiple of 16
//   block: a token, read twice (the second time from the caches); thread: 16 bytes of every 4 KiB
//
// The product is the kernel of nm_linear.cu with its 128 x 128 tile: a row of a stage has as many
// bytes, so twice the columns (128), and an mma.sp m16n8k64 has twice those of an m16n8k32. A step
// of 64 x 64 has twice the metadata, so an mma.sp reads 1.5 + 1/8 passes of shared memory.
//
// Counted in the simulator (tests/cuda/test_nm_w8a8_linear.py): 2.23 warp instructions an mma.sp,
// 5416 for the beginning and end of a block (four warps), sectors used and passes / ideal 1.00;
// 240 registers on sm_80, no spills, 78 KiB of shared memory, two blocks a processor.
//
// Sums are exact in int32 (K up to 133144), the scales and the bias are applied in the order of the
// CPU and without fused multiply-add: without activation, and with relu, the result is the same bits
// as on the CPU and in every run. Rounding is half to even, -127 to 127. A token of zeros has scale
// 0, and so has one so small that 1 / s overflows; one with a NaN or an infinity has the scale NaN,
// and all of its outputs are NaN. Source: Dettmers et al., "LLM.int8()", 2022.
#include "cuda/launch.cuh"
#include "cuda/nm_linear.cuh"
#include "cuda/nm_w8a8_linear.h"

namespace evoprune::cuda {

struct QuantizeTokensArgs {
  const void* x;  // [tokens, columns]
  int8_t* q;      // [tokens, stride]
  float* scale;   // [tokens]
  int64_t columns, stride;
};

inline constexpr int kQuantizeThreads = 256;

// The largest of the block's values.
__device__ __forceinline__ uint32_t block_max(uint32_t value) {
  __shared__ uint32_t of_warp[kQuantizeThreads / 32];
  value = __reduce_max_sync(0xffffffff, value);
  if (threadIdx.x % 32 == 0) of_warp[threadIdx.x / 32] = value;
  __syncthreads();
  return __reduce_max_sync(0xffffffff, of_warp[threadIdx.x % (kQuantizeThreads / 32)]);
}

// kCount elements a load: 16 bytes, or 1 where rows do not start at 16 bytes.
template <typename T, int kCount>
__device__ __forceinline__ void quantize_token(const QuantizeTokensArgs& a) {
  constexpr uint32_t kInfinity = 0x7f800000;
  using From = Vector<T, kCount>;
  using To = Vector<int8_t, kCount>;
  const int64_t token = blockIdx.x, count = a.columns / kCount;
  const From* x = reinterpret_cast<const From*>(static_cast<const T*>(a.x) + token * a.columns);
  int8_t* q = a.q + token * a.stride;
  uint32_t most = 0;  // the bits of |x|: as integers in the order of the numbers, NaN last
  for (int64_t i = threadIdx.x; i < count; i += kQuantizeThreads) {
    const From v = x[i];
#pragma unroll
    for (int j = 0; j < kCount; ++j) {
      const uint32_t bits = __float_as_uint(to_float(v.at[j])) & 0x7fffffff;
      most = bits > most ? bits : most;
    }
  }
  most = block_max(most);
  const bool finite = most < kInfinity;
  const float scale = __fdiv_rn(__uint_as_float(finite ? most : 0), 127.0f);
  const float inverse = __fdiv_rn(1.0f, scale);
  const bool usable = finite && inverse < __uint_as_float(kInfinity);
  for (int64_t i = threadIdx.x; i < count; i += kQuantizeThreads) {
    const From v = x[i];
    To out;
#pragma unroll
    for (int j = 0; j < kCount; ++j)
      out.at[j] =
          static_cast<int8_t>(usable ? __float2int_rn(__fmul_rn(to_float(v.at[j]), inverse)) : 0);
    reinterpret_cast<To*>(q)[i] = out;
  }
  for (int64_t k = a.columns + threadIdx.x; k < a.stride; k += kQuantizeThreads) q[k] = 0;
  if (threadIdx.x == 0)
    a.scale[token] = !finite ? __uint_as_float(0x7fc00000) : usable ? scale : 0.0f;
}

template <typename T>
__global__ void __launch_bounds__(kQuantizeThreads)
    w8a8_quantize_kernel(const QuantizeTokensArgs args) {
  const bool aligned =
      args.columns % kPer16Bytes<T> == 0 && reinterpret_cast<uintptr_t>(args.x) % 16 == 0;
  if (aligned)
    quantize_token<T, kPer16Bytes<T>>(args);
  else
    quantize_token<T, 1>(args);
}

namespace {

constexpr int kTile = 0;

int64_t up16(int64_t size) {
  return (size + 15) / 16 * 16;
}

// Where everything lies in the workspace.
struct Scratch {
  NmPlan plan;
  int64_t stride, q, parts, bytes;

  Scratch(const NmLinearArgs& a, const DeviceLimits& limits)
      : plan(nm_plan(a.tokens, a.rows, a.columns, 1, limits.processors, kTile)),
        stride(up16(a.columns)),
        q(up16(a.tokens * 4)),
        parts(q + a.tokens * stride),
        bytes(parts) {
    if (plan.splits > 1) bytes += plan.splits * a.tokens * nm_cuda_padded(a.rows) * 4;
  }
};

}  // namespace

int64_t nm_w8a8_workspace(const NmLinearArgs& args, const DeviceLimits& limits) {
  return Scratch(args, limits).bytes;
}

void nm_w8a8_linear(const NmLinearArgs& args, const DeviceLimits& limits, void* workspace,
                    cudaStream_t stream) {
  const Scratch scratch(args, limits);
  const NmPlan& plan = scratch.plan;
  char* memory = static_cast<char*>(workspace);
  const QuantizeTokensArgs quantize{args.x, reinterpret_cast<int8_t*>(memory + scratch.q),
                                    reinterpret_cast<float*>(memory), args.columns, scratch.stride};
  const auto kernel = args.dtype == DType::f32   ? w8a8_quantize_kernel<float>
                      : args.dtype == DType::f16 ? w8a8_quantize_kernel<__half>
                                                 : w8a8_quantize_kernel<__nv_bfloat16>;
  launch(kernel, static_cast<unsigned>(args.tokens), kQuantizeThreads, 0, stream, quantize);
  const NmWork work{quantize.q, args.values,  args.meta,      args.tokens,
                    args.rows,  args.columns, scratch.stride, plan};
  const NmOutput out{args.y,
                     args.dtype,
                     args.tokens,
                     args.rows,
                     args.epilogue,
                     quantize.scale,
                     plan.splits == 1 ? nullptr : memory + scratch.parts};
  const dim3 grid(static_cast<unsigned>(plan.row_tiles * plan.token_tiles),
                  static_cast<unsigned>(plan.splits));
  launch(nm_linear_kernel<int8_t, kTile>, grid, kNmTiles[kTile].threads(),
         kNmTiles[kTile].shared_bytes(1), stream, work, out);
  if (out.parts == nullptr) return;
  const int64_t threads = args.tokens * nm_cuda_padded(args.rows) / 8;
  launch(nm_add_parts_kernel<int32_t>, static_cast<unsigned>(ceil_div(threads, 256)), 256, 0,
         stream, out, plan.splits);
}

}  // namespace evoprune::cuda
