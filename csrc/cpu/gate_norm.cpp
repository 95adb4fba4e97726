// gate_norm: u = gate * x, batch norm, ReLU, in two passes over memory each way.
//
//   forward    gate_statistics   parts of mean and squares of x          csrc/ops combines them: those of
//              gate_norm         y = relu(x * scale + shift)             u follow from those of x
//
//   backward   gate_norm_sums    with dz = dy where y > 0 and xhat = x * spread + centre:
//                                parts of dz, dz xhat | dz x, x, xhat x  (the last three for dgates)
//              gate_norm_grad    dx = dz * of_grad + xhat * of_xhat + constant
//
// Where a gate is 0, x counts as 0 whatever it holds, but for dz x, x and xhat x: the gradient of the
// closed gate. dx is +0.0 there. Closed planes are not read where nothing needs them. y is computed
// again in the backward, by the same multiply-add, so that its sign is the same.
#include "cpu/channels.h"

namespace evoprune::EVOPRUNE_ISA {

// ---- statistics ----
template <typename T>
static void statistics_of_planes(const GateStatisticsArgs& a, int64_t begin, int64_t end) {
  using V = VecOf<T>;
  using S = ScalarOf<T>;
  const int64_t n = a.layout.inner;
  Plane plane = plane_of(a.layout, begin);
  for (int64_t unit = begin; unit < end; ++unit, plane.next(a.layout)) {
    const T* x = static_cast<const T*>(a.x) + plane.begin;
    S mean = 0, squares = 0;
    if (static_cast<const S*>(a.gates)[plane.coefficient] != 0) {
      sum_plane<T, 1, 4>(n, &mean, [&](V* sums, auto place) { sums[0] += place.get(x); });
      mean /= static_cast<S>(n);
      sum_plane<T, 1, 4>(n, &squares, [&](V* sums, auto place) {
        const V d = place.counted(place.get(x) - broadcast(mean));
        sums[0] = fma(d, d, sums[0]);
      });
    }
    static_cast<S*>(a.means)[unit] = mean;
    static_cast<S*>(a.squares)[unit] = squares;
  }
}

template <typename T>
static void statistics_of_rows(const GateStatisticsArgs& a, int64_t begin, int64_t end) {
  using V = VecOf<T>;
  using S = ScalarOf<T>;
  const int64_t channels = a.layout.channels;
  const T* x = static_cast<const T*>(a.x);
  for (int64_t unit = begin; unit < end; ++unit) {
    const Block block = block_of(a.layout, unit);
    S* means = static_cast<S*>(a.means) + block.part * channels;
    S* squares = static_cast<S*>(a.squares) + block.part * channels;
    std::memset(means, 0, static_cast<size_t>(channels) * sizeof(S));
    std::memset(squares, 0, static_cast<size_t>(channels) * sizeof(S));
    walk_rows(channels, block, [&]<int R>(int64_t at, auto place) {
      V sums = place.get(means);
      for (int r = 0; r < R; ++r, at += channels) sums += place.get(x + at);
      place.put(means, sums);
    });
    for (int64_t c = 0; c < channels; ++c) means[c] /= static_cast<S>(block.count);
    walk_rows(channels, block, [&]<int R>(int64_t at, auto place) {
      const V mean = place.get(means);
      V sums = place.get(squares);
      for (int r = 0; r < R; ++r, at += channels) {
        const V d = place.get(x + at) - mean;
        sums = fma(d, d, sums);
      }
      place.put(squares, sums);
    });
  }
}

// ---- forward ----
template <typename T>
static void norm_planes(const GateNormArgs& a, int64_t begin, int64_t end) {
  using V = VecOf<T>;
  using S = ScalarOf<T>;
  const GateNormTerms& t = a.terms;
  Plane plane = plane_of(a.layout, begin);
  for (int64_t unit = begin; unit < end; ++unit, plane.next(a.layout)) {
    const T* x = static_cast<const T*>(a.x) + plane.begin;
    T* y = static_cast<T*>(a.y) + plane.begin;
    const V scale = broadcast(static_cast<const S*>(t.scale)[plane.coefficient]);
    const V shift = broadcast(static_cast<const S*>(t.shift)[plane.channel]);
    const auto put = [&](auto place, V v) { place.put(y, v); };
    const int64_t n = a.layout.inner;
    if (static_cast<const S*>(t.gates)[plane.coefficient] == 0) {
      const V constant = t.relu ? relu_of(shift) : shift;
      map_plane(n, [&](auto) { return constant; }, put);
    } else if (t.relu) {
      map_plane(n, [&](auto place) { return relu_of(fma(place.get(x), scale, shift)); }, put);
    } else {
      map_plane(n, [&](auto place) { return fma(place.get(x), scale, shift); }, put);
    }
  }
}

template <typename T, bool Relu>
static void norm_rows(const GateNormArgs& a, int64_t begin, int64_t end) {
  using V = VecOf<T>;
  using S = ScalarOf<T>;
  const int64_t channels = a.layout.channels;
  for (int64_t unit = begin; unit < end; ++unit) {
    const Block block = block_of(a.layout, unit);
    const S* gates = static_cast<const S*>(a.terms.gates) + block.group;
    const S* scales = static_cast<const S*>(a.terms.scale) + block.group;
    const S* shifts = static_cast<const S*>(a.terms.shift);
    const T* x = static_cast<const T*>(a.x) + block.begin;
    T* y = static_cast<T*>(a.y) + block.begin;
    for (int64_t row = 0; row < block.count; ++row, x += channels, y += channels)
      map_plane(
          channels,
          [&](auto place) {
            const V seen = keep<V>(place.get(gates) != 0, place.get(x));
            const V v = fma(seen, place.get(scales), place.get(shifts));
            return Relu ? relu_of(v) : v;
          },
          [&](auto place, V v) { place.put(y, v); });
  }
}

// ---- backward: sums ----
// Adds one vector to the sums; the last three of x as it is, the others of `seen`, 0 where closed.
template <int K, typename V>
EVOPRUNE_INLINE void add_sums(V* sums, V dz, V xhat, V x) {
  sums[0] += dz;
  sums[1] = fma(dz, xhat, sums[1]);
  if constexpr (K == kGateNormSums) {
    sums[2] = fma(dz, x, sums[2]);
    sums[3] += x;
    sums[4] = fma(xhat, x, sums[4]);
  }
}
template <typename V>
EVOPRUNE_INLINE V through_relu(bool relu, V y, V grad) {
  return relu ? (V)(y <= 0 ? V{} : grad) : grad;
}

template <typename T, int K>
static void sums_of_planes(const GateNormSumsArgs& a, int64_t begin, int64_t end) {
  using V = VecOf<T>;
  using S = ScalarOf<T>;
  const int64_t n = a.layout.inner, channels = a.layout.channels;
  const GateNormTerms& t = a.terms;
  Plane plane = plane_of(a.layout, begin);
  for (int64_t unit = begin; unit < end; ++unit, plane.next(a.layout)) {
    const T* x = static_cast<const T*>(a.x) + plane.begin;
    const T* grad = static_cast<const T*>(a.grad) + plane.begin;
    const V scale = broadcast(static_cast<const S*>(t.scale)[plane.coefficient]);
    const V shift = broadcast(static_cast<const S*>(t.shift)[plane.channel]);
    const V spread = broadcast(static_cast<const S*>(t.spread)[plane.coefficient]);
    const V centre = broadcast(static_cast<const S*>(t.centre)[plane.channel]);
    S out[K];
    if (static_cast<const S*>(t.gates)[plane.coefficient] == 0) {
      sum_plane<T, K, K == 2 ? 2 : 1>(n, out, [&](V* sums, auto place) {
        const V dz = through_relu(t.relu, shift, place.get(grad));
        add_sums<K, V>(sums, dz, centre, K == kGateNormSums ? place.get(x) : V{});
      });
    } else {
      sum_plane<T, K, K == 2 ? 2 : 1>(n, out, [&](V* sums, auto place) {
        const V value = place.get(x);
        const V dz = through_relu(t.relu, fma(value, scale, shift), place.get(grad));
        add_sums<K, V>(sums, dz, fma(value, spread, centre), value);
      });
    }
    S* parts = static_cast<S*>(a.parts) + plane.part * kGateNormSums * channels + plane.channel;
    for (int k = 0; k < K; ++k) parts[k * channels] = out[k];
  }
}

template <typename T, int K>
static void sums_of_rows(const GateNormSumsArgs& a, int64_t begin, int64_t end) {
  using V = VecOf<T>;
  using S = ScalarOf<T>;
  const int64_t channels = a.layout.channels;
  const GateNormTerms& t = a.terms;
  for (int64_t unit = begin; unit < end; ++unit) {
    const Block block = block_of(a.layout, unit);
    S* parts = static_cast<S*>(a.parts) + block.part * kGateNormSums * channels;
    std::memset(parts, 0, static_cast<size_t>(K * channels) * sizeof(S));
    walk_rows(channels, block, [&]<int R>(int64_t at, auto place) {
      const auto open = place.get(static_cast<const S*>(t.gates) + block.group) != 0;
      const V scale = place.get(static_cast<const S*>(t.scale) + block.group);
      const V shift = place.get(static_cast<const S*>(t.shift));
      const V spread = place.get(static_cast<const S*>(t.spread) + block.group);
      const V centre = place.get(static_cast<const S*>(t.centre));
      V sums[K];
      for (int k = 0; k < K; ++k) sums[k] = place.get(parts + k * channels);
      for (int r = 0; r < R; ++r, at += channels) {
        const V x = place.get(static_cast<const T*>(a.x) + at), seen = keep<V>(open, x);
        const V grad = place.get(static_cast<const T*>(a.grad) + at);
        const V dz = through_relu(t.relu, fma(seen, scale, shift), grad);
        add_sums<K, V>(sums, dz, fma(seen, spread, centre), x);
      }
      for (int k = 0; k < K; ++k) place.put(parts + k * channels, sums[k]);
    });
  }
}

// ---- backward: dx ----
template <typename T>
static void grad_of_planes(const GateNormGradArgs& a, int64_t begin, int64_t end) {
  using V = VecOf<T>;
  using S = ScalarOf<T>;
  const GateNormTerms& t = a.terms;
  Plane plane = plane_of(a.layout, begin);
  for (int64_t unit = begin; unit < end; ++unit, plane.next(a.layout)) {
    const T* x = static_cast<const T*>(a.x) + plane.begin;
    const T* grad = static_cast<const T*>(a.grad) + plane.begin;
    T* dx = static_cast<T*>(a.dx) + plane.begin;
    if (static_cast<const S*>(t.gates)[plane.coefficient] == 0) {
      std::memset(dx, 0, static_cast<size_t>(a.layout.inner) * sizeof(T));
      continue;
    }
    const auto of = [&](const void* p) {
      return broadcast(static_cast<const S*>(p)[plane.coefficient]);
    };
    const V scale = of(t.scale), spread = of(t.spread);
    const V shift = broadcast(static_cast<const S*>(t.shift)[plane.channel]);
    const V centre = broadcast(static_cast<const S*>(t.centre)[plane.channel]);
    const V of_grad = of(a.of_grad), of_xhat = of(a.of_xhat), constant = of(a.constant);
    const bool relu = t.relu, training = a.training;
    map_plane(
        a.layout.inner,
        [&](auto place) {
          const V value = place.get(x);
          const V dz = through_relu(relu, fma(value, scale, shift), place.get(grad));
          const V rest = fma(fma(value, spread, centre), of_xhat, constant);
          return training ? fma(dz, of_grad, rest) : dz * of_grad;
        },
        [&](auto place, V v) { place.put(dx, v); });
  }
}

template <typename T>
static void grad_of_rows(const GateNormGradArgs& a, int64_t begin, int64_t end) {
  using V = VecOf<T>;
  using S = ScalarOf<T>;
  const int64_t channels = a.layout.channels;
  const GateNormTerms& t = a.terms;
  for (int64_t unit = begin; unit < end; ++unit) {
    const Block block = block_of(a.layout, unit);
    const T *xs = static_cast<const T*>(a.x), *grads = static_cast<const T*>(a.grad);
    T* dxs = static_cast<T*>(a.dx);
    const bool relu = t.relu, training = a.training;
    walk_rows(channels, block, [&]<int R>(int64_t at, auto place) {
      const auto of = [&](const void* p) {
        return place.get(static_cast<const S*>(p) + block.group);
      };
      const auto open = of(t.gates) != 0;
      const V scale = of(t.scale), shift = place.get(static_cast<const S*>(t.shift));
      const V spread = of(t.spread), centre = place.get(static_cast<const S*>(t.centre));
      const V of_grad = of(a.of_grad), of_xhat = of(a.of_xhat), constant = of(a.constant);
      for (int r = 0; r < R; ++r, at += channels) {
        const V x = keep<V>(open, place.get(xs + at));
        const V dz = through_relu(relu, fma(x, scale, shift), place.get(grads + at));
        const V rest = fma(fma(x, spread, centre), of_xhat, constant);
        place.put(dxs + at, keep<V>(open, training ? fma(dz, of_grad, rest) : dz * of_grad));
      }
    });
  }
}

// ---- entries of the table ----
void gate_statistics(const GateStatisticsArgs& a, int64_t begin, int64_t end) {
  with_type(a.layout.dtype, [&]<typename T>() {
    a.layout.rows ? statistics_of_rows<T>(a, begin, end) : statistics_of_planes<T>(a, begin, end);
  });
}

void gate_norm(const GateNormArgs& a, int64_t begin, int64_t end) {
  with_type(a.layout.dtype, [&]<typename T>() {
    if (!a.layout.rows) return norm_planes<T>(a, begin, end);
    a.terms.relu ? norm_rows<T, true>(a, begin, end) : norm_rows<T, false>(a, begin, end);
  });
}

void gate_norm_sums(const GateNormSumsArgs& a, int64_t begin, int64_t end) {
  with_type(a.layout.dtype, [&]<typename T>() {
    if (a.layout.rows)
      a.gates_too ? sums_of_rows<T, kGateNormSums>(a, begin, end)
                  : sums_of_rows<T, 2>(a, begin, end);
    else
      a.gates_too ? sums_of_planes<T, kGateNormSums>(a, begin, end)
                  : sums_of_planes<T, 2>(a, begin, end);
  });
}

void gate_norm_grad(const GateNormGradArgs& a, int64_t begin, int64_t end) {
  with_type(a.layout.dtype, [&]<typename T>() {
    a.layout.rows ? grad_of_rows<T>(a, begin, end) : grad_of_planes<T>(a, begin, end);
  });
}

}  // namespace evoprune::EVOPRUNE_ISA
