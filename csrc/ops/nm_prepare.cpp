// evoprune::nm_prepare on the CPU: checks, allocation, threads. The kernel is in
// cpu/nm_prepare.cpp.
#include "ops/nm.h"

namespace evoprune::binding {

std::pair<Tensor, Tensor> nm_prepare(Tensor values, Tensor meta, int64_t n64, int64_t m64,
                                     int64_t in_features) {
  check_nm(n64, m64);
  STD_TORCH_CHECK(in_features >= 0, "expected in_features >= 0, got ", in_features);
  STD_TORCH_CHECK(values.dim() == 2, "expected values of 2 dimensions, got ", values.dim());
  const int n = static_cast<int>(n64), m = static_cast<int>(m64);
  const int64_t rows = values.size(0), slots = nm_slots(in_features, n, m);
  const int64_t tiles = (rows + kNmTile - 1) / kNmTile, words = nm_words(in_features, n, m);
  const DType dtype = stored_dtype(values);
  check_matrix(values, rows, nm_kept(in_features, n, m), "values");
  check_matrix(meta, rows, nm_meta_bytes(in_features, n, m), "meta");
  check_dtype(meta, ScalarType::Byte, "meta");
  values = torch::stable::contiguous(values);
  meta = torch::stable::contiguous(meta);
  const int64_t value_sizes[] = {tiles, slots, kNmTile}, meta_sizes[] = {tiles, words, kNmTile};
  Tensor out_values = torch::stable::new_empty(values, {value_sizes, 3});
  Tensor out_meta = torch::stable::new_empty(values, {meta_sizes, 3}, ScalarType::Int);
  Tensor worst = torch::stable::new_empty(values, {value_sizes, 1}, ScalarType::Int);
  int32_t* worst_index = static_cast<int32_t*>(worst.mutable_data_ptr());
  const NmPrepareArgs args{values.const_data_ptr(),
                           static_cast<const uint8_t*>(meta.const_data_ptr()),
                           dtype,
                           rows,
                           values.size(1),
                           meta.size(1),
                           slots,
                           n,
                           m,
                           out_values.mutable_data_ptr(),
                           static_cast<int32_t*>(out_meta.mutable_data_ptr()),
                           worst_index};
  run(kernels().nm_prepare, args, tiles, 1 + 8192 / std::max<int64_t>(1, slots));
  for (int64_t tile = 0; tile < tiles; ++tile)
    STD_TORCH_CHECK(worst_index[tile] < m, "meta holds an index ", worst_index[tile],
                    ", expected less than m = ", m);
  return {out_values, out_meta};
}

std::tuple<Tensor, Tensor> nm_prepare_op(Tensor values, Tensor meta, int64_t n, int64_t m,
                                         int64_t in_features) {
  auto [out_values, out_meta] = nm_prepare(values, meta, n, m, in_features);
  return {out_values, out_meta};
}

}  // namespace evoprune::binding

STABLE_TORCH_LIBRARY_IMPL(evoprune, CPU, m) {
  m.impl("nm_prepare", TORCH_BOX(&evoprune::binding::nm_prepare_op));
}
