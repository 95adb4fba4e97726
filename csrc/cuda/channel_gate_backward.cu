// channel_gate_backward: dx = dy * gate, and dgate = the sum of dy * x over what shares the gate.
//
//   dx[b, c, i] = dy[b, c, i] * gate[b, c], +0 where the gate is 0      i < inner = H * W
//   dgate[b, c] = sum over i of dy * x     gates [channels]: and over b
//
//   groups   planes in memory, up to 256 elements   block = several planes that start and end at
//            | 0 | 1 | 2 | .. | n - 1 |             16 bytes, a thread = a vector; a plane is what
//            |  aligned 16-byte vectors |           its vectors leave in `open` and one in `last`
//   planes   planes in memory, larger               warp or block = a plane or a part of one
//            | head | 16-byte vectors | tail |      head and tail: an element a lane
//   rows     channels-last memory                   block = up to 32 vectors of channels x a part
//            | channels of row 0 | of row 1 | ..    of the rows; lanes keep their channels
//   sums     parts [groups, count, channels]        block = 32 gates, 32 warps over the parts
//
// Bound by memory: one pass reads dy and x once and writes dx once; what sums reads is less than a
// hundredth of that. Sums in float, in an order that depends on the shape, the alignment and the
// number of processors alone: two runs give the same bits. dgate of a closed gate is summed like
// any other. Source: as channel_gate.cu.
#include "cuda/channel_gate.cuh"
#include "cuda/launch.cuh"

namespace evoprune::cuda {

// parts[group][part][channel], added up by channel_gate_sums_kernel; with one part a gate the gates'
// gradients themselves.
struct ChannelGateParts {
  float* parts;
  int per_sample;  // parts of a sample
  bool direct;
};

namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / 32;
constexpr int kGroupElements = 4096;  // of a block of the groups kernel
constexpr int kGroupInner = 256;      // largest plane of the groups kernel
constexpr int kSumWarps = 32;

__device__ __forceinline__ void store_gate(const ChannelGateBackwardArgs& a, int64_t index,
                                           float sum) {
  switch (a.forward.gate_dtype) {
    case DType::f16:
      static_cast<__half*>(a.dgates)[index] = from_float<__half>(sum);
      break;
    case DType::bf16:
      static_cast<__nv_bfloat16*>(a.dgates)[index] = from_float<__nv_bfloat16>(sum);
      break;
    default:
      static_cast<float*>(a.dgates)[index] = sum;
  }
}

// `count` elements of a vector; what is not there is 0, and left as it is.
template <typename T>
__device__ __forceinline__ Vector<T, kPer16Bytes<T>> load_some(const T* from, bool aligned,
                                                               int count) {
  if (aligned && count == kPer16Bytes<T>) return load_vector(from);
  Vector<T, kPer16Bytes<T>> v;
#pragma unroll
  for (int i = 0; i < kPer16Bytes<T>; ++i) v.at[i] = i < count ? from[i] : from_float<T>(0.0f);
  return v;
}
template <typename T>
__device__ __forceinline__ void store_some(T* to, const Vector<T, kPer16Bytes<T>>& v, int count) {
  if (count == kPer16Bytes<T>) {
    *reinterpret_cast<Vector<T, kPer16Bytes<T>>*>(to) = v;
    return;
  }
#pragma unroll
  for (int i = 0; i < kPer16Bytes<T>; ++i)
    if (i < count) to[i] = v.at[i];
}

// The sum of one part of a channel of a sample.
__device__ __forceinline__ void store_part(const ChannelGateBackwardArgs& a,
                                           const ChannelGateParts& p, int64_t sample, int part,
                                           int64_t channel, float sum) {
  const int64_t index = (sample * p.per_sample + part) * a.forward.channels + channel;
  if (p.direct)
    store_gate(a, index, sum);  // then part is 0, and sample too without gates of each
  else
    p.parts[index] = sum;
}

template <typename T>
struct Pointers {
  const T* grad;
  const T* x;
  T* dx;
  __device__ explicit Pointers(const ChannelGateBackwardArgs& a)
      : grad(static_cast<const T*>(a.grad)),
        x(static_cast<const T*>(a.forward.x)),
        dx(static_cast<T*>(a.dx)) {}

  // One element; returns dy * x.
  __device__ __forceinline__ float one(int64_t at, float gate) const {
    const T g = grad[at];
    const float product = to_float(g) * to_float(x[at]);
    dx[at] = gated(g, gate);
    return product;
  }
};

}  // namespace

