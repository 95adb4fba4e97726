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

template <int kOffset = 0>
__device__ __forceinline__ uint2 ld_shared8(uint32_t shared) {
  uint2 r;
  asm volatile("ld.shared.v2.u32 {%0, %1}, [%2 + %3];"
               : "=r"(r.x), "=r"(r.y)
               : "r"(shared), "n"(kOffset)
               : "memory");
  return r;
}

// The next of numbers of kSize bytes, zero-extended: where `wanted` is not 0 the one at `at`, which
// moves on; else 0, and nothing is read.
template <int kSize>
__device__ __forceinline__ uint32_t take_shared_if(uint32_t& at, uint32_t wanted) {
  static_assert(kSize == 1 || kSize == 2, "bytes");
  uint32_t r;
#define EVOPRUNE_TAKE(BITS, BYTES)                                                       \
  asm volatile("{.reg .pred p; setp.ne.u32 p, %2, 0; mov.u32 %0, 0; @p ld.shared.u" BITS \
               " %0, [%1]; @p add.u32 %1, %1, " BYTES ";}"                               \
               : "=&r"(r), "+r"(at)                                                      \
               : "r"(wanted)                                                             \
               : "memory")
  if constexpr (kSize == 2)
    EVOPRUNE_TAKE("16", "2");
  else
    EVOPRUNE_TAKE("8", "1");
#undef EVOPRUNE_TAKE
  return r;
}

template <int kOffset = 0>
__device__ __forceinline__ void st_shared8(uint32_t shared, uint32_t x, uint32_t y) {
  asm volatile("st.shared.v2.u32 [%0 + %3], {%1, %2};" ::"r"(shared), "r"(x), "r"(y), "n"(kOffset)
               : "memory");
}
__device__ __forceinline__ void st_shared(uint32_t shared, float x, float y) {
  asm volatile("st.shared.v2.f32 [%0], {%1, %2};" ::"r"(shared), "f"(x), "f"(y) : "memory");
}

// sums[m] += v x[m] with the stored number v at `at`, which moves on: where `wanted` is not 0. The last
// argument is the number's type; for int8, 0x4b000000 + u is 2^23 + u as a float, which costs less than
// a conversion. One predicate for all, so that the loads of neighbours overlap.
#define EVOPRUNE_MULTIPLY_TAKEN(TYPE, LOAD, BYTES)                                                 \
  template <int kCount>                                                                            \
  __device__ __forceinline__ void multiply_taken(                                                  \
      float (&s)[kCount], uint32_t& at, uint32_t wanted, const float (&x)[kCount], TYPE /*tag*/) { \
    static_assert(kCount == 1 || kCount == 4 || kCount == 8, "tokens");                            \
    if constexpr (kCount == 1)                                                                     \
      asm volatile("{.reg .pred p; .reg .b32 v; setp.ne.u32 p, %2, 0; " LOAD                       \
                   " @p add.u32 %0, %0, " BYTES "; @p fma.rn.f32 %1, v, %3, %1;}"                  \
                   : "+r"(at), "+f"(s[0])                                                          \
                   : "r"(wanted), "f"(x[0])                                                        \
                   : "memory");                                                                    \
    else if constexpr (kCount == 4)                                                                \
      asm volatile("{.reg .pred p; .reg .b32 v; setp.ne.u32 p, %5, 0; " LOAD                       \
                   " @p add.u32 %0, %0, " BYTES                                                    \
                   "; @p fma.rn.f32 %1, v, %6, %1;"                                                \
                   " @p fma.rn.f32 %2, v, %7, %2; @p fma.rn.f32 %3, v, %8, %3;"                    \
                   " @p fma.rn.f32 %4, v, %9, %4;}"                                                \
                   : "+r"(at), "+f"(s[0]), "+f"(s[1]), "+f"(s[2]), "+f"(s[3])                      \
                   : "r"(wanted), "f"(x[0]), "f"(x[1]), "f"(x[2]), "f"(x[3])                       \
                   : "memory");                                                                    \
    else                                                                                           \
      asm volatile("{.reg .pred p; .reg .b32 v; setp.ne.u32 p, %9, 0; " LOAD                       \
                   " @p add.u32 %0, %0, " BYTES                                                    \
                   "; @p fma.rn.f32 %1, v, %10, %1;"                                               \
                   " @p fma.rn.f32 %2, v, %11, %2; @p fma.rn.f32 %3, v, %12, %3;"                  \
                   " @p fma.rn.f32 %4, v, %13, %4; @p fma.rn.f32 %5, v, %14, %5;"                  \
                   " @p fma.rn.f32 %6, v, %15, %6; @p fma.rn.f32 %7, v, %16, %7;"                  \
                   " @p fma.rn.f32 %8, v, %17, %8;}"                                               \
                   : "+r"(at), "+f"(s[0]), "+f"(s[1]), "+f"(s[2]), "+f"(s[3]), "+f"(s[4]),         \
                     "+f"(s[5]), "+f"(s[6]), "+f"(s[7])                                            \
                   : "r"(wanted), "f"(x[0]), "f"(x[1]), "f"(x[2]), "f"(x[3]), "f"(x[4]),           \
                     "f"(x[5]), "f"(x[6]), "f"(x[7])                                               \
                   : "memory");                                                                    \
  }
EVOPRUNE_MULTIPLY_TAKEN(float, "@p ld.shared.b32 v, [%0];", "4")
EVOPRUNE_MULTIPLY_TAKEN(__half, "{.reg .b16 h; @p ld.shared.b16 h, [%0]; @p cvt.f32.f16 v, h;}",
                        "2")
EVOPRUNE_MULTIPLY_TAKEN(__nv_bfloat16, "@p ld.shared.u16 v, [%0]; @p shl.b32 v, v, 16;", "2")
EVOPRUNE_MULTIPLY_TAKEN(int8_t,
                        "@p ld.shared.u8 v, [%0]; @p xor.b32 v, v, 0x4b000080;"
                        " @p add.rn.f32 v, v, 0fcb000080;",
                        "1")
#undef EVOPRUNE_MULTIPLY_TAKEN

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
