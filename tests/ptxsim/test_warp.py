"""Shuffles, votes, reductions, barriers and atomics, as CUDA C++ writes them."""

from __future__ import annotations

import numpy as np
import pytest

from tests.ptxsim import Device, Divergence, ExecutionError
from tests.ptxsim.compile import compile_cuda, have_nvcc

pytestmark = pytest.mark.skipif(not have_nvcc(), reason="nvcc is not installed")

SOURCE = """
extern "C" __global__ void shuffles(const int* x, int* out) {
  int t = threadIdx.x, v = x[t];
  out[t] = __shfl_sync(~0u, v, 5);
  out[t + 64] = __shfl_sync(~0u, v, t + 3, 8);
  out[t + 128] = __shfl_up_sync(~0u, v, 3);
  out[t + 192] = __shfl_down_sync(~0u, v, 5, 16);
  out[t + 256] = __shfl_xor_sync(~0u, v, 9);
}

extern "C" __global__ void votes(const int* x, unsigned* out) {
  int t = threadIdx.x, v = x[t];
  out[t] = __ballot_sync(~0u, v & 1);
  out[t + 64] = __any_sync(~0u, v == 7) | __all_sync(~0u, v < 100) << 1;
  out[t + 128] = __match_any_sync(~0u, v & 3);
  int same;
  out[t + 192] = __match_all_sync(~0u, t < 32 ? 5 : v, &same);
  out[t + 256] = same;
  out[t + 320] = t % 2 ? __activemask() : 0;
  out[t + 384] = __reduce_add_sync(~0u, (unsigned)v);
  out[t + 448] = __reduce_min_sync(~0u, v - 50);
  out[t + 512] = __reduce_xor_sync(~0u, (unsigned)v);
  if (t % 32 >= 8 && t % 32 < 24) out[t + 576] = __ballot_sync(0x00FFFF00u, v & 1);
  else out[t + 576] = __ballot_sync(0xFF0000FFu, v & 1);
}

extern "C" __global__ void wrong_mask(unsigned* out) {
  if (threadIdx.x % 2) out[threadIdx.x] = __ballot_sync(~0u, 1); else out[threadIdx.x] = 1;
}

extern "C" __global__ void barriers(const int* x, int* out) {
  int t = threadIdx.x;
  out[t] = __syncthreads_count(x[t] & 1);
  out[t + 64] = __syncthreads_and(x[t] < 100);
  out[t + 128] = __syncthreads_or(x[t] == 7);
  __shared__ int a[64];
  if (t < 32) {
    a[t] = x[t];
    asm volatile("barrier.sync.aligned 2, 64;");
    out[t + 192] = 0;
  } else {
    asm volatile("bar.sync 2, 64;");
    out[t + 192] = a[t - 32];
  }
}

extern "C" __global__ void hand_over(const int* x, int* out) {
  __shared__ int a[32];
  int t = threadIdx.x;
  if (t < 32) {
    a[t] = x[t];
    asm volatile("bar.arrive 1, 64;" ::: "memory");
  } else {
    asm volatile("bar.sync 1, 64;" ::: "memory");
    out[t - 32] = a[t - 32];
  }
}

extern "C" __global__ void atomics(const int* x, int* i, unsigned* u, float* f,
                                   unsigned long long* l, int* old, __nv_bfloat162* b, __half2* h) {
  int v = x[blockIdx.x * 64 + threadIdx.x];
  old[blockIdx.x * 64 + threadIdx.x] = atomicAdd(i, 1);
  atomicAdd(i + 1, v);
  atomicMin(i + 2, v);
  atomicMax(i + 3, v);
  atomicXor(i + 4, v);
  atomicAdd(u, (unsigned)v);
  atomicMax(u + 1, (unsigned)v);
  atomicAnd(u + 2, v | 0xFFFF0000u);
  atomicOr(u + 3, v);
  atomicInc(u + 4, 40);
  atomicAdd(f, (float)v);
  atomicAdd(l, (unsigned long long)v << 32);
  atomicExch(u + 5, 9u);
  atomicCAS(u + 6, 0u, (unsigned)v + 1);
  atomicAdd(b, __floats2bfloat162_rn(1, 2));
  atomicAdd(h, __floats2half2_rn(1, 2));
  __shared__ unsigned s[2];
  if (threadIdx.x < 2) s[threadIdx.x] = 0;
  __syncthreads();
  atomicAdd(s, (unsigned)v);
  atomicMax(s + 1, (unsigned)v);
  __syncthreads();
  if (threadIdx.x == 0) { atomicAdd(u + 7, s[0]); atomicMax(u + 8, s[1]); }
}
"""
X = np.random.default_rng(3).integers(0, 100, 128).astype(np.int32)


