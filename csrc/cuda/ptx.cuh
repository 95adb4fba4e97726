// The only inline PTX of the package: one wrapper an instruction, named after it.
//
// Every wrapper names the oldest architecture that has the instruction. Shapes and fragments as in
// "PTX ISA", chapters 9.7.9 (data movement), 9.7.14 (mma) and 9.7.14.6 (mma.sp); g = lane / 4,
// t = lane % 4.
//
//   mma m16n8k16 (16-bit)   a0: row g,   k 2t..2t+1      a1: row g+8     a2, a3: the same, k + 8
//                           b0: column g, k 2t..2t+1     b1: the same, k + 8
//                           d0, d1: row g, columns 2t, 2t+1              d2, d3: row g+8
//   mma.sp m16n8k32         a: the dense m16n8k16 fragment of the kept values
//                           b0 .. b3: two dense b fragments, k and k + 16
//   mma.sp m16n8k64 (s8)    a: the dense m16n8k32 fragment of the kept values, b: two of the same
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>

namespace evoprune::cuda::ptx {

// ---- addresses ----
__device__ __forceinline__ uint32_t shared_address(const void* p) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(p));
}

// ---- registers ----
// No instruction: a value that stays in its register, because the compiler cannot compute it anew.
__device__ __forceinline__ uint32_t kept(uint32_t x) {
  asm volatile("" : "+r"(x));
  return x;
}

// ---- global memory, sm_70 ----
// 16 bytes that no thread of the grid writes, kept out of L1: data that is read once.
__device__ __forceinline__ uint4 load_once(const void* p) {
  uint4 v;
  asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
               : "l"(p));
  return v;
}
// 16 bytes by one store, where the compiler would split a struct of smaller numbers.
__device__ __forceinline__ void st_global(void* p, uint4 v) {
  asm volatile("st.global.v4.u32 [%0], {%1, %2, %3, %4};" ::"l"(p), "r"(v.x), "r"(v.y), "r"(v.z),
               "r"(v.w)
               : "memory");
}

// 16 aligned bytes.
__device__ __forceinline__ void store_global16(void* p, uint4 v) {
  asm volatile("st.global.v4.u32 [%0], {%1, %2, %3, %4};" ::"l"(p), "r"(v.x), "r"(v.y), "r"(v.z),
               "r"(v.w)
               : "memory");
}

// ---- asynchronous copies to shared memory, sm_80 ----
// 16 bytes past L1; with bytes = 0 the destination is filled with zeros and nothing is read.
template <int kOffset = 0>
__device__ __forceinline__ void cp_async16(uint32_t shared, const void* global) {
  asm volatile("cp.async.cg.shared.global [%0 + %2], [%1], 16;" ::"r"(shared), "l"(global),
               "n"(kOffset)
               : "memory");
}
template <int kOffset = 0>
__device__ __forceinline__ void cp_async16(uint32_t shared, const void* global, int bytes) {
  asm volatile("cp.async.cg.shared.global [%0 + %3], [%1], 16, %2;" ::"r"(shared), "l"(global),
               "r"(bytes), "n"(kOffset)
               : "memory");
}
__device__ __forceinline__ void cp_async4(uint32_t shared, const void* global, int bytes = 4) {
  asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;" ::"r"(shared), "l"(global), "r"(bytes)
               : "memory");
}
__device__ __forceinline__ void cp_async_commit() {
  asm volatile("cp.async.commit_group;" ::: "memory");
}
template <int kPending>
__device__ __forceinline__ void cp_async_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
}

// ---- shared memory and registers, sm_70 ----
template <int kOffset = 0>
__device__ __forceinline__ void load_shared16(uint32_t* r, uint32_t shared) {
  asm volatile("ld.shared.v4.u32 {%0, %1, %2, %3}, [%4 + %5];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(shared), "n"(kOffset)
               : "memory");
}

__device__ __forceinline__ void store_shared16(uint32_t shared, const uint32_t (&r)[4]) {
  asm volatile("st.shared.v4.u32 [%0], {%1, %2, %3, %4};" ::"r"(shared), "r"(r[0]), "r"(r[1]),
               "r"(r[2]), "r"(r[3])
               : "memory");
}

// ---- shared memory to fragments, sm_75 ----
// kOffset, in bytes, is part of the instruction.
template <int kOffset = 0>
__device__ __forceinline__ void ldmatrix_x4(uint32_t (&r)[4], uint32_t shared) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4 + %5];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(shared), "n"(kOffset)
               : "memory");
}
__device__ __forceinline__ void ldmatrix_x4_trans(uint32_t (&r)[4], uint32_t shared) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(shared)
               : "memory");
}

