"""Loads, stores, parameters and asynchronous copies: values, faults, races and what they count."""

from __future__ import annotations

import numpy as np
import pytest

from tests.ptxsim import Device, LaunchError, MemoryFault, RaceError, parse
from tests.ptxsim.compile import compile_cuda, have_nvcc

pytestmark = pytest.mark.skipif(not have_nvcc(), reason="nvcc is not installed")

SOURCE = """
__device__ unsigned smem(const void* p) { return (unsigned)__cvta_generic_to_shared(p); }

extern "C" __global__ void zero_fill(const float* x, float* out, int valid) {
  __shared__ __align__(16) float s[128];
  int t = threadIdx.x, bytes = min(max(valid - 4 * t, 0), 4) * 4;
  const float* from = bytes ? x + 4 * t : (const float*)16;  // must not be read
  asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16, %2;" ::
               "r"(smem(s + 4 * t)), "l"(from), "r"(bytes));
  asm volatile("cp.async.wait_all;");
  __syncthreads();
  for (int i = 0; i < 4; ++i) out[t + 32 * i] = s[t + 32 * i];
}

extern "C" __global__ void hints(const float* x, float* out) {
  int t = threadIdx.x;
  float4 v; float a, b; unsigned long long policy;
  asm volatile("createpolicy.fractional.L2::evict_last.b64 %0, 1.0;" : "=l"(policy));
  asm volatile("ld.global.nc.L1::no_allocate.L2::128B.v4.f32 {%0,%1,%2,%3}, [%4];"
               : "=f"(v.x), "=f"(v.y), "=f"(v.z), "=f"(v.w) : "l"(x + 4 * t));
  asm volatile("ld.global.L2::cache_hint.f32 %0, [%1], %2;" : "=f"(a) : "l"(x + t), "l"(policy));
  asm volatile("ld.global.nc.L1::evict_last.L2::256B.f32 %0, [%1];" : "=f"(b) : "l"(x + 1 + t));
  asm volatile("{.reg .pred p; setp.ne.s32 p, %5, 3; @p st.global.L1::no_allocate.v4.f32 [%0], {%1,%2,%3,%4};}"
               :: "l"(out + 4 * t), "f"(v.x + a), "f"(v.y + b), "f"(v.z), "f"(v.w), "r"(t) : "memory");
  asm volatile("st.global.L2::cache_hint.f32 [%0], %1, %2;" :: "l"(out + 128 + t), "f"(a), "l"(policy));
  asm volatile("prefetch.global.L2 [%0]; membar.gl; fence.acq_rel.gpu;" :: "l"(x));
}

struct Table { int n[2000]; };
extern "C" __global__ void table(const __grid_constant__ Table a, int4* out, int k) {
  int t = threadIdx.x;
  int4 v = *(const int4*)(a.n + 4 * t);
  v.x += a.n[(t * 37 + k) % 2000];
  out[t] = v;
}

extern "C" __global__ void by_value(Table a, int* out, int k) {
  out[threadIdx.x] = a.n[(threadIdx.x * 37 + k) % 2000] + a.n[1999];
}

extern "C" __global__ void many(const float* x, float* out) {  // blocks that all write and read x
  out[blockIdx.x * 32 + threadIdx.x] = x[threadIdx.x];
}
extern "C" __global__ void both_write(float* out) { out[threadIdx.x] = 1; }
extern "C" __global__ void neighbour(float* out) {
  out[blockIdx.x * 32 + threadIdx.x] = 1;
  if (blockIdx.x) out[blockIdx.x * 32 + threadIdx.x] = out[(blockIdx.x - 1) * 32 + threadIdx.x];
}
extern "C" __global__ void counted(float* sum) { atomicAdd(sum, 1.f); }
extern "C" __global__ void counted_and_read(float* sum, float* out) {
  atomicAdd(sum, 1.f);
  out[blockIdx.x * 32 + threadIdx.x] = sum[0];
}
extern "C" __global__ void last_block(const float* x, float* part, float* out, unsigned* count) {
  __shared__ bool last;
  part[blockIdx.x * 32 + threadIdx.x] = x[blockIdx.x * 32 + threadIdx.x];
  FENCE
  if (last) {
    float sum = 0;
    for (int b = 0; b < gridDim.x; ++b) sum += part[b * 32 + threadIdx.x];
    out[threadIdx.x] = sum;
  }
}
"""
FENCE = """__threadfence();
  __syncthreads();
  if (threadIdx.x == 0) last = atomicAdd(count, 1) == gridDim.x - 1;
  __syncthreads();"""


def module(fence: str = FENCE):
    return compile_cuda(SOURCE.replace("FENCE", fence))


