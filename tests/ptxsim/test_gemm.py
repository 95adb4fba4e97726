"""A tensor-core GEMM as real kernels are built: two cp.async stages, a swizzle, ldmatrix, mma."""

from __future__ import annotations

import numpy as np
import pytest

from tests.ptxsim import Device, MemoryFault, RaceError
from tests.ptxsim.compile import compile_cuda, have_nvcc

pytestmark = pytest.mark.skipif(not have_nvcc(), reason="nvcc is not installed")

#: C[m, n] = A[m, k] B[n, k]^T in tiles of 64 x 64 x 32; a warp computes 32 x 32
SOURCE = """
__device__ unsigned at(unsigned base, int row, int chunk) {
  return base + row * 64 + (chunk ^ (row / 2 % 4)) * 16;
}

__device__ void fetch(unsigned to, const __half* from, int stride) {
  for (int piece = threadIdx.x; piece < 256; piece += 128)
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(at(to, piece / 4, piece % 4)),
                 "l"(from + piece / 4 * stride + piece % 4 * 8));
}

__device__ void matrix(unsigned (&r)[4], unsigned address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(address));
}

extern "C" __global__ void gemm(const __half* A, const __half* B, float* C, int N, int K) {
  __shared__ __align__(128) char memory[2 * 8192];
  unsigned base = (unsigned)__cvta_generic_to_shared(memory);
  int lane = threadIdx.x % 32, warp = threadIdx.x / 32, m = warp / 2 * 32, n = warp % 2 * 32;
  A += blockIdx.y * 64 * K;
  B += blockIdx.x * 64 * K;
  float c[2][4][4] = {};
  fetch(base, A, K);
  fetch(base + 4096, B, K);
  asm volatile("cp.async.commit_group;");
  for (int k = 0; k < K; k += 32) {
    unsigned now = base + k / 32 % 2 * 8192, next = base + 8192 - k / 32 % 2 * 8192;
    BEFORE
    if (k + 32 < K) {
      fetch(next, A + k + 32, K);
      fetch(next + 4096, B + k + 32, K);
    }
    asm volatile("cp.async.commit_group;");
    asm volatile("cp.async.wait_group WAIT;");
    AFTER
    for (int half = 0; half < 2; ++half) {
      unsigned a[2][4], b[2][4];
      for (int i = 0; i < 2; ++i)
        matrix(a[i], at(now, m + 16 * i + lane % 16, 2 * half + lane / 16));
      for (int j = 0; j < 2; ++j)
        matrix(b[j], at(now + 4096, n + 16 * j + lane % 16, 2 * half + lane / 16));
      for (int i = 0; i < 2; ++i)
        for (int j = 0; j < 4; ++j)
          asm volatile(
              "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 "
              "{%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
              : "+f"(c[i][j][0]), "+f"(c[i][j][1]), "+f"(c[i][j][2]), "+f"(c[i][j][3])
              : "r"(a[i][0]), "r"(a[i][1]), "r"(a[i][2]), "r"(a[i][3]),
                "r"(b[j / 2][j % 2]), "r"(b[j / 2][j % 2 + 2]));
    }
  }
  for (int i = 0; i < 2; ++i)
    for (int j = 0; j < 4; ++j)
      for (int h = 0; h < 2; ++h)
        *(float2*)(C + (blockIdx.y * 64 + m + 16 * i + 8 * h + lane / 4) * N + blockIdx.x * 64 + n +
                   8 * j + lane % 4 * 2) = make_float2(c[i][j][2 * h], c[i][j][2 * h + 1]);
}
"""


def source(before="__syncthreads();", wait="1", after="__syncthreads();") -> str:
    return SOURCE.replace("BEFORE", before).replace("WAIT", wait).replace("AFTER", after)


def launch(text: str, m=128, n=128, k=256, device=None):
    rng = np.random.default_rng(0)
    a = rng.integers(-4, 5, (m, k)).astype(np.float16)
    b = rng.integers(-4, 5, (n, k)).astype(np.float16)
    device = device or Device()
    c = device.empty((m, n), np.float32)
    args = [device.upload(a), device.upload(b), c, n, k]
    stats = device.launch(compile_cuda(text), "gemm", (n // 64, m // 64), 128, args)
    return stats, c.array, a.astype(np.float32) @ b.astype(np.float32).T


def test_values_and_counts():
    stats, actual, expected = launch(source())
    np.testing.assert_array_equal(actual, expected)
    assert stats["global.load.footprint"] == 2 * 2 * 128 * 256  # each operand once
    assert stats["global.load.bytes"] == 2 * stats["global.load.footprint"]  # two blocks read it
    assert stats["global.store.footprint"] == stats["global.store.bytes"] == 4 * 128 * 128
    assert stats["shared.load.wavefronts"] == stats["shared.load.ideal"]  # the swizzle works


@pytest.mark.parametrize(
    "wrong, fault, message",
    [
        ({"before": ""}, RaceError, "written by warp"),  # the next copy overtakes a slow warp
        ({"after": ""}, RaceError, "read by warp"),  # another thread's copy is not awaited
        ({"wait": "2"}, MemoryFault, "in flight"),
    ],
    ids=["no barrier before the copy", "no barrier after the wait", "waits for too little"],
)
def test_missing_synchronisation_is_found(wrong, fault, message):
    with pytest.raises(fault, match=message):
        launch(source(**wrong))
