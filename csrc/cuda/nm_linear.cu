// nm_linear: to be drawn.
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