def test_async_copies_fill_with_zeros():
    device, valid = Device(memory=1 << 16), 77
    x, out = device.upload(np.arange(1, valid + 1, dtype=np.float32)), device.empty(128, np.float32)
    device.launch(module(), "zero_fill", 1, 32, [x, out, valid])
    np.testing.assert_array_equal(out.array, np.pad(x.array, (0, 128 - valid)))


def test_ignored_sources_and_groups():
    text = """.version 8.0 .target sm_80 .address_size 64
    .visible .entry k(.param .u64 x, .param .u64 out) {
      .reg .b64 %x, %o; .reg .b32 %t, %s, %v; .reg .pred %p;
      .shared .align 16 .b8 s[256];
      ld.param.u64 %x, [x]; ld.param.u64 %o, [out]; mov.u32 %t, %tid.x;
      mad.wide.u32 %x, %t, 4, %x; mad.wide.u32 %o, %t, 4, %o;
      mov.u32 %s, s; mad.lo.u32 %s, %t, 4, %s; setp.ge.u32 %p, %t, 16;
      cp.async.ca.shared.global [%s], [%x], 4;
      cp.async.commit_group;
      cp.async.ca.shared::cta.global [%s+128], [%x+128], 4, %p;
      cp.async.commit_group;
      cp.async.wait_group 1;
      ld.shared.b32 %v, [%s]; st.global.b32 [%o], %v;
      WAIT
      ld.shared.b32 %v, [%s+128]; st.global.b32 [%o+128], %v;
      ret; }"""
    device = Device(memory=1 << 16)
    x, out = device.upload(np.arange(1, 65, dtype=np.int32)), device.empty(64, np.int32)
    device.launch(parse(text.replace("WAIT", "cp.async.wait_group 0;")), "k", 1, 32, [x, out])
    np.testing.assert_array_equal(out.array, np.where(np.arange(64) < 48, x.array, 0))
    with pytest.raises(MemoryFault, match="in flight"):
        device.launch(parse(text.replace("WAIT", "")), "k", 1, 32, [x, out])


def test_cache_hints_are_accepted():
    device = Device(memory=1 << 16)
    x, out = device.upload(np.arange(160, dtype=np.float32)), device.empty(160, np.float32)
    device.launch(module(), "hints", 1, 32, [x, out])
    expected = np.arange(128, dtype=np.float32).reshape(32, 4)
    expected[:, 0] += np.arange(32)
    expected[:, 1] += np.arange(1, 33)
    written = device.memory.written(out)
    assert not written[12:16].any() and written[:12].all() and written[16:].all()
    np.testing.assert_array_equal(out.array[written], np.append(expected, np.arange(32))[written])


@pytest.mark.parametrize("kernel", ["table", "by_value"])
def test_large_parameters(kernel):
    table = np.random.default_rng(0).integers(0, 1000, 2000).astype(np.int32)
    device, picked = Device(memory=1 << 16), table[(np.arange(32) * 37 + 5) % 2000]
    out = device.empty((32, 4) if kernel == "table" else 32, np.int32)
    device.launch(module(), kernel, 1, 32, [table.tobytes(), out, 5])
    if kernel == "by_value":
        np.testing.assert_array_equal(out.array, picked + table[1999])
    else:
        expected = table[:128].reshape(32, 4).copy()
        expected[:, 0] += picked
        np.testing.assert_array_equal(out.array, expected)


def test_parameters_have_a_limit():
    text = ".version 8.0 .target sm_80 .entry k(.param .align 4 .b8 p[32768]) { ret; }"
    with pytest.raises(LaunchError, match="32764"):
        Device(memory=1 << 16).launch(parse(text), "k", 1, 32, [bytes(32768)])


def test_races_between_blocks():
    device = Device(memory=1 << 16)
    x, out = device.upload(np.ones(128, np.float32)), device.upload(np.zeros(128, np.float32))
    total = device.upload(np.zeros(1, np.float32))
    device.launch(module(), "many", 4, 32, [x, out])
    device.launch(module(), "counted", 4, 32, [total])
    for kernel, args in (
        ("both_write", [out]),
        ("neighbour", [out]),
        ("counted_and_read", [total, out]),
    ):
        with pytest.raises(RaceError, match="global byte"):
            device.launch(module(), kernel, 4, 32, args)
        off = Device(memory=1 << 16, global_racecheck=False)
        again = [off.upload(arg.array) for arg in args]
        off.launch(module(), kernel, 4, 32, again)


