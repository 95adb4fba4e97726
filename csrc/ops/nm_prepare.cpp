// evoprune::nm_prepare on the CPU: checks, allocation, threads. The kernel is in
// cpu/nm_prepare.cpp.
#include "ops/nm.h"

namespace evoprune::binding {

std::pair<Tensor, Tensor> nm_prepare(Tensor values, Tensor meta, int64_t n64, int64_t m64,
                                     int64_t shared, int64_t in_features) {
  check_nm(n64, m64);
  check_shared(shared);
  STD_TORCH_CHECK(in_features >= 0, "expected in_features >= 0, got ", in_features);
  STD_TORCH_CHECK(values.dim() == 2, "expected values of 2 dimensions, got ", values.dim());
  const int n = static_cast<int>(n64), m = static_cast<int>(m64);
  const bool strips = shared > 1, narrow = nm_narrow(in_features, m);
  const int64_t rows = values.size(0), tiles = (rows + kNmTile - 1) / kNmTile;
  const int64_t kept = nm_kept(in_features, n, m), words = nm_words(in_features, n, m);
  const int64_t slots = strips ? kept : nm_slots(in_features, n, m);
  const DType dtype = stored_dtype(values);
  check_matrix(values, rows, kept, "values");
  check_matrix(meta, strips ? tiles : rows, nm_meta_bytes(in_features, n, m), "meta");
  check_dtype(meta, ScalarType::Byte, "meta");
  values = torch::stable::contiguous(values);
  meta = torch::stable::contiguous(meta);
  const int64_t value_sizes[] = {tiles, slots, kNmTile}, meta_sizes[] = {tiles, words, kNmTile};
  const int64_t column_sizes[] = {tiles, kept};
  Tensor out_values = torch::stable::new_empty(values, {value_sizes, 3});
  Tensor out_meta = strips ? torch::stable::new_empty(values, {column_sizes, 2},
                                                      narrow ? ScalarType::Short : ScalarType::Int)
                           : torch::stable::new_empty(values, {meta_sizes, 3}, ScalarType::Int);
  Tensor worst = torch::stable::new_empty(values, {value_sizes, 1}, ScalarType::Int);
  int32_t* worst_index = static_cast<int32_t*>(worst.mutable_data_ptr());
  NmPrepareArgs args{};
  args.values = values.const_data_ptr();
  args.meta = static_cast<const uint8_t*>(meta.const_data_ptr());
  args.dtype = dtype;
  args.rows = rows;
  args.kept = kept;
  args.meta_bytes = meta.size(1);
  args.slots = slots;
  args.n = n;
  args.m = m;
  args.out_values = out_values.mutable_data_ptr();
  args.out_meta = out_meta.mutable_data_ptr();
  args.worst = worst_index;
  args.shared = strips;
  args.narrow = narrow;
  run(kernels().nm_prepare, args, tiles, 1 + 8192 / std::max<int64_t>(1, slots));
  for (int64_t tile = 0; tile < tiles; ++tile)
    STD_TORCH_CHECK(worst_index[tile] < m, "meta holds an index ", worst_index[tile],
                    ", expected less than m = ", m);
  return {out_values, out_meta};
}

std::tuple<Tensor, Tensor> nm_prepare_op(Tensor values, Tensor meta, int64_t n, int64_t m,
                                         int64_t shared, int64_t in_features) {
  auto [out_values, out_meta] = nm_prepare(values, meta, n, m, shared, in_features);
  return {out_values, out_meta};
}

}  // namespace evoprune::binding

STABLE_TORCH_LIBRARY_IMPL(evoprune, CPU, m) {
  m.impl("nm_prepare", TORCH_BOX(&evoprune::binding::nm_prepare_op));
}
