// channel_gate: every channel times its gate, and the two gradients in one pass.
//
//   y  = x * g       +0.0 where g is 0: a closed plane is not read
//   dx = grad * g    the same;    parts [parts, channels]: sums of grad * x, closed channels included
//
// Units: cpu/gates.h. A part is one unit's, so that the order of threads cannot change a sum.
#include "cpu/channels.h"

namespace evoprune::EVOPRUNE_ISA {

template <typename T>
static void gate_planes(const ChannelGateArgs& a, int64_t begin, int64_t end) {
  const ChannelLayout& l = a.layout;
  Plane plane = plane_of(l, begin);
  for (int64_t unit = begin; unit < end; ++unit, plane.next(l)) {
    const auto g = static_cast<const ScalarOf<T>*>(a.gates)[plane.coefficient];
    const T* x = static_cast<const T*>(a.x) + plane.begin;
    T* y = static_cast<T*>(a.y) + plane.begin;
    if (g == 0)
      std::memset(y, 0, static_cast<size_t>(l.inner) * sizeof(T));
    else
      map_plane(
          l.inner, [&](auto place) { return place.get(x) * broadcast(g); },
          [&](auto place, VecOf<T> v) { place.put(y, v); });
  }
}

template <typename T>
static void gate_rows(const ChannelGateArgs& a, int64_t begin, int64_t end) {
  using V = VecOf<T>;
  using S = ScalarOf<T>;
  const int64_t channels = a.layout.channels;
  LongRow<S> gates;
  bool all_open = true;
  for (int64_t unit = begin; unit < end; ++unit) {
    const Block block = block_of(a.layout, unit);
    const S* row = static_cast<const S*>(a.gates) + block.group;
    if (gates.set(row, channels)) {
      all_open = true;
      for (int64_t c = 0; c < channels; ++c) all_open &= row[c] != 0;
    }
    const S* g = gates.at();
    const T* x = static_cast<const T*>(a.x) + block.begin;
    T* y = static_cast<T*>(a.y) + block.begin;
    const auto product = [&](auto place) { return place.get(x) * place.get(g); };
    const auto closed = [&](auto place) { return keep<V>(place.get(g) != 0, product(place)); };
    const auto put = [&](auto place, V v) { place.put(y, v); };
    int64_t n = 0;
    for (int64_t left = block.count * channels; left > 0; left -= n, x += n, y += n) {
      n = gates.rows() * channels < left ? gates.rows() * channels : left;
      all_open ? map_plane(n, product, put) : map_plane(n, closed, put);
    }
  }
}

template <typename T>
static void backward_planes(const ChannelGateBackwardArgs& a, int64_t begin, int64_t end) {
  using V = VecOf<T>;
  const ChannelLayout& l = a.layout;
  Plane plane = plane_of(l, begin);
  for (int64_t unit = begin; unit < end; ++unit, plane.next(l)) {
    const auto g = static_cast<const ScalarOf<T>*>(a.gates)[plane.coefficient];
    const T* x = static_cast<const T*>(a.x) + plane.begin;
    const T* grad = static_cast<const T*>(a.grad) + plane.begin;
    T* dx = static_cast<T*>(a.dx) + plane.begin;
    sum_plane<T, 1, 4>(
        l.inner, static_cast<ScalarOf<T>*>(a.parts) + unit,
        [&](V* sums, auto place) { sums[0] = fma(place.get(grad), place.get(x), sums[0]); });
    if (g == 0)  // grad is in the cache now
      std::memset(dx, 0, static_cast<size_t>(l.inner) * sizeof(T));
    else
      map_plane(
          l.inner, [&](auto place) { return place.get(grad) * broadcast(g); },
          [&](auto place, VecOf<T> v) { place.put(dx, v); });
  }
}

template <typename T>
static void backward_rows(const ChannelGateBackwardArgs& a, int64_t begin, int64_t end) {
  using V = VecOf<T>;
  const int64_t channels = a.layout.channels;
  for (int64_t unit = begin; unit < end; ++unit) {
    const Block block = block_of(a.layout, unit);
    const auto* gates = static_cast<const ScalarOf<T>*>(a.gates) + block.group;
    const T *x = static_cast<const T*>(a.x), *grads = static_cast<const T*>(a.grad);
    T* dx = static_cast<T*>(a.dx);
    auto* parts = static_cast<ScalarOf<T>*>(a.parts) + block.part * channels;
    std::memset(parts, 0, static_cast<size_t>(channels) * sizeof(*parts));
    walk_rows(channels, block, [&]<int R>(int64_t at, auto place) {
      const V g = place.get(gates);
      V sums = place.get(parts);
      for (int r = 0; r < R; ++r, at += channels) {
        const V grad = place.get(grads + at);
        sums = fma(grad, place.get(x + at), sums);
        place.put(dx + at, keep<V>(g != 0, grad * g));
      }
      place.put(parts, sums);
    });
  }
}

void channel_gate(const ChannelGateArgs& a, int64_t begin, int64_t end) {
  with_type(a.layout.dtype, [&]<typename T>() {
    a.layout.rows ? gate_rows<T>(a, begin, end) : gate_planes<T>(a, begin, end);
  });
}

void channel_gate_backward(const ChannelGateBackwardArgs& a, int64_t begin, int64_t end) {
  with_type(a.layout.dtype, [&]<typename T>() {
    a.layout.rows ? backward_rows<T>(a, begin, end) : backward_planes<T>(a, begin, end);
  });
}

}  // namespace evoprune::EVOPRUNE_ISA
