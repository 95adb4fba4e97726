// evoprune::nm_pack, nm_unpack, nm_prepare_cuda and nm_select_pack on CUDA: checks and allocation.
// The kernels are in cuda/nm_pack24.cu, nm_pack.cu, nm_unpack.cu and nm_prepare_cuda.cu.
//
// nm_pack and nm_prepare_cuda refuse input that is wrong inside: they read one number back from the
// device, and so wait for the stream. nm_select_pack and nm_unpack do not.
#include "cuda/nm_pack.h"

#include "core/nm_cuda_layout.h"
#include "core/nm_layout.h"
#include "ops/nm.h"
#include "ops_cuda/check.h"

namespace evoprune::binding_cuda {

namespace {

using binding::check_matrix;
using binding::check_nm;

struct Packed {
  Tensor values, meta;
};
Packed new_packed(const Tensor& weight, int n, int m) {
  const int64_t rows = weight.size(0), columns = weight.size(1);
  return {empty_like(weight, {rows, nm_kept(columns, n, m)}, weight.scalar_type()),
          empty_like(weight, {rows, nm_meta_bytes(columns, n, m)}, ScalarType::Byte)};
}
Packed new_cuda_layout(const Tensor& like, int64_t rows, int64_t columns) {
  const int64_t rows64 = nm_cuda_padded(rows), columns64 = nm_cuda_padded(columns);
  return {
      empty_like(like, {rows64, columns64 / 2}, like.scalar_type()),
      empty_like(like, {rows64 / kNmCudaTile, columns64 / kNmCudaTile, 32, 4}, ScalarType::Int)};
}
cuda::NmPackArgs pack_args(const Tensor& weight, const Packed& packed, int n, int m) {
  cuda::NmPackArgs args{};
  args.weight = input(weight);
  args.dtype = kernel_dtype(weight, "weight");
  args.values = output(packed.values);
  args.meta = output<uint8_t>(packed.meta);
  args.rows = weight.size(0);
  args.columns = weight.size(1);
  args.n = n;
  args.m = m;
  return args;
}
void check_weight(const Tensor& weight) {
  STD_TORCH_CHECK(weight.dim() == 2, "expected weight of 2 dimensions, got ", weight.dim());
  kernel_dtype(weight, "weight");
}

}  // namespace

std::tuple<Tensor, Tensor> nm_pack(Tensor weight, Tensor mask, int64_t n, int64_t m) {
  check_nm(n, m);
  check_weight(weight);
  const int64_t columns = weight.size(1);
  check_dtype(mask, ScalarType::Bool, "mask");
  check_matrix(mask, weight.size(0), columns, "mask");
  Call call(weight, {&mask});
  weight = torch::stable::contiguous(weight);
  mask = torch::stable::contiguous(mask);
  const Packed packed = new_packed(weight, static_cast<int>(n), static_cast<int>(m));
  if (packed.values.numel() == 0) return {packed.values, packed.meta};
  const Tensor fault = empty_like(weight, {1}, ScalarType::Long);
  cuda::NmPackArgs args = pack_args(weight, packed, static_cast<int>(n), static_cast<int>(m));
  args.mask = input<uint8_t>(mask);
  args.fault = output<cuda::Fault>(fault);
  cuda::clear_fault(args.fault, call.stream());
  cuda::nm_pack(args, call.stream());
  const cuda::Fault found = cuda::read_fault(args.fault, call.stream());
  if (found != cuda::kNoFault) {
    const int64_t groups = cuda::nm_groups(columns, static_cast<int>(m));
    const int64_t at = static_cast<int64_t>(found / 64), start = at % groups * m;
    STD_TORCH_CHECK(false, "weight[", at / groups, ", ", start, ":", std::min(start + m, columns),
                    "] keeps ", found % 64, " values, the pattern ", n, ":", m, " allows ", n);
  }
  return {packed.values, packed.meta};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> nm_select_pack(Tensor weight, Tensor scores, int64_t n,
                                                          int64_t m) {
  check_nm(n, m);
  check_weight(weight);
  const int64_t rows = weight.size(0), columns = weight.size(1);
  check_matrix(scores, rows, columns, "scores");
  const DType scores_dtype = kernel_dtype(scores, "scores");
  Call call(weight, {&scores});
  weight = torch::stable::contiguous(weight);
  scores = torch::stable::contiguous(scores);
  const bool cuda = n == 2 && m == 4;
  const Packed packed = new_packed(weight, static_cast<int>(n), static_cast<int>(m));
  const Packed prepared = new_cuda_layout(weight, cuda ? rows : 0, cuda ? columns : 0);
  const std::tuple all{packed.values, packed.meta, prepared.values, prepared.meta};
  if (packed.values.numel() == 0) return all;
  cuda::NmPackArgs args = pack_args(weight, packed, static_cast<int>(n), static_cast<int>(m));
  args.scores = input(scores);
  args.scores_dtype = scores_dtype;
  if (cuda) {
    args.cuda_values = output(prepared.values);
    args.cuda_meta = output<uint32_t>(prepared.meta);
  }
  cuda::nm_pack(args, call.stream());
  return all;
}

Tensor nm_unpack(Tensor values, Tensor meta, int64_t n, int64_t m, int64_t in_features) {
  check_nm(n, m);
  STD_TORCH_CHECK(in_features >= 0, "expected in_features >= 0, got ", in_features);
  STD_TORCH_CHECK(values.dim() == 2, "expected values of 2 dimensions, got ", values.dim());
  const DType dtype = kernel_dtype(values, "values");
  const int n32 = static_cast<int>(n), m32 = static_cast<int>(m);
  const int64_t rows = values.size(0);
  check_matrix(values, rows, nm_kept(in_features, n32, m32), "values");
  check_matrix(meta, rows, nm_meta_bytes(in_features, n32, m32), "meta");
  check_dtype(meta, ScalarType::Byte, "meta");
  Call call(values, {&meta});
  values = torch::stable::contiguous(values);
  meta = torch::stable::contiguous(meta);
  Tensor dense = empty_like(values, {rows, in_features}, values.scalar_type());
  if (dense.numel() == 0) return dense;
  cuda::nm_unpack(
      {input(values), input<uint8_t>(meta), output(dense), dtype, rows, in_features, n32, m32},
      call.stream());
  return dense;
}

std::tuple<Tensor, Tensor> nm_prepare_cuda(Tensor values, Tensor meta, int64_t n, int64_t m,
                                           int64_t shared, int64_t in_features) {
  STD_TORCH_CHECK(n == 2 && m == 4 && (shared == 1 || shared == 16),
                  "the layout 'cuda' holds the patterns 2:4 and 2:4v16, got ", n, ":", m,
                  " shared by ", shared);
  STD_TORCH_CHECK(in_features >= 0, "expected in_features >= 0, got ", in_features);
  STD_TORCH_CHECK(values.dim() == 2, "expected values of 2 dimensions, got ", values.dim());
  if (values.scalar_type() != ScalarType::Char) kernel_dtype(values, "values");
  const int64_t rows = values.size(0), groups = cuda::nm_groups(in_features, 4);
  check_matrix(values, rows, groups * 2, "values");
  check_matrix(meta, cuda::ceil_div(rows, shared), (groups + 1) / 2, "meta");
  check_dtype(meta, ScalarType::Byte, "meta");
  Call call(values, {&meta});
  values = torch::stable::contiguous(values);
  meta = torch::stable::contiguous(meta);
  const Packed prepared = new_cuda_layout(values, rows, in_features);
  if (prepared.values.numel() == 0) return {prepared.values, prepared.meta};
  const Tensor fault = empty_like(values, {1}, ScalarType::Long);
  const cuda::NmPrepareCudaArgs args{input(values),
                                     input<uint8_t>(meta),
                                     output(prepared.values),
                                     output<uint32_t>(prepared.meta),
                                     output<cuda::Fault>(fault),
                                     static_cast<int>(values.element_size()),
                                     static_cast<int>(shared),
                                     rows,
                                     in_features};
  cuda::clear_fault(args.fault, call.stream());
  cuda::nm_prepare_cuda(args, call.stream());
  const cuda::Fault found = cuda::read_fault(args.fault, call.stream());
  STD_TORCH_CHECK(found == cuda::kNoFault, "meta of row ", static_cast<int64_t>(found) / groups,
                  ", group ", static_cast<int64_t>(found) % groups, ": indices do not increase");
  return {prepared.values, prepared.meta};
}

}  // namespace evoprune::binding_cuda

EVOPRUNE_CUDA_LIBRARY(m) {
  m.impl("nm_pack", TORCH_BOX(&evoprune::binding_cuda::nm_pack));
  m.impl("nm_unpack", TORCH_BOX(&evoprune::binding_cuda::nm_unpack));
  m.impl("nm_prepare_cuda", TORCH_BOX(&evoprune::binding_cuda::nm_prepare_cuda));
  m.impl("nm_select_pack", TORCH_BOX(&evoprune::binding_cuda::nm_select_pack));
}