// Blocks of `planes` planes; planes * inner is a multiple of a vector and at most kGroupElements.
//
//   vectors   |   v = 0   |     1     |     2     |     3     |        sum of a plane =
//   planes    |  p = 0         |        1         | 2 | 3 |  4 ..        last[p] + open[v] of the
//   open[v]         x              x                        x            vectors from its start on
//   last[p]                   x                  x   x   x               but the one it ends in
template <typename T>
__global__ void __launch_bounds__(kThreads)
    channel_gate_groups_kernel(ChannelGateBackwardArgs a, ChannelGateParts p, int planes,
                               bool aligned) {
  constexpr int kPer = kPer16Bytes<T>;
  __shared__ float open[kGroupElements / kPer], last[kGroupElements / 2];
  const uint32_t inner = static_cast<uint32_t>(a.forward.inner);
  const uint32_t channels = static_cast<uint32_t>(a.forward.channels);
  const uint32_t first = blockIdx.x * planes;
  const uint32_t all = static_cast<uint32_t>(a.forward.batch) * channels;
  const uint32_t here = min(all - first, static_cast<uint32_t>(planes));
  const int size = static_cast<int>(here * inner);
  const int64_t start = int64_t{first} * inner;
  const Pointers<T> at(a);
#pragma unroll 1
  for (int v = threadIdx.x; v * kPer < size; v += kThreads) {
    const int64_t from = start + v * kPer;
    const int count = min(size - v * kPer, kPer);
    const auto grad = load_some(at.grad + from, aligned, count);
    const auto x = load_some(at.x + from, aligned, count);
    uint32_t plane = v * kPer / inner;
    int end = static_cast<int>((plane + 1) * inner) - v * kPer;  // of the plane, from `from`
    float gate = gate_of_plane(a.forward, first + plane), sum = 0.0f;
    float next = end < count ? gate_of_plane(a.forward, first + plane + 1) : 0.0f;
    Vector<T, kPer> dx;
#pragma unroll
    for (int i = 0; i < kPer; ++i) {
      if (i == end && i < count) {
        last[plane] = sum;
        sum = 0.0f;
        gate = next;
        ++plane;
        end += static_cast<int>(inner);
        if (inner < kPer && end < count) next = gate_of_plane(a.forward, first + plane + 1);
      }
      dx.at[i] = gated(grad.at[i], gate);
      sum = fmaf(to_float(grad.at[i]), to_float(x.at[i]), sum);
    }
    if (end == count)
      last[plane] = sum;
    else
      open[v] = sum;
    store_some(at.dx + from, dx, count);
  }
  __syncthreads();
  for (uint32_t plane = threadIdx.x; plane < here; plane += kThreads) {
    float sum = 0.0f;
    const uint32_t ends_in = ((plane + 1) * inner - 1) / kPer;
    for (uint32_t v = plane * inner / kPer; v < ends_in; ++v) sum += open[v];
    const uint32_t q = first + plane;
    store_part(a, p, q / channels, 0, q % channels, sum + last[plane]);
  }
}

// kLanes threads a part of a plane: a warp, or a block.
template <typename T>
__global__ void __launch_bounds__(kThreads)
    channel_gate_planes_kernel(ChannelGateBackwardArgs a, ChannelGateParts p, int lanes,
                               int64_t part_size, bool aligned) {
  constexpr int kPer = kPer16Bytes<T>;
  __shared__ float warp_sums[kWarps];
  const int lane = threadIdx.x % lanes, team = threadIdx.x / lanes, teams = kThreads / lanes;
  const int64_t inner = a.forward.inner, all = a.forward.batch * a.forward.channels;
  const int64_t item = static_cast<int64_t>(blockIdx.x) * teams + team;
  const int64_t plane = item / p.per_sample;
  const int part = static_cast<int>(item % p.per_sample);
  const Pointers<T> at(a);
  float sum = 0.0f;
  if (plane < all) {
    const float gate = gate_of_plane(a.forward, static_cast<uint32_t>(plane));
    const int64_t from = plane * inner + part * part_size;
    const int64_t to = min(from + part_size, (plane + 1) * inner);
    const int64_t body = aligned ? min((from + kPer - 1) / kPer * kPer, to) : to;
    const int64_t tail = body + (to - body) / kPer * kPer;
    for (int64_t i = from + lane; i < body; i += lanes) sum += at.one(i, gate);
    for (int64_t i = body + int64_t{lane} * kPer; i < tail; i += int64_t{lanes} * kPer) {
      const auto grad = load_vector(at.grad + i), x = load_vector(at.x + i);
      Vector<T, kPer> dx;
#pragma unroll
      for (int j = 0; j < kPer; ++j) {
        dx.at[j] = gated(grad.at[j], gate);
        sum = fmaf(to_float(grad.at[j]), to_float(x.at[j]), sum);
      }
      *reinterpret_cast<Vector<T, kPer>*>(at.dx + i) = dx;
    }
    for (int64_t i = tail + lane; i < to; i += lanes) sum += at.one(i, gate);
  }
#pragma unroll
  for (int other = 16; other > 0; other /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, other);
  if (lanes > 32) {
    if (threadIdx.x % 32 == 0) warp_sums[threadIdx.x / 32] = sum;
    __syncthreads();
    sum = 0.0f;
    for (int warp = 0; warp < kWarps; ++warp) sum += warp_sums[warp];
  }
  if (lane == 0 && plane < all)
    store_part(a, p, plane / a.forward.channels, part, plane % a.forward.channels, sum);
}

