// What the n:m linear op lends to the convolution: its checks, and itself.
#pragma once

#include "ops/nm.h"
#include "ops/strips.h"

namespace evoprune::binding {

// Prepared tensors of a caller: [tiles, middle, 16].
void check_prepared(const Tensor& t, int64_t tiles, int64_t middle, const char* what);
// Where 16 rows share their mask: strips of one column an entry, checked (cpu/strips.h).
struct SharedStrips {
  Prepared weight;
  StripArgs args;
};
SharedStrips shared_strips(const Tensor& x, const Tensor& values, const Tensor& columns,
                           const Epilogue& epilogue, Shape shape, int n, int m);
// The prepared tensors of a weight whose rows have masks of their own, checked, as both nm kernels of
// many tokens and few take them; what depends on the tokens is left out.
NmLinearArgs nm_tiles(const Tensor& values, const Tensor& meta, const Epilogue& epilogue,
                      Shape shape, int n, int m);
Tensor nm_linear(Tensor x, Tensor values, Tensor meta, std::optional<Tensor> bias,
                 int64_t out_features, int64_t in_features, int64_t n64, int64_t m64,
                 int64_t shared, std::string activation, std::string layout,
                 std::optional<Tensor> scale);

}  // namespace evoprune::binding
