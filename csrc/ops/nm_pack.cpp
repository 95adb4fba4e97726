// evoprune::nm_pack and evoprune::nm_unpack on the CPU: checks, allocation, threads. The kernels
// are in cpu/nm_pack.cpp.
#include "ops/nm.h"

namespace evoprune::binding {

std::tuple<Tensor, Tensor> nm_pack(Tensor weight, Tensor mask, int64_t n64, int64_t m64) {
  check_nm(n64, m64);
  const int n = static_cast<int>(n64), m = static_cast<int>(m64);
  STD_TORCH_CHECK(weight.dim() == 2, "expected weight of 2 dimensions, got ", weight.dim());
  const DType dtype = kernel_dtype(weight, "weight");
  const int64_t rows = weight.size(0), columns = weight.size(1);
  check_dtype(mask, ScalarType::Bool, "mask");
  check_matrix(mask, rows, columns, "mask");
  weight = torch::stable::contiguous(weight);
  mask = torch::stable::contiguous(mask);
  const int64_t kept = nm_kept(columns, n, m), meta_bytes = nm_meta_bytes(columns, n, m);
  const int64_t value_sizes[] = {rows, kept}, meta_sizes[] = {rows, meta_bytes};
  Tensor values = torch::stable::new_empty(weight, {value_sizes, 2});
  Tensor meta = torch::stable::new_empty(weight, {meta_sizes, 2}, ScalarType::Byte);
  Tensor over_full = torch::stable::new_empty(weight, {value_sizes, 1}, ScalarType::Long);
  int64_t* bad = static_cast<int64_t*>(over_full.mutable_data_ptr());
  const uint8_t* kept_here = static_cast<const uint8_t*>(mask.const_data_ptr());
  const NmPackArgs args{weight.const_data_ptr(),
                        kept_here,
                        dtype,
                        columns,
                        kept,
                        meta_bytes,
                        n,
                        m,
                        values.mutable_data_ptr(),
                        static_cast<uint8_t*>(meta.mutable_data_ptr()),
                        bad};
  run(kernels().nm_pack, args, rows, 1 + 32768 / (columns + 1));
  for (int64_t row = 0; row < rows; ++row) {
    if (bad[row] < 0) continue;
    const int64_t start = bad[row], stop = std::min(start + m, columns);
    int64_t count = 0;
    for (int64_t c = start; c < stop; ++c) count += kept_here[row * columns + c] != 0;
    STD_TORCH_CHECK(false, "weight[", row, ", ", start, ":", stop, "] keeps ", count,
                    " values, the pattern ", n, ":", m, " allows ", n);
  }
  return {values, meta};
}

Tensor nm_unpack(Tensor values, Tensor meta, int64_t n64, int64_t m64, int64_t in_features) {
  check_nm(n64, m64);
  const int n = static_cast<int>(n64), m = static_cast<int>(m64);
  STD_TORCH_CHECK(in_features >= 0, "expected in_features >= 0, got ", in_features);
  STD_TORCH_CHECK(values.dim() == 2, "expected values of 2 dimensions, got ", values.dim());
  const DType dtype = kernel_dtype(values, "values");
  const int64_t rows = values.size(0);
  check_matrix(values, rows, nm_kept(in_features, n, m), "values");
  check_matrix(meta, rows, nm_meta_bytes(in_features, n, m), "meta");
  check_dtype(meta, ScalarType::Byte, "meta");
  values = torch::stable::contiguous(values);
  meta = torch::stable::contiguous(meta);
  const int64_t sizes[] = {rows, in_features};
  Tensor dense = torch::stable::new_empty(values, {sizes, 2});
  const NmUnpackArgs args{values.const_data_ptr(),
                          static_cast<const uint8_t*>(meta.const_data_ptr()),
                          dtype,
                          in_features,
                          values.size(1),
                          meta.size(1),
                          n,
                          m,
                          dense.mutable_data_ptr()};
  run(kernels().nm_unpack, args, rows, 1 + 32768 / (in_features + 1));
  return dense;
}

}  // namespace evoprune::binding

STABLE_TORCH_LIBRARY_IMPL(evoprune, CPU, m) {
  m.impl("nm_pack", TORCH_BOX(&evoprune::binding::nm_pack));
  m.impl("nm_unpack", TORCH_BOX(&evoprune::binding::nm_unpack));
}