__device__ __forceinline__ uint32_t ld_shared(uint32_t shared) {
  uint32_t r;
  asm volatile("ld.shared.u32 %0, [%1];" : "=r"(r) : "r"(shared) : "memory");
  return r;
}

// A number of kSize bytes, zero-extended, where `wanted` is not 0; else 0, and nothing is read.
template <int kSize>
__device__ __forceinline__ uint32_t ld_shared_if(uint32_t shared, uint32_t wanted) {
  static_assert(kSize == 1 || kSize == 2, "bytes");
  uint32_t r;
  if constexpr (kSize == 2)
    asm volatile("{.reg .pred p; setp.ne.u32 p, %2, 0; mov.u32 %0, 0; @p ld.shared.u16 %0, [%1];}"
                 : "=&r"(r)
                 : "r"(shared), "r"(wanted)
                 : "memory");
  else
    asm volatile("{.reg .pred p; setp.ne.u32 p, %2, 0; mov.u32 %0, 0; @p ld.shared.u8 %0, [%1];}"
                 : "=&r"(r)
                 : "r"(shared), "r"(wanted)
                 : "memory");
  return r;
}

__device__ __forceinline__ void st_shared_u16(uint32_t shared, uint32_t x) {
  asm volatile("st.shared.u16 [%0], %1;" ::"r"(shared), "r"(x) : "memory");
}
__device__ __forceinline__ void st_shared_u8(uint32_t shared, uint32_t x) {
  asm volatile("st.shared.u8 [%0], %1;" ::"r"(shared), "r"(x) : "memory");
}

__device__ __forceinline__ void st_shared(uint32_t shared, float x, float y) {
  asm volatile("st.shared.v2.f32 [%0], {%1, %2};" ::"r"(shared), "f"(x), "f"(y) : "memory");
}

// ---- tensor cores, sm_80 ----
#define EVOPRUNE_MMA_16(TYPE, NAME)                                                                \
  __device__ __forceinline__ void mma_m16n8k16(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, \
                                               uint32_t b1, TYPE /*tag*/) {                        \
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32." NAME "." NAME                            \
                 ".f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"            \
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])                                  \
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));                  \
  }                                                                                                \
  template <int kSelector>                                                                         \
  __device__ __forceinline__ void mma_sp_m16n8k32(float (&d)[4], const uint32_t (&a)[4],           \
                                                  const uint32_t (&b)[4], uint32_t meta,           \
                                                  TYPE /*tag*/) {                                  \
    asm volatile("mma.sp::ordered_metadata.sync.aligned.m16n8k32.row.col.f32." NAME "." NAME       \
                 ".f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9, %10, %11}, "                   \
                 "{%0, %1, %2, %3}, %12, %13;"                                                     \
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])                                  \
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]), "r"(b[2]),    \
                   "r"(b[3]), "r"(meta), "n"(kSelector));                                          \
  }
EVOPRUNE_MMA_16(__half, "f16")
EVOPRUNE_MMA_16(__nv_bfloat16, "bf16")
#undef EVOPRUNE_MMA_16

// a0: row g, k t; a1: row g+8; a2, a3: k + 4; b0: k t, column g; b1: k + 4. Operands are rounded
// to tf32 first, by cvt_tf32.
__device__ __forceinline__ void mma_m16n8k8_tf32(float (&d)[4], const uint32_t (&a)[4], uint32_t b0,
                                                 uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
      "{%8, %9}, {%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
__device__ __forceinline__ uint32_t cvt_tf32(float x) {
  uint32_t r;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(r) : "f"(x));
  return r;
}

// Integers; sums that leave int32 are clamped. The metadata of all four lanes of a quad is used.
__device__ __forceinline__ void mma_sp_m16n8k64_s8(int32_t (&d)[4], const uint32_t (&a)[4],
                                                   const uint32_t (&b)[4], uint32_t meta) {
  asm volatile(
      "mma.sp::ordered_metadata.sync.aligned.m16n8k64.row.col.satfinite.s32.s8.s8.s32 "
      "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9, %10, %11}, {%0, %1, %2, %3}, %12, 0x0;"
      : "+r"(d[0]), "+r"(d[1]), "+r"(d[2]), "+r"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]), "r"(b[2]), "r"(b[3]),
        "r"(meta));
}

}  // namespace evoprune::cuda::ptx