// kCount channels a thread; `wide` threads (a power of two up to 32) side by side, the others take
// the next rows.
template <typename T, int kCount>
__global__ void __launch_bounds__(kThreads)
    channel_gate_rows_kernel(ChannelGateBackwardArgs a, ChannelGateParts p, int wide,
                             int64_t part_rows) {
  __shared__ float sums[kWarps][32 * kCount];
  const int64_t channels = a.forward.channels, rows = a.forward.inner;
  const int64_t chunks = (channels + wide * kCount - 1) / (wide * kCount);
  const int64_t chunk = blockIdx.x % chunks, item = blockIdx.x / chunks;
  const int64_t sample = item / p.per_sample;
  const int part = static_cast<int>(item % p.per_sample);
  const int column = threadIdx.x % wide, lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int64_t c = (chunk * wide + column) * kCount;
  const bool inside = c < channels;
  const Pointers<T> at(a);
  float gate[kCount], sum[kCount];
#pragma unroll
  for (int i = 0; i < kCount; ++i) {
    sum[i] = 0.0f;
    const int64_t index = (a.forward.per_sample ? sample * channels : 0) + c + i;
    gate[i] = inside ? gate_at(a.forward, index) : 0.0f;
  }
  const int64_t last = inside ? min((part + 1) * part_rows, rows) : 0;
  const int64_t begin = part * part_rows + threadIdx.x / wide, step = kThreads / wide;
  int64_t i = (sample * rows + begin) * channels + c;
  for (int64_t r = begin; r < last; r += step, i += step * channels) {
    if constexpr (kCount == 1) {
      sum[0] += at.one(i, gate[0]);
    } else {
      const auto grad = load_vector(at.grad + i), x = load_vector(at.x + i);
      Vector<T, kCount> dx;
#pragma unroll
      for (int j = 0; j < kCount; ++j) {
        dx.at[j] = gated(grad.at[j], gate[j]);
        sum[j] = fmaf(to_float(grad.at[j]), to_float(x.at[j]), sum[j]);
      }
      *reinterpret_cast<Vector<T, kCount>*>(at.dx + i) = dx;
    }
  }
#pragma unroll
  for (int j = 0; j < kCount; ++j) {
    for (int other = wide; other < 32; other *= 2)
      sum[j] += __shfl_xor_sync(0xffffffffu, sum[j], other);
    if (lane < wide) sums[warp][j * 32 + lane] = sum[j];
  }
  __syncthreads();
  for (int i = threadIdx.x; i < 32 * kCount; i += kThreads) {
    const int64_t to = (chunk * wide + i % 32) * kCount + i / 32;
    if (i % 32 >= wide || to >= channels) continue;
    float total = 0.0f;
    for (int w = 0; w < kWarps; ++w) total += sums[w][i];
    store_part(a, p, sample, part, to, total);
  }
}

// dgates[group, channel] = the sum over `count` parts of parts[group, part, channel].
__global__ void __launch_bounds__(32 * kSumWarps)
    channel_gate_sums_kernel(ChannelGateBackwardArgs a, const float* parts, int64_t gates,
                             int64_t count) {
  __shared__ float sums[kSumWarps][32];
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int64_t index = static_cast<int64_t>(blockIdx.x) * 32 + lane;
  const int64_t channels = a.forward.channels;
  const float* from = parts + index / channels * count * channels + index % channels;
  float sum = 0.0f;
  if (index < gates)
    for (int64_t part = warp; part < count; part += kSumWarps) sum += from[part * channels];
  sums[warp][lane] = sum;
  __syncthreads();
  if (warp != 0 || index >= gates) return;
  sum = 0.0f;
  for (int w = 0; w < kSumWarps; ++w) sum += sums[w][lane];
  store_gate(a, index, sum);
}

