// select_nm: which n of every m consecutive scores of a row are kept.
//
//   mask[r, g*m + i] = rank of scores[r, g*m + i] within its group < n
//
//   scores [rows, columns]   | g0 m entries | g1 | g2 | ..  | last: what is left |   row after row
//   thread                     0              1    2          groups - 1
//
// A thread owns a group of one row; groups of neighbouring threads are neighbours in memory, so a
// warp reads one span. Bound by memory: each score is read once, each mask byte written once.
// Ties: the lowest index wins; NaN ranks below every number (select/nm.h, shared with the CPU).
// Source: Zhou et al., "Learning N:M Fine-grained Structured Sparse Neural Networks From Scratch",
// ICLR 2021.
#include "cuda/launch.cuh"
#include "cuda/select_nm.h"
#include "cuda/types.cuh"
#include "select/nm.h"

namespace evoprune::cuda {

namespace {

constexpr int kThreads = 256;

template <typename T>
__global__ void __launch_bounds__(kThreads) select_nm_kernel(SelectNmArgs args) {
  const int64_t groups = (args.columns + args.m - 1) / args.m;
  const int64_t item = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (item >= groups * args.rows) return;
  const int64_t row = item / groups, first = item % groups * args.m;
  const int64_t left = args.columns - first;
  const int count = left < args.m ? static_cast<int>(left) : args.m;
  const int64_t start = row * args.columns + first;
  const T* scores = static_cast<const T*>(args.scores) + start;
  float group[select::kMaxGroup];
  for (int i = 0; i < count; ++i) group[i] = to_float(scores[i]);
  const uint32_t kept = select::nm_group(group, count, args.n);
  for (int i = 0; i < count; ++i) args.mask[start + i] = kept >> i & 1;
}

}  // namespace

void select_nm(const SelectNmArgs& args, cudaStream_t stream) {
  const int64_t items = args.rows * ceil_div(args.columns, args.m);
  if (items == 0) return;
  const dim3 grid(static_cast<unsigned>(ceil_div(items, kThreads)));
  const auto kernel = args.dtype == DType::f32   ? select_nm_kernel<float>
                      : args.dtype == DType::f16 ? select_nm_kernel<__half>
                                                 : select_nm_kernel<__nv_bfloat16>;
  launch(kernel, grid, kThreads, 0, stream, args);
}

}  // namespace evoprune::cuda
