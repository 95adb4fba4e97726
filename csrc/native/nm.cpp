// n:m: the n kept values of every m consecutive weights of a row, and their places.
//
//   dense   .  a  .  b  |  c  d  .  .      2:4, one row, K = 8
//   index      1     3  |  0  1            increasing within a group
//   values  a  b        |  c  d            [rows, groups * n], groups = ceil(K / m)
//   meta    1 + 3*4 + 0*16 + 1*64 = 0x4D   bits = max(1, ceil(log2 m)) an index, low bits first
//
// A group that keeps fewer than n takes its lowest free indices as well, with value 0.
#include <algorithm>
#include <cmath>
#include <numeric>

#include "native/formats.h"

namespace evoprune::native {

namespace {

void set_index(uint8_t* meta, int64_t slot, int64_t bits, int64_t index) {
  for (int64_t b = 0; b < bits; ++b) {
    const int64_t at = slot * bits + b;
    if ((index >> b) & 1) meta[at / 8] |= static_cast<uint8_t>(1u << (at % 8));
  }
}

int64_t get_index(const uint8_t* meta, int64_t slot, int64_t bits) {
  int64_t index = 0;
  for (int64_t b = 0; b < bits; ++b) {
    const int64_t at = slot * bits + b;
    index |= static_cast<int64_t>((meta[at / 8] >> (at % 8)) & 1) << b;
  }
  return index;
}

std::string place(int64_t row, int64_t group) {
  return "meta of row " + str(row) + ", group " + str(group);
}

}  // namespace

NmSizes nm_sizes(int64_t n, int64_t m, int64_t columns) {
  if (n < 1 || n > m || m > kMaxGroup)
    fail("expected 1 <= n <= m <= " + str(kMaxGroup) + ", got n=" + str(n) + ", m=" + str(m));
  check_matrix(1, columns);
  int64_t bits = 1;
  while ((1ll << bits) < m) ++bits;
  const int64_t groups = ceil_div(columns, m);
  return {groups, groups * n, bits, ceil_div(groups * n * bits, 8)};
}

template <typename Word>
Nm<Word> nm_pack(const Dense<Word>& weight, int64_t n, int64_t m) {
  const NmSizes size = nm_sizes(n, m, weight.columns);
  Nm<Word> packed;
  packed.meta.assign(static_cast<size_t>(weight.rows * size.meta_bytes), 0);
  for (int64_t row = 0; row < weight.rows; ++row) {
    uint8_t* meta = packed.meta.data() + row * size.meta_bytes;
    for (int64_t group = 0; group < size.groups; ++group) {
      bool kept[kMaxGroup] = {}, chosen[kMaxGroup] = {};
      int64_t count = 0;
      const int64_t first = group * m, width = std::min(m, weight.columns - first);
      for (int64_t i = 0; i < width; ++i)
        count += kept[i] = chosen[i] = weight.kept(row, first + i);
      if (count > n)
        fail("weight[" + str(row) + ", " + str(first) + ":" + str(first + width) + "] keeps " +
             str(count) + " values, the pattern " + str(n) + ":" + str(m) + " allows " + str(n));
      for (int64_t i = 0; count < n; ++i)
        if (!chosen[i]) chosen[i] = true, ++count;
      int64_t slot = group * n;
      for (int64_t i = 0; i < m; ++i) {
        if (!chosen[i]) continue;
        packed.values.push_back(kept[i] ? weight.stored(row, first + i) : Word{0});
        set_index(meta, slot++, size.bits, i);
      }
    }
  }
  return packed;
}

template <typename Word>
std::vector<Word> nm_unpack(const Word* values, const uint8_t* meta, int64_t rows, int64_t columns,
                            int64_t n, int64_t m) {
  const NmSizes size = nm_sizes(n, m, columns);
  check_matrix(rows, columns);
  std::vector<Word> dense(static_cast<size_t>(rows * columns), Word{0});
  for (int64_t row = 0; row < rows; ++row) {
    const uint8_t* bytes = meta + row * size.meta_bytes;
    for (int64_t group = 0; group < size.groups; ++group) {
      int64_t before = -1;
      for (int64_t slot = group * n; slot < (group + 1) * n; ++slot) {
        const int64_t index = get_index(bytes, slot, size.bits);
        if (index >= m)
          fail(place(row, group) + ": expected an index below " + str(m) + ", got " + str(index));
        if (index <= before)
          fail(place(row, group) + ": indices do not increase: " + str(before) + ", " + str(index));
        before = index;
        const Word value = values[row * size.kept + slot];
        const int64_t column = group * m + index;
        if (column < columns) {
          dense[static_cast<size_t>(row * columns + column)] = value;
        } else if (!Dense<Word>::zero(value)) {
          fail("values[" + str(row) + ", " + str(slot) +
               "] lies beyond column K = " + str(columns) + " and is not 0");
        }
      }
    }
    for (int64_t at = size.kept * size.bits; at < size.meta_bytes * 8; ++at)
      if ((bytes[at / 8] >> (at % 8)) & 1) fail("meta of row " + str(row) + ": spare bits set");
  }
  return dense;
}

// Independent of select/nm.h: sorts each group by (is a number, score, lowest index).
std::vector<uint8_t> nm_select(const float* scores, int64_t rows, int64_t columns, int64_t n,
                               int64_t m) {
  nm_sizes(n, m, columns);
  std::vector<uint8_t> mask(static_cast<size_t>(rows * columns), 0);
  for (int64_t row = 0; row < rows; ++row) {
    for (int64_t first = 0; first < columns; first += m) {
      const float* group = scores + row * columns + first;
      std::vector<int64_t> order(static_cast<size_t>(std::min(m, columns - first)));
      std::iota(order.begin(), order.end(), 0);
      std::stable_sort(order.begin(), order.end(), [&](int64_t a, int64_t b) {
        const bool a_nan = std::isnan(group[a]), b_nan = std::isnan(group[b]);
        return a_nan != b_nan ? b_nan : group[a] > group[b];
      });
      for (size_t i = 0; i < order.size() && static_cast<int64_t>(i) < n; ++i)
        mask[static_cast<size_t>(row * columns + first + order[i])] = 1;
    }
  }
  return mask;
}

template Nm<uint32_t> nm_pack(const Dense<uint32_t>&, int64_t, int64_t);
template Nm<uint16_t> nm_pack(const Dense<uint16_t>&, int64_t, int64_t);
template std::vector<uint32_t> nm_unpack(const uint32_t*, const uint8_t*, int64_t, int64_t, int64_t,
                                         int64_t);
template std::vector<uint16_t> nm_unpack(const uint16_t*, const uint8_t*, int64_t, int64_t, int64_t,
                                         int64_t);

}  // namespace evoprune::native
