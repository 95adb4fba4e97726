// block_linear: to be described.
#include "cuda/block_product.cuh"

namespace evoprune::cuda {

void block_linear(const BlockProductArgs& args, cudaStream_t stream) {
  launch_block_product<false>(args, stream);
}

}  // namespace evoprune::cuda
