// What the host code of every kernel shares: dtypes, the limits of the device, CUDA errors.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>
#include <stdexcept>
#include <string>

namespace evoprune::cuda {

enum class DType : int32_t { f32, f16, bf16, i8 };

struct DeviceLimits {
  int major, minor, processors, shared_bytes;  // shared_bytes: the most that one block may ask for
};

inline void check(cudaError_t error, const char* what) {
  if (error != cudaSuccess)
    throw std::runtime_error(std::string(what) + ": " + cudaGetErrorString(error));
}

// Of the current device.
inline DeviceLimits device_limits() {
  int device = 0;
  check(cudaGetDevice(&device), "cudaGetDevice");
  DeviceLimits limits{};
  const auto read = [&](int* to, cudaDeviceAttr attribute) {
    check(cudaDeviceGetAttribute(to, attribute, device), "cudaDeviceGetAttribute");
  };
  read(&limits.major, cudaDevAttrComputeCapabilityMajor);
  read(&limits.minor, cudaDevAttrComputeCapabilityMinor);
  read(&limits.processors, cudaDevAttrMultiProcessorCount);
  read(&limits.shared_bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin);
  return limits;
}

constexpr int64_t ceil_div(int64_t a, int64_t b) {
  return (a + b - 1) / b;
}

}  // namespace evoprune::cuda
