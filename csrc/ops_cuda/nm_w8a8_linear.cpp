// evoprune::nm_w8a8_linear on CUDA: checks and allocation. Kernels: cuda/nm_w8a8_linear.cu.
#include "cuda/nm_w8a8_linear.h"

#include "ops_cuda/nm.h"

namespace evoprune::binding_cuda {

namespace {

constexpr int64_t kMaxTerms = INT32_MAX / (127 * 127);

}  // namespace

Tensor nm_w8a8_linear(Tensor x, Tensor values, Tensor meta, std::optional<Tensor> bias,
                      int64_t out_features, int64_t in_features, std::string activation,
                      Tensor scale) {
  STD_TORCH_CHECK(in_features <= kMaxTerms, "expected in_features up to ", kMaxTerms,
                  ", whose sums fit int32, got ", in_features);
  STD_TORCH_CHECK(x.dim() >= 1, "expected x of 1 dimension or more, got 0");
  check_size(x, x.dim() - 1, in_features, "x.size(-1)");
  check_packed(values, meta, out_features, in_features);
  check_dtype(values, ScalarType::Char, "values");
  const DType dtype = kernel_dtype(x, "x");
  Call call(x, {&values, &meta, &scale});
  x = torch::stable::contiguous(x);
  const int64_t tokens = count_tokens(x);
  Tensor y = new_output(x, out_features);
  if (y.numel() == 0) return y;
  const cuda::NmLinearArgs args{input(x),
                                input(values),
                                input<uint32_t>(meta),
                                output(y),
                                dtype,
                                DType::i8,
                                tokens,
                                out_features,
                                in_features,
                                epilogue_of(bias, scale, out_features, activation)};
  Tensor workspace =
      empty_like(x, {cuda::nm_w8a8_workspace(args, call.limits())}, ScalarType::Byte);
  cuda::nm_w8a8_linear(args, call.limits(), output(workspace), call.stream());
  return y;
}

}  // namespace evoprune::binding_cuda

EVOPRUNE_CUDA_LIBRARY(m) {
  m.impl("nm_w8a8_linear", TORCH_BOX(&evoprune::binding_cuda::nm_w8a8_linear));
}
