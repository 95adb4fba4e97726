"""The simulator against kernels compiled here by nvcc: what it computes, finds and counts."""

from __future__ import annotations

import numpy as np
import pytest

from tests.ptxsim import Device, Divergence, MemoryFault, RaceError
from tests.ptxsim.compile import compile_cuda, have_nvcc

pytestmark = pytest.mark.skipif(not have_nvcc(), reason="nvcc is not installed")


def test_reduction_with_divergence_shuffles_and_atomics():
    module = compile_cuda(
        """
    extern "C" __global__ void total(const float* x, float* out, int n) {
        __shared__ float part[8];
        float sum = 0;
        for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < n; i += gridDim.x * blockDim.x) sum += x[i];
        for (int d = 16; d; d /= 2) sum += __shfl_down_sync(~0u, sum, d);
        if (threadIdx.x % 32 == 0) part[threadIdx.x / 32] = sum;
        __syncthreads();
        if (threadIdx.x == 0) { for (int w = 1; w < blockDim.x / 32; ++w) sum += part[w]; atomicAdd(out, sum); }
    }""",
    )
    device, n = Device(), 5003
    x = device.upload(np.random.default_rng(0).standard_normal(n).astype(np.float32))
    out = device.upload(np.zeros(1, np.float32))
    device.launch(module, "total", 3, 128, [x, out, n])
    np.testing.assert_allclose(out.array[0], x.array.sum(dtype=np.float64), rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize(
    "bad, fault",
    [
        ("out[threadIdx.x + 1] = x[threadIdx.x];", MemoryFault),  # past the end
        ("out[threadIdx.x] = out[threadIdx.x] + 1;", MemoryFault),  # read before write
        (
            "__shared__ float s[64]; s[threadIdx.x] = 1; out[threadIdx.x] = s[63 - threadIdx.x];",
            RaceError,
        ),
        (
            "if (threadIdx.x < 5) out[threadIdx.x] = __shfl_sync(~0u, x[0], 9); else out[threadIdx.x] = 0;",
            Divergence,
        ),
    ],
)
def test_faults_are_found(bad, fault):
    module = compile_cuda('extern "C" __global__ void k(const float* x, float* out) {' + bad + "}")
    device = Device()
    x, out = device.upload(np.ones(64, np.float32)), device.empty(64, np.float32)
    with pytest.raises(fault):
        device.launch(module, "k", 1, 64, [x, out])


def test_uncoalesced_and_conflicting_accesses_are_counted():
    module = compile_cuda(
        """
    extern "C" __global__ void k(const float* x, float* out, int stride) {
        __shared__ float s[32 * 32];
        for (int r = 0; r < 32; ++r) s[r * 32 + threadIdx.x] = x[r * 32 + threadIdx.x];
        __syncthreads();
        float sum = 0;
        for (int c = 0; c < 32; ++c) sum += s[threadIdx.x * stride + c];
        out[threadIdx.x] = sum;
    }""",
    )
    device = Device()
    x = device.upload(np.random.default_rng(0).standard_normal(1024).astype(np.float32))
    stats = device.launch(module, "k", 1, 32, [x, device.empty(32, np.float32), 32])
    assert (
        stats["global.load.sectors"] * 32
        == stats["global.load.bytes"]
        == stats["global.load.footprint"]
    )  # coalesced
    assert stats["shared.load.wavefronts"] == 32 * 32 and stats["shared.load.ideal"] == 32


def test_float_literals_keep_their_bits():
    source = """
    .version 8.0
    .target sm_80
    .address_size 64
    .visible .entry k(.param .u64 k_param_0)
    {
        .reg .b32 %r<2>;
        .reg .b64 %rd<2>;
        ld.param.b64 %rd1, [k_param_0];
        mov.b32 %r1, 0f3F800000;
        st.global.b32 [%rd1], %r1;
        ret;
    }"""
    device = Device()
    out = device.empty(1, np.float32)
    device.launch(source, "k", 1, 1, [out])
    assert out.array[0] == 1.0


def test_a_warp_meets_wherever_the_compiler_put_its_blocks():
    """Half of each warp takes a way through a block that lies behind the vote."""
    source = """.version 8.0 .target sm_80 .address_size 64
    .visible .entry k(.param .u64 out) {
      .reg .b64 %o; .reg .b32 %t, %v; .reg .pred %p;
      ld.param.u64 %o, [out]; mov.u32 %t, %tid.x; mad.wide.u32 %o, %t, 4, %o;
      and.b32 %v, %t, 1; setp.eq.u32 %p, %v, 1;
      @%p bra FAR;
    BACK:
      vote.sync.ballot.b32 %v, %p, 0xFFFFFFFF;
      st.global.b32 [%o], %v;
      ret;
    FAR:
      add.u32 %t, %t, 1;
      bra BACK;
    }"""
    device = Device(memory=1 << 16)
    out = device.empty(64, np.uint32)
    device.launch(source, "k", 1, 64, [out])
    assert (out.array == 0xAAAAAAAA).all()


def test_variables_have_their_initial_values():
    module = compile_cuda("""
    __constant__ float table[4] = {1, 2.5f, 3, 4};
    __device__ float scale = 2.5f;
    __constant__ int numbers[3] = {1, -2, 3};
    extern "C" __global__ void k(float* out) {
        int t = threadIdx.x;
        out[t] = table[t % 4] * scale + numbers[t % 3];
    }""")
    device, t = Device(memory=1 << 16), np.arange(32)
    out = device.empty(32, np.float32)
    device.launch(module, "k", 1, 32, [out])
    expected = np.array([1, 2.5, 3, 4])[t % 4] * 2.5 + np.array([1, -2, 3])[t % 3]
    np.testing.assert_array_equal(out.array, expected.astype(np.float32))


def test_a_block_may_wait_for_another():
    module = compile_cuda("""
    extern "C" __global__ void k(const int* x, int* out, volatile int* ready) {
        int b = gridDim.x - 1 - blockIdx.x, sum = x[b * 32 + threadIdx.x];
        if (b) {
            while (ready[b - 1] == 0) ;
            __threadfence();
            __syncthreads();
            sum += out[(b - 1) * 32 + threadIdx.x];
        }
        out[b * 32 + threadIdx.x] = sum;
        __threadfence();
        __syncthreads();
        if (threadIdx.x == 0) ready[b] = 1;
    }""")
    x = np.random.default_rng(0).integers(0, 100, (4, 32)).astype(np.int32)
    device = Device(memory=1 << 16)
    out, ready = device.empty((4, 32), np.int32), device.upload(np.zeros(4, np.int32))
    device.launch(module, "k", 4, 32, [device.upload(x), out, ready], max_steps=100_000)
    np.testing.assert_array_equal(out.array, np.cumsum(x, 0))
