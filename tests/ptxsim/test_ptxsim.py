"""The simulator against kernels compiled here by nvcc: what it computes, finds and counts."""

import shutil
import subprocess

import numpy as np
import pytest

from tests.ptxsim import Device, Divergence, ExecutionError, MemoryFault, RaceError, parse

pytestmark = pytest.mark.skipif(shutil.which("nvcc") is None, reason="nvcc is not installed")


def build(tmp_path, body: str, arch: str = "sm_80"):
    source, out = tmp_path / "k.cu", tmp_path / "k.ptx"
    source.write_text("#include <cuda_fp16.h>\n#include <cstdint>\n" + body)
    subprocess.run(
        ["nvcc", f"-arch={arch}", "-ptx", str(source), "-o", str(out)],
        check=True,
        capture_output=True,
    )
    return parse(out.read_text())


def test_reduction_with_divergence_shuffles_and_atomics(tmp_path):
    module = build(
        tmp_path,
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


def test_counting_bits(tmp_path):
    module = build(
        tmp_path,
        """
    extern "C" __global__ void k(const unsigned* x, int* out) {
        unsigned v = x[threadIdx.x];
        int* to = out + 4 * threadIdx.x;
        to[0] = __ffs(v); to[1] = __clz(v); to[2] = __popc(v); to[3] = __brev(v);
    }""",
    )
    device, values = Device(), [0, 1, 2, 0x50, 0x80000000, 0xFFFFFFFF]
    x = device.upload(np.array(values, np.uint32))
    out = device.empty(4 * len(values), np.int32)
    device.launch(module, "k", 1, len(values), [x, out])
    expected = [
        [(v & -v).bit_length(), 32 - v.bit_length(), v.bit_count(), int(f"{v:032b}"[::-1], 2)]
        for v in values
    ]
    assert out.array.view(np.uint32).reshape(-1, 4).tolist() == expected


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
def test_faults_are_found(tmp_path, bad, fault):
    module = build(
        tmp_path, 'extern "C" __global__ void k(const float* x, float* out) {' + bad + "}"
    )
    device = Device()
    x, out = device.upload(np.ones(64, np.float32)), device.empty(64, np.float32)
    with pytest.raises(fault):
        device.launch(module, "k", 1, 64, [x, out])


def test_uncoalesced_and_conflicting_accesses_are_counted(tmp_path):
    module = build(
        tmp_path,
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


@pytest.mark.parametrize("dtype", ["f16", "bf16"])
def test_sparse_tensor_core(tmp_path, dtype):
    module = build(
        tmp_path,
        """
    extern "C" __global__ void k(const uint32_t* A, const uint32_t* B, const uint32_t* E, float* C) {
        int lane = threadIdx.x, g = lane / 4, t = lane % 4;
        uint32_t a[4], b[4], e = E[lane]; float d[4] = {};
        for (int r = 0; r < 4; ++r) a[r] = A[(g + 8 * (r % 2)) * 8 + t + 4 * (r / 2)];
        for (int r = 0; r < 4; ++r) b[r] = B[g * 16 + t + 4 * r];
        asm volatile("mma.sp::ordered_metadata.sync.aligned.m16n8k32.row.col.f32.TYPE.TYPE.f32 "
            "{%0,%1,%2,%3},{%4,%5,%6,%7},{%8,%9,%10,%11},{%0,%1,%2,%3},%12,0x0;"
            : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
            : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]), "r"(b[2]), "r"(b[3]), "r"(e));
        for (int r = 0; r < 4; ++r) C[(g + 8 * (r / 2)) * 8 + 2 * t + r % 2] = d[r];
    }""".replace("TYPE", dtype),
    )
    rng = np.random.default_rng(1)
    kept = np.sort(np.argsort(rng.random((16, 8, 4)), -1)[..., :2], -1)
    values, b = (
        rng.integers(-8, 8, (16, 8, 2)).astype(np.float32),
        rng.integers(-8, 8, (32, 8)).astype(np.float32),
    )
    dense = np.zeros((16, 8, 4), np.float32)
    np.put_along_axis(dense, kept, values, -1)
    index = kept.reshape(16, 2, 8)  # row, half of k, 8 indices
    words = (index << (2 * np.arange(8))).sum(-1).astype(np.uint32)  # 16 bits per row and half
    meta = np.zeros(32, np.uint32)
    for g in range(8):
        for half in range(2):
            meta[4 * g + half] = words[g, half] | words[g + 8, half] << 16
    half = (
        (lambda v: v.astype(np.float16))
        if dtype == "f16"
        else (lambda v: (v.astype(np.float32).view(np.uint32) >> 16).astype(np.uint16))
    )
    device = Device()
    c = device.empty((16, 8), np.float32)
    device.launch(
        module,
        "k",
        1,
        32,
        [
            device.upload(half(values.reshape(16, 16))),
            device.upload(half(np.ascontiguousarray(b.T))),
            device.upload(meta),
            c,
        ],
    )
    np.testing.assert_array_equal(c.array, dense.reshape(16, 32) @ b)


def test_missing_wait_is_seen(tmp_path):
    body = """
    extern "C" __global__ void k(const float* x, float* out) {
        __shared__ float s[128];
        unsigned at = (unsigned)__cvta_generic_to_shared(s + threadIdx.x * 4);
        asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" :: "r"(at), "l"(x + threadIdx.x * 4));
        asm volatile("cp.async.commit_group;");
        WAIT
        __syncthreads();
        for (int i = 0; i < 4; ++i) out[threadIdx.x + 32 * i] = s[127 - threadIdx.x - 32 * i];
    }"""
    for wait, fails in (('asm volatile("cp.async.wait_group 0;");', False), ("", True)):
        module = build(tmp_path, body.replace("WAIT", wait))
        device = Device()
        x, out = device.upload(np.arange(128, dtype=np.float32)), device.empty(128, np.float32)
        if fails:
            with pytest.raises(MemoryFault):
                device.launch(module, "k", 1, 32, [x, out])
        else:
            device.launch(module, "k", 1, 32, [x, out])
            np.testing.assert_array_equal(out.array, x.array[::-1])


def test_deadlock(tmp_path):
    module = build(
        tmp_path,
        """extern "C" __global__ void k(float* out) {
        if (threadIdx.x < 32) asm volatile("bar.sync 1, 64;"); else out[threadIdx.x - 32] = 1; }""",
    )
    device = Device()
    with pytest.raises(ExecutionError, match="deadlock"):
        device.launch(module, "k", 1, 64, [device.empty(64, np.float32)])


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
