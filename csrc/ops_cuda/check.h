// What the CUDA bindings share: checks, the device and stream of a call, and the pointers that a
// kernel may follow.
//
//   real build        registered for the CUDA key of `evoprune`; pointers are device pointers
//   simulated build   (EVOPRUNE_SIMULATED, tests only) registered for CPU tensors of
//                     `evoprune_sim`; every pointer is made known to the PTX simulator first, with
//                     its size and whether it holds data, so that each access can be checked
#pragma once

#include <torch/csrc/stable/accelerator.h>

#include <initializer_list>
#include <optional>

#include "cuda/device.h"
#include "ops/check.h"

#if EVOPRUNE_SIMULATED
#define EVOPRUNE_CUDA_LIBRARY(m) STABLE_TORCH_LIBRARY_IMPL(evoprune_sim, CPU, m)
extern "C" void evoprune_sim_memory(const void* data, int64_t bytes, int holds_data);
#else
#define EVOPRUNE_CUDA_LIBRARY(m) STABLE_TORCH_LIBRARY_IMPL(evoprune, CUDA, m)
extern "C" AOTITorchError aoti_torch_get_current_cuda_stream(int32_t device, void** stream);
#endif

namespace evoprune::binding_cuda {

using binding::check_contiguous;
using binding::check_dtype;
using binding::check_size;
using binding::ScalarType;
using binding::Tensor;
using cuda::DType;

#if EVOPRUNE_SIMULATED
inline void known(const Tensor& t, bool holds_data) {
  evoprune_sim_memory(t.const_data_ptr(), t.numel() * t.element_size(), holds_data);
}
#else
inline void known(const Tensor&, bool) {}
#endif

// The data of a contiguous tensor: to read, to write, or both. In the simulated build, reading a
// byte of `output` that no kernel wrote is an error.
template <typename T = void>
const T* input(const Tensor& t) {
  known(t, true);
  return static_cast<const T*>(t.const_data_ptr());
}
template <typename T = void>
T* output(const Tensor& t) {
  known(t, false);
  return static_cast<T*>(t.mutable_data_ptr());
}
template <typename T = void>
T* in_out(const Tensor& t) {
  known(t, true);
  return static_cast<T*>(t.mutable_data_ptr());
}

inline Tensor empty_like(const Tensor& like, std::initializer_list<int64_t> sizes,
                         ScalarType dtype) {
  return torch::stable::new_empty(like, {sizes.begin(), sizes.size()}, dtype);
}
inline Tensor zeros_like(const Tensor& like, std::initializer_list<int64_t> sizes,
                         ScalarType dtype) {
  return torch::stable::new_zeros(like, {sizes.begin(), sizes.size()}, dtype);
}

// The tensor, or a copy where its data does not begin at a multiple of 16 bytes.
inline Tensor aligned(const Tensor& t) {
  return reinterpret_cast<uintptr_t>(t.const_data_ptr()) % 16 == 0 ? t : torch::stable::clone(t);
}

inline DType kernel_dtype(const Tensor& t, const char* what) {
  switch (t.scalar_type()) {
    case ScalarType::Float:
      return DType::f32;
    case ScalarType::Half:
      return DType::f16;
    case ScalarType::BFloat16:
      return DType::bf16;
    default:
      STD_TORCH_CHECK(false, what, " has dtype ", torch::headeronly::toString(t.scalar_type()),
                      ", expected Float, Half or BFloat16");
  }
}

// Makes the device of `first` current for the life of the object; refuses devices before sm_80 and
// tensors elsewhere.
class Call {
 public:
  Call(const Tensor& first, std::initializer_list<const Tensor*> others)
#if EVOPRUNE_SIMULATED
  {
#else
      : guard_(first.get_device()) {
#endif
    for (const Tensor* other : others)
      STD_TORCH_CHECK(other->get_device() == first.get_device(), "expected all tensors on device ",
                      first.get_device(), ", got one on device ", other->get_device());
    limits_ = cuda::device_limits();
    STD_TORCH_CHECK(limits_.major >= 8, "the CUDA kernels need compute capability 8.0, got ",
                    limits_.major, ".", limits_.minor);
#if !EVOPRUNE_SIMULATED
    void* stream = nullptr;
    STABLE_TORCH_ERROR_CODE_CHECK(
        aoti_torch_get_current_cuda_stream(static_cast<int32_t>(first.get_device()), &stream));
    stream_ = static_cast<cudaStream_t>(stream);
#endif
  }

  cudaStream_t stream() const { return stream_; }
  const cuda::DeviceLimits& limits() const { return limits_; }

 private:
#if !EVOPRUNE_SIMULATED
  torch::stable::accelerator::DeviceGuard guard_;
#endif
  cuda::DeviceLimits limits_{};
  cudaStream_t stream_ = nullptr;
};

}  // namespace evoprune::binding_cuda
