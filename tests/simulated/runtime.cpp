// A CUDA runtime without a GPU: what nvcc's host code calls, answered for the PTX simulator.
//
//   host code of csrc/cuda          this file                        tests/simulated
//   kernel<<<grid, block>>>(args) -> __cudaLaunchKernel -> callback -> runs the kernel's PTX
//   cudaMemsetAsync              -> memset on host memory, which is the device's memory here
//   evoprune_sim_memory          -> callback -> what the kernels may touch
//
// So the whole path from the torch op to the kernel's last store runs in a test, with the very code
// that runs on a GPU. Errors of the simulator come back as cudaErrorLaunchFailure.
#include <cuda_runtime_api.h>

#include <cstdint>
#include <cstring>
#include <unordered_map>
#include <unordered_set>

#include "cuda/nm_plan.h"

namespace {

struct Configuration {
  dim3 grid, block;
  size_t shared_bytes;
  cudaStream_t stream;
};
using LaunchCallback = int (*)(const char* kernel, const unsigned* grid, const unsigned* block,
                               int64_t shared_bytes, void** arguments);
using MemoryCallback = void (*)(const void* data, int64_t bytes, int holds_data);

Configuration configuration;
cudaError_t last_error = cudaSuccess;
LaunchCallback on_launch = nullptr;
MemoryCallback on_memory = nullptr;
int attributes[256];
std::unordered_set<const void*> on_host;  // tensors that a binding takes for CPU tensors

std::unordered_map<const void*, const char*>& kernels() {
  static std::unordered_map<const void*, const char*> map;  // host function -> mangled name
  return map;
}

}  // namespace

extern "C" {

// ---- for the tests ----
__attribute__((visibility("default"))) void evoprune_sim_connect(LaunchCallback launch,
                                                                 MemoryCallback memory) {
  on_launch = launch;
  on_memory = memory;
}
__attribute__((visibility("default"))) void evoprune_sim_attribute(int attribute, int value) {
  attributes[attribute] = value;
}
__attribute__((visibility("default"))) void evoprune_sim_host(const void* data) {
  if (data == nullptr) return on_host.clear();
  on_host.insert(data);
}
int evoprune_sim_on_host(const void* data) {
  return on_host.count(data) != 0;
}
void evoprune_sim_memory(const void* data, int64_t bytes, int holds_data) {
  if (on_memory != nullptr) on_memory(data, bytes, holds_data);
}
// {tile, row_tiles, token_tiles, stages, splits, stages_of_split}
__attribute__((visibility("default"))) void evoprune_sim_nm_plan(int64_t tokens, int64_t rows,
                                                                 int64_t columns, int value_bytes,
                                                                 int processors, int64_t* out) {
  const auto p = evoprune::cuda::nm_plan(tokens, rows, columns, value_bytes, processors);
  const int64_t all[] = {p.tile, p.row_tiles, p.token_tiles, p.stages, p.splits, p.stages_of_split};
  std::memcpy(out, all, sizeof all);
}

// ---- what nvcc's host code calls ----
void** __cudaRegisterFatBinary(void*) {
  static void* handle;
  return &handle;
}
void __cudaRegisterFatBinaryEnd(void**) {}
void __cudaUnregisterFatBinary(void**) {}
char __cudaInitModule(void**) {
  return 1;
}
void __cudaRegisterFunction(void**, const char* host, char*, const char* name, int, uint3*, uint3*,
                            dim3*, dim3*, int*) {
  kernels()[host] = name;
}
void __cudaRegisterVar(void**, char*, char*, const char*, int, size_t, int, int) {}
unsigned __cudaPushCallConfiguration(dim3 grid, dim3 block, size_t shared_bytes,
                                     cudaStream_t stream) {
  configuration = {grid, block, shared_bytes, stream};
  return 0;
}
cudaError_t __cudaPopCallConfiguration(dim3* grid, dim3* block, size_t* shared_bytes,
                                       void* stream) {
  *grid = configuration.grid;
  *block = configuration.block;
  *shared_bytes = configuration.shared_bytes;
  *static_cast<cudaStream_t*>(stream) = configuration.stream;
  return cudaSuccess;
}
cudaError_t __cudaGetKernel(cudaKernel_t* kernel, const void* host) {
  *kernel = reinterpret_cast<cudaKernel_t>(const_cast<char*>(kernels().at(host)));
  return cudaSuccess;
}
cudaError_t __cudaLaunchKernel(cudaKernel_t kernel, dim3 grid, dim3 block, void** arguments,
                               size_t shared_bytes, cudaStream_t) {
  const unsigned g[] = {grid.x, grid.y, grid.z}, b[] = {block.x, block.y, block.z};
  const bool ran = on_launch != nullptr && on_launch(reinterpret_cast<const char*>(kernel), g, b,
                                                     static_cast<int64_t>(shared_bytes), arguments);
  if (!ran) last_error = cudaErrorLaunchFailure;
  return ran ? cudaSuccess : cudaErrorLaunchFailure;
}

// ---- what our host code calls ----
cudaError_t cudaGetLastError() {
  const cudaError_t error = last_error;
  last_error = cudaSuccess;
  return error;
}
const char* cudaGetErrorString(cudaError_t) {
  return "the simulator stopped the kernel";
}
cudaError_t cudaGetDevice(int* device) {
  *device = 0;
  return cudaSuccess;
}
cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
  *value = attributes[attribute];
  return cudaSuccess;
}
cudaError_t cudaFuncSetAttribute(const void*, cudaFuncAttribute, int value) {
  return value <= attributes[cudaDevAttrMaxSharedMemoryPerBlockOptin] ? cudaSuccess
                                                                      : cudaErrorInvalidValue;
}
cudaError_t cudaMemsetAsync(void* data, int value, size_t bytes, cudaStream_t) {
  std::memset(data, value, bytes);
  evoprune_sim_memory(data, static_cast<int64_t>(bytes), 1);
  return cudaSuccess;
}
// Launches have run when they return: there is nothing to wait for.
cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind,
                            cudaStream_t) {
  std::memcpy(to, from, bytes);
  return cudaSuccess;
}
cudaError_t cudaStreamSynchronize(cudaStream_t) {
  return cudaSuccess;
}

}  // extern "C"
