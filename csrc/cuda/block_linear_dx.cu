// block_linear_dx: to be described.
#include "cuda/block_product.cuh"

namespace evoprune::cuda {

void block_linear_dx(const BlockProductArgs& args, cudaStream_t stream) {
  launch_block_product<true>(args, stream);
}

}  // namespace evoprune::cuda