namespace {

// Which kernel runs, and in how many parts.
struct Plan {
  bool rows, groups;
  int planes;         // groups: planes of a block
  int lanes;          // planes: threads of a part; rows: threads side by side
  int count;          // rows: channels of a thread
  int parts;          // of a sample
  int64_t part_size;  // planes: elements of a part; rows: rows of a part
  int64_t blocks;
  bool direct;
};

int powers_up_to(int64_t limit, int most) {
  int power = 1;
  while (power * 2 <= most && power * 2 <= limit) power *= 2;
  return power;
}

// Parts of `size` so that `blocks` blocks become enough for the device, each of `least` or more.
void split(Plan& plan, int64_t size, int64_t least, int64_t blocks, int64_t unit, int processors) {
  const int64_t wanted = ceil_div(8 * int64_t{processors}, blocks);
  const int64_t parts = wanted < size / least ? wanted : size / least;
  plan.part_size = ceil_div(ceil_div(size, parts < 1 ? 1 : parts), unit) * unit;
  plan.parts = static_cast<int>(ceil_div(size, plan.part_size));
  plan.blocks = blocks * plan.parts;
}

bool is_aligned(const ChannelGateBackwardArgs& args) {
  const auto address = [](const void* p) { return reinterpret_cast<uintptr_t>(p); };
  return (address(args.grad) | address(args.forward.x)) % 16 == 0;
}

Plan make_plan(const ChannelGateBackwardArgs& args, const DeviceLimits& limits) {
  const ChannelGateArgs& a = args.forward;
  const int per = a.dtype == DType::f32 ? 4 : 8;
  const int64_t all = a.batch * a.channels;
  Plan plan{};
  plan.rows = a.channels_last;
  plan.groups = !plan.rows && a.inner <= kGroupInner;
  plan.parts = 1;
  if (plan.rows) {
    plan.count = a.channels % per == 0 && is_aligned(args) ? per : 1;
    const int64_t threads = ceil_div(a.channels, plan.count);
    plan.lanes = powers_up_to(2 * threads - 1, 32);
    if (ceil_div(threads, 16) % 2 == 1 && plan.lanes == 32) plan.lanes = 16;  // fewer idle
    split(plan, a.inner, 4 * kThreads / plan.lanes, ceil_div(threads, plan.lanes) * a.batch, 1,
          limits.processors);
  } else if (plan.groups) {
    int unit = 1;  // planes that fill whole vectors
    while (unit * a.inner % per != 0) unit *= 2;
    const int64_t most = kGroupElements / a.inner / unit * unit;
    const int64_t few = ceil_div(ceil_div(all, 4 * int64_t{limits.processors}), unit) * unit;
    plan.planes = static_cast<int>(few < most ? few : most);
    plan.blocks = ceil_div(all, plan.planes);
  } else {
    plan.lanes = a.inner <= kThreads * per ? 32 : kThreads;
    const int64_t teams = kThreads / plan.lanes;
    plan.part_size = a.inner;
    plan.blocks = ceil_div(all, teams);
    if (teams == 1) split(plan, a.inner, 4 * kThreads * per, all, per, limits.processors);
  }
  plan.direct = plan.parts == 1 && (a.per_sample || a.batch == 1);
  return plan;
}

template <typename T>
void run(const ChannelGateBackwardArgs& args, const Plan& plan, float* parts, cudaStream_t stream) {
  const ChannelGateParts to{parts, plan.parts, plan.direct};
  const bool aligned = is_aligned(args);
  const dim3 grid(static_cast<unsigned>(plan.blocks));
  if (plan.groups)
    launch(channel_gate_groups_kernel<T>, grid, kThreads, 0, stream, args, to, plan.planes,
           aligned);
  else if (!plan.rows)
    launch(channel_gate_planes_kernel<T>, grid, kThreads, 0, stream, args, to, plan.lanes,
           plan.part_size, aligned);
  else if (plan.count > 1)
    launch(channel_gate_rows_kernel<T, kPer16Bytes<T>>, grid, kThreads, 0, stream, args, to,
           plan.lanes, plan.part_size);
  else
    launch(channel_gate_rows_kernel<T, 1>, grid, kThreads, 0, stream, args, to, plan.lanes,
           plan.part_size);
}

}  // namespace

int64_t channel_gate_workspace(const ChannelGateBackwardArgs& args, const DeviceLimits& limits) {
  const Plan plan = make_plan(args, limits);
  return plan.direct ? 0 : args.forward.batch * plan.parts * args.forward.channels;
}

void channel_gate_backward(const ChannelGateBackwardArgs& args, const DeviceLimits& limits,
                           float* workspace, cudaStream_t stream) {
  const ChannelGateArgs& a = args.forward;
  const Plan plan = make_plan(args, limits);
  switch (a.dtype) {
    case DType::f16:
      run<__half>(args, plan, workspace, stream);
      break;
    case DType::bf16:
      run<__nv_bfloat16>(args, plan, workspace, stream);
      break;
    default:
      run<float>(args, plan, workspace, stream);
  }
  if (plan.direct) return;
  const int64_t gates = a.channels * (a.per_sample ? a.batch : 1);
  const int64_t count = plan.parts * (a.per_sample ? 1 : a.batch);
  const dim3 grid(static_cast<unsigned>(ceil_div(gates, 32)));
  launch(channel_gate_sums_kernel, grid, 32 * kSumWarps, 0, stream, args, workspace, gates, count);
}

}  // namespace evoprune::cuda