def test_the_last_block_may_reduce():
    x = np.random.default_rng(0).standard_normal((4, 32)).astype(np.float32)

    def launch(fence):
        device = Device(memory=1 << 16)
        part, out = device.empty((4, 32), np.float32), device.empty(32, np.float32)
        count = device.upload(np.zeros(1, np.uint32))
        device.launch(module(fence), "last_block", 4, 32, [device.upload(x), part, out, count])
        return out.array

    np.testing.assert_array_equal(launch(FENCE), ((x[0] + x[1]) + x[2]) + x[3])
    with pytest.raises(RaceError, match="block"):
        launch("if (threadIdx.x == 0) last = blockIdx.x == 3; __syncthreads();")


FILL = "for (int i = t; i < 32 * 36; i += 32) s[i] = 0; __syncwarp(); "
LDMATRIX = (
    'unsigned r[4]; asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"'
    ' : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(smem((char*)s + t * PITCH)));'
    " out[t] = r[0] + r[1] + r[2] + r[3];"
)
COPY = (
    'asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" :: "r"(smem(PLACE)), "l"(x + 4 * t));'
)
TRAFFIC = {
    "ldmatrix, rows of 144 bytes": (FILL + LDMATRIX.replace("PITCH", "144"), "load", 4, 4),
    "ldmatrix, rows of 128 bytes": (FILL + LDMATRIX.replace("PITCH", "128"), "load", 32, 4),
    "cp.async": (COPY.replace("PLACE", "s + 4 * t"), "copy", 4, 4),
    "cp.async, rows of 128 bytes": (COPY.replace("PLACE", "s + 32 * t"), "copy", 32, 4),
    "st.shared.v4": ("*(float4*)(s + 4 * t) = *(const float4*)(x + 4 * t);", "store", 4, 4),
    "st.shared.v2": ("*(float2*)(s + 2 * t) = *(const float2*)(x + 2 * t);", "store", 2, 2),
    "st.shared.v2, a gap": ("*(float2*)(s + 4 * t) = *(const float2*)(x + 2 * t);", "store", 4, 2),
    "st.shared, stride 2": ("s[2 * t] = x[t];", "store", 2, 1),
    "st.shared, one word": ("s[t / 32] = x[0];", "store", 1, 1),
}


GLOBAL = "out[t] = x[3 * t] + x[3 * t + 1]; if (t == 5) out[64] = 1;"
KERNEL = """
extern "C" __global__ void traffic%d(const float* x, float* out) {
  __shared__ __align__(128) float s[32 * 36];
  int t = threadIdx.x;
  %s
}
"""


def traffic(number: int, x: np.ndarray):
    """The counts of one kernel; all are compiled at once."""
    bodies = [*(part for part, *_ in TRAFFIC.values()), GLOBAL]
    keep = " out[t] = ((volatile float*)s)[0];"
    bodies = [body if "out[t]" in body or "asm" in body else body + keep for body in bodies]
    source = SOURCE.split("extern")[0] + "".join(KERNEL % each for each in enumerate(bodies))
    device = Device(memory=1 << 16)
    args = [device.upload(x), device.empty(128, np.float32)]
    return device.launch(compile_cuda(source), f"traffic{number}", 1, 32, args)


@pytest.mark.parametrize("number", range(len(TRAFFIC)), ids=list(TRAFFIC))
def test_shared_wavefronts(number):
    _, kind, wavefronts, ideal = list(TRAFFIC.values())[number]
    stats = traffic(number, np.ones(128, np.float32))
    found = (stats[f"shared.{kind}.wavefronts"], stats[f"shared.{kind}.ideal"])
    assert found == (wavefronts, ideal)


def test_global_traffic():
    stats = traffic(len(TRAFFIC), np.ones(128, np.float32))
    assert stats["global.load.requests"] == 2 and stats["global.load.bytes"] == 256
    assert stats["global.load.sectors"] == 24 and stats["global.load.footprint"] == 32 * 12
    assert stats["global.store.bytes"] == 132 and stats["global.store.footprint"] == 32 * 5
    assert sum(n for key, n in stats.items() if key.startswith("inst.st.global")) == 2


def test_two_warps_may_write_the_same_value_where_that_is_allowed():
    text = """.version 8.0 .target sm_80 .address_size 64
    .visible .entry k(.param .u32 divisor) {
      .reg .b32 %t, %d; .shared .align 4 .b8 s[4];
      ld.param.u32 %d, [divisor]; mov.u32 %t, %tid.x; div.u32 %t, %t, %d;
      st.shared.b32 [s], %t; st.shared.b32 [s], %t;
      ret; }"""
    allowed = Device(memory=1 << 16, same_value_writes=True)
    allowed.launch(parse(text), "k", 1, 64, [64])  # both warps write 0
    for device, divisor in ((allowed, 32), (Device(memory=1 << 16), 64)):
        with pytest.raises(RaceError, match="shared byte 0 written by warp"):
            device.launch(parse(text), "k", 1, 64, [divisor])
