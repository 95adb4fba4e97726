// nm_linear on the tensor cores: a 2:4 weight times many tokens.
//
//   y[t, n] = act(sum over the kept k of W[n, k] x[t, k] + bias[n])
//
// W is the sparse operand of mma.sp, so its rows are the rows of the product and y comes out
// transposed; x needs no transposing: its rows are the columns of the other operand, and ldmatrix
// reads both as they lie in memory.
//
//   W values [N, K/2]  W meta      x [M, K]                       y [M, N]
//                                                                      128 outputs
//   128 rows | 32 |    2 x 512 B   128 tokens | 64 |    block   ->   tokens 128 x 128, two warps
//            a stage: 64 columns              a stage                of 64 x 64 each way
//
//   grid    x: tiles of y, 16 tiles of outputs before the next tokens; y: parts of the columns
//   block   a tile of kNmTiles (nm_plan.h) in stages of columns, three of them in shared memory:
//           wait for a stage, barrier, load the first fragments, start the copies of the next stage
//           but one, multiply
//   warp    64 outputs x 64 (32, 16) tokens; of every stage two steps of an mma.sp m16n8k32; where
//           two warps share a tile they take the two halves of each stage
//   lane    mma's; on the way out 8 outputs of a token (nm_linear_store.cuh)
//
// Metadata goes the way of everything else, by cp.async into shared memory, and is read by one
// 16-byte load a lane for 64 x 64 of W. Straight to registers it would cost as many instructions
// and as many passes of the same memory, each warp would fetch its own copy (the small tile: 2), it
// would be one stage ahead instead of two, and a stage in flight would cost registers.
//
// Bound by the shared memory where there are many tokens: an mma.sp of a 64 x 64 warp reads
// 1.5 + 1/16 passes of 128 bytes and the copies write 0.78, where four tensor cores of an A100 could
// take 2 in the time; by the memory of the device where there are few, of which it reads W once.
//
// Counted in the simulator, f16, sums of a block's four warps (tests/cuda/test_nm_linear.py):
//
//   tile                             128 x 128   128 x 64   64 x 32
//   warp instructions an mma.sp           2.23       2.97      4.69
//   beginning and end of a block          3590       2306      1630
//   sectors used, passes / ideal          1.00       1.00      1.00     loads, stores and copies
//   registers sm_80 / 90 / 100     238/240/240 156/158/161 121/125/130   no spills
//   shared memory, blocks a processor   75 KiB, 2  51 KiB, 3  51 KiB, 3
//
// Sums in float, in the order of the columns (two halves of each stage apart in the small tile; the
// parts of a split are added in ascending order by a second kernel): the same bits in every run on
// one kind of device, since tile and split depend on the shape and the number of processors alone.
// Columns and rows of W beyond its edge are the layout's padding, those of x and the tokens are
// filled with zeros. Source: "PTX ISA", 9.7.14.6; Mishra et al., "Accelerating Sparse Deep Neural
// Networks", 2021; the group order of blocks as in Triton's matmul tutorial.
#include "cuda/launch.cuh"
#include "cuda/nm_linear.cuh"
#include "cuda/nm_linear.h"

namespace evoprune::cuda {

namespace {

NmPlan plan_of(const NmLinearArgs& a, const DeviceLimits& limits) {
  return nm_plan(a.tokens, a.rows, a.columns, 2, limits.processors);
}

template <typename T, int kIndex>
void launch_tile(const NmWork& work, const NmOutput& out, cudaStream_t stream) {
  const NmPlan& plan = work.plan;
  const dim3 grid(static_cast<unsigned>(plan.row_tiles * plan.token_tiles),
                  static_cast<unsigned>(plan.splits));
  launch(nm_linear_kernel<T, kIndex>, grid, kNmTiles[kIndex].threads(),
         kNmTiles[kIndex].shared_bytes(sizeof(T)), stream, work, out);
}

template <typename T>
void launch_any(const NmWork& work, const NmOutput& out, cudaStream_t stream) {
  if (work.plan.tile == 0)
    launch_tile<T, 0>(work, out, stream);
  else if (work.plan.tile == 1)
    launch_tile<T, 1>(work, out, stream);
  else
    launch_tile<T, 2>(work, out, stream);
}

}  // namespace

int64_t nm_linear_workspace(const NmLinearArgs& args, const DeviceLimits& limits) {
  const NmPlan plan = plan_of(args, limits);
  return plan.splits == 1 ? 0 : plan.splits * args.tokens * nm_cuda_padded(args.rows) * 4;
}

void nm_linear(const NmLinearArgs& args, const DeviceLimits& limits, void* workspace,
               cudaStream_t stream) {
  const NmWork work{args.x,    args.values,  args.meta,    args.tokens,
                    args.rows, args.columns, args.columns, plan_of(args, limits)};
  const NmOutput out{args.y,
                     args.dtype,
                     args.tokens,
                     args.rows,
                     args.epilogue,
                     nullptr,
                     work.plan.splits == 1 ? nullptr : workspace};
  if (args.dtype == DType::f16)
    launch_any<__half>(work, out, stream);
  else
    launch_any<__nv_bfloat16>(work, out, stream);
  if (out.parts == nullptr) return;
  const int64_t threads = args.tokens * nm_cuda_padded(args.rows) / 8;
  launch(nm_add_parts_kernel<float>, static_cast<unsigned>(ceil_div(threads, 256)), 256, 0, stream,
         out, work.plan.splits);
}

}  // namespace evoprune::cuda
