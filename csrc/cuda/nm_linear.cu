// nm_linear: to be written.
#include "cuda/nm_linear.h"

namespace evoprune::cuda {
int64_t nm_linear_workspace(const NmLinearArgs&, const DeviceLimits&) {
  return 0;
}
void nm_linear(const NmLinearArgs&, const DeviceLimits&, void*, cudaStream_t) {
  throw std::runtime_error("nm_linear: to be written");
}
}  // namespace evoprune::cuda