def run(kernel: str, rows: int, dtype=np.int32) -> np.ndarray:
    device = Device(memory=1 << 16)
    out = device.empty((rows, 64), dtype)
    device.launch(compile_cuda(SOURCE), kernel, 1, 64, [device.upload(X[:64]), out])
    return out.array


def test_shuffles():
    found, warps, lane = run("shuffles", 5), X[:64].reshape(2, 32), np.arange(32)
    for row, lanes in enumerate(
        (
            lane * 0 + 5,
            lane // 8 * 8 + (lane + 3) % 8,
            np.where(lane < 3, lane, lane - 3),
            np.where(lane % 16 + 5 < 16, lane + 5, lane),
            lane ^ 9,
        )
    ):
        np.testing.assert_array_equal(found[row].reshape(2, 32), warps[:, lanes])


def bits(values) -> int:
    return sum(1 << k for k, value in enumerate(values) if value)


def test_votes():
    found = run("votes", 10, np.uint32)
    for warp in range(2):
        v, got = X[32 * warp : 32 * warp + 32], found[:, 32 * warp : 32 * warp + 32]
        assert (got[0] == bits(v & 1)).all()
        assert (got[1] == ((v == 7).any() | (v < 100).all() << 1)).all()
        assert got[2].tolist() == [bits(v & 3 == each & 3) for each in v]
        assert (got[3] == (0 if warp else 0xFFFFFFFF)).all() and (got[4] == 1 - warp).all()
        assert (got[6] == v.sum()).all() and (got[7].view(np.int32) == v.min() - 50).all()
        assert (got[8] == np.bitwise_xor.reduce(v)).all()
        inner = np.isin(np.arange(32), np.arange(8, 24))
        assert got[9].tolist() == [bits(v & 1 & (inner == each)) for each in inner]


def test_a_vote_waits_for_its_mask():
    device = Device(memory=1 << 16)
    with pytest.raises(Divergence, match="wait for the rest"):
        out = device.empty(64, np.uint32)
        device.launch(compile_cuda(SOURCE), "wrong_mask", 1, 64, [out])


def test_barriers():
    found, x = run("barriers", 4), X[:64]
    assert (found[0] == (x & 1).sum()).all()
    assert (found[1] == (x < 100).all()).all() and (found[2] == (x == 7).any()).all()
    np.testing.assert_array_equal(found[3, 32:], x[:32])
    np.testing.assert_array_equal(run("hand_over", 1)[0, :32], x[:32])


def test_deadlock():
    module = compile_cuda("""extern "C" __global__ void k(float* out) {
        if (threadIdx.x < 32) asm volatile("bar.sync 1, 64;"); else out[threadIdx.x - 32] = 1; }""")
    device = Device(memory=1 << 16)
    with pytest.raises(ExecutionError, match="deadlock"):
        device.launch(module, "k", 1, 64, [device.empty(64, np.float32)])


def test_atomics():
    device = Device(memory=1 << 16)
    i = device.upload(np.array([0, 0, 1000, -1000, 0], np.int32))
    u = device.upload(np.array([0, 0, 0xFFFFFFFF, 0, 0, 1, 0, 0, 0], np.uint32))
    f, l = device.upload(np.zeros(1, np.float32)), device.upload(np.zeros(1, np.uint64))
    old = device.empty(128, np.int32)
    b, h = device.upload(np.zeros(2, np.uint16)), device.upload(np.zeros(2, np.float16))
    args = [device.upload(X), i, u, f, l, old, b, h]
    stats = device.launch(compile_cuda(SOURCE), "atomics", 2, 64, args)
    x = X.astype(np.uint32)
    assert i.array.tolist() == [128, X.sum(), X.min(), X.max(), np.bitwise_xor.reduce(X)]
    assert sorted(old.array.tolist()) == list(range(128))
    bitwise = [np.bitwise_and.reduce(x | 0xFFFF0000), np.bitwise_or.reduce(x)]
    expected = [x.sum(), x.max(), *bitwise, 128 % 41, 9, x[0] + 1, x.sum(), x.max()]
    assert u.array.tolist() == [int(value) for value in expected]
    assert f.array[0] == X.sum() and l.array[0] == int(X.sum()) << 32
    assert h.array.tolist() == [128, 256] and b.array.tolist() == [0x4300, 0x4380]
    assert stats["global.atomic.requests"] > 0 and stats["shared.atomic.bytes"] == 2 * 4 * 128
