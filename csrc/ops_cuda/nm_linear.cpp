// evoprune::nm_linear on CUDA: checks, allocation, and which of the two kernels runs.
#include "cuda/nm_linear.h"

#include "ops_cuda/nm.h"

namespace evoprune::binding_cuda {

Tensor nm_linear(Tensor x, Tensor values, Tensor meta, std::optional<Tensor> bias,
                 int64_t out_features, int64_t in_features, int64_t n, int64_t m, int64_t shared,
                 std::string activation, std::string layout, std::optional<Tensor> scale) {
  check_layout(layout, "cuda");
  STD_TORCH_CHECK(n == 2 && m == 4 && (shared == 1 || shared == 16),
                  "the CUDA kernel takes the pattern 2:4, got ", n, ":", m, " shared by ", shared);
  STD_TORCH_CHECK(x.dim() >= 1, "expected x of 1 dimension or more, got 0");
  check_size(x, x.dim() - 1, in_features, "x.size(-1)");
  check_packed(values, meta, out_features, in_features);
  const DType dtype = kernel_dtype(x, "x");
  Call call(x, {&values, &meta});
  x = torch::stable::contiguous(x);
  const int64_t tokens = count_tokens(x);
  Tensor y = new_output(x, out_features);
  if (y.numel() == 0) return y;
  values = aligned(values);
  meta = aligned(meta);
  const cuda::NmLinearArgs args{input(x),
                                input(values),
                                input<uint32_t>(meta),
                                output(y),
                                dtype,
                                stored_dtype(values, scale, dtype),
                                tokens,
                                out_features,
                                in_features,
                                epilogue_of(bias, scale, out_features, activation)};
  const bool tensor_cores = args.stored == dtype && dtype != DType::f32;
  if (!tensor_cores || tokens <= cuda::kFewTokens) {
    cuda::nm_linear_few(args, call.limits(), call.stream());
    return y;
  }
  const int64_t bytes = cuda::nm_linear_workspace(args, call.limits());
  Tensor workspace = empty_like(x, {bytes}, ScalarType::Byte);
  cuda::nm_linear(args, call.limits(), output(workspace), call.stream());
  return y;
}

}  // namespace evoprune::binding_cuda

EVOPRUNE_CUDA_LIBRARY(m) {
  m.impl("nm_linear", TORCH_BOX(&evoprune::binding_cuda::nm_linear));
}
