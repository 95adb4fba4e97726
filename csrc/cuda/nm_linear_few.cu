// nm_linear_few: to be written.
#include "cuda/nm_linear.h"

namespace evoprune::cuda {
void nm_linear_few(const NmLinearArgs&, const DeviceLimits&, cudaStream_t) {
  throw std::runtime_error("nm_linear_few: to be written");
}
}  // namespace evoprune::cuda
