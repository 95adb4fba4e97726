// The pybind11 module `_native`: what is no tensor op. Build facts, CPU features, the packed formats
// on numpy arrays (csrc/native), and the reader of an optimizer's tensors (module_steps.cpp),
// independent of torch.
//
// Weights are float32 arrays, or uint16 arrays that hold the bits of bf16. Every array is checked
// for dtype and shape here and for its content in csrc/native; a bad one is a ValueError.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <cstring>

#include "module_steps.h"
#include "native/formats.h"
#include "native/plan.h"

#ifndef EVOPRUNE_SANITIZED
#define EVOPRUNE_SANITIZED 0
#endif

namespace py = pybind11;

namespace evoprune::native {
namespace {

using Shape = std::vector<py::ssize_t>;

std::string shape_of(const py::array& a) {
  return py::str(a.attr("shape")).cast<std::string>();
}

py::array contiguous(const py::array& a, const char* dtype, int64_t dim, const char* name) {
  if (!a.dtype().equal(py::dtype(dtype)))
    fail(std::string("expected ") + name + " of dtype " + dtype + ", got " +
         py::str(a.dtype()).cast<std::string>());
  if (a.ndim() != dim)
    fail(std::string("expected ") + name + " of " + str(dim) + " dimensions, got shape " +
         shape_of(a));
  return py::array::ensure(a, py::array::c_style);
}

template <typename T>
const T* words(const py::array& a) {
  return static_cast<const T*>(a.data());
}

template <typename T>
py::array numpy(const std::vector<T>& data, const py::dtype& dtype, const Shape& shape) {
  py::array result(dtype, shape);
  if (!data.empty()) std::memcpy(result.mutable_data(), data.data(), data.size() * sizeof(T));
  return result;
}
py::array numpy(const std::vector<int32_t>& data) {
  return numpy(data, py::dtype("int32"), {static_cast<py::ssize_t>(data.size())});
}

// Calls `body(Word{}, contiguous array)` for the word type that the dtype asks for.
template <typename Body>
auto with_words(const py::array& a, int64_t dim, const char* name, Body body) {
  if (a.dtype().equal(py::dtype("uint16")))
    return body(uint16_t{}, contiguous(a, "uint16", dim, name));
  return body(uint32_t{}, contiguous(a, "float32", dim, name));
}

// Calls `pack(Dense<Word>, dtype)` for a weight [N, K] and a mask that may be None.
template <typename Pack>
py::tuple with_dense(const py::array& weight, const py::object& mask, Pack pack) {
  return with_words(weight, 2, "weight", [&](auto word, const py::array& w) -> py::tuple {
    using Word = decltype(word);
    py::array m;
    if (!mask.is_none()) {
      if (!py::isinstance<py::array>(mask)) fail("expected mask to be a numpy array or None");
      m = contiguous(mask.cast<py::array>(), "bool", 2, "mask");
      if (m.shape(0) != w.shape(0) || m.shape(1) != w.shape(1))
        fail("expected mask of shape " + shape_of(w) + ", got " + shape_of(m));
    }
    check_matrix(w.shape(0), w.shape(1));
    const Dense<Word> dense{words<Word>(w), mask.is_none() ? nullptr : words<uint8_t>(m),
                            w.shape(0), w.shape(1)};
    return pack(dense, w.dtype());
  });
}

py::tuple py_nm_pack(const py::array& weight, int64_t n, int64_t m, const py::object& mask) {
  return with_dense(weight, mask, [&](const auto& dense, const py::dtype& dtype) {
    const NmSizes size = nm_sizes(n, m, dense.columns);
    const auto packed = nm_pack(dense, n, m);
    return py::make_tuple(numpy(packed.values, dtype, {dense.rows, size.kept}),
                          numpy(packed.meta, py::dtype("uint8"), {dense.rows, size.meta_bytes}));
  });
}

py::array py_nm_unpack(const py::array& values, const py::array& meta, int64_t n, int64_t m,
                       int64_t columns) {
  const NmSizes size = nm_sizes(n, m, columns);
  const py::array bytes = contiguous(meta, "uint8", 2, "meta");
  return with_words(values, 2, "values", [&](auto word, const py::array& v) -> py::array {
    using Word = decltype(word);
    expect(v.shape(1), size.kept, "values.shape[1]");
    expect(bytes.shape(0), v.shape(0), "meta.shape[0]");
    expect(bytes.shape(1), size.meta_bytes, "meta.shape[1]");
    const auto dense = nm_unpack(words<Word>(v), words<uint8_t>(bytes), v.shape(0), columns, n, m);
    return numpy(dense, v.dtype(), {v.shape(0), columns});
  });
}

py::array py_select_nm(const py::array& scores, int64_t n, int64_t m) {
  const py::array s = contiguous(scores, "float32", 2, "scores");
  const auto mask = nm_select(words<float>(s), s.shape(0), s.shape(1), n, m);
  return numpy(mask, py::dtype("bool"), {s.shape(0), s.shape(1)});
}

py::tuple py_block_pack(const py::array& weight, int64_t bn, int64_t bk, const py::object& mask) {
  return with_dense(weight, mask, [&](const auto& dense, const py::dtype& dtype) {
    const auto packed = block_pack(dense, bn, bk);
    const auto count = static_cast<py::ssize_t>(packed.col_idx.size());
    return py::make_tuple(numpy(packed.values, dtype, {count, bn, bk}), numpy(packed.row_ptr),
                          numpy(packed.col_idx));
  });
}

py::array py_block_unpack(const py::array& values, const py::array& row_ptr,
                          const py::array& col_idx, int64_t rows, int64_t columns) {
  const py::array pointers = contiguous(row_ptr, "int32", 1, "row_ptr");
  const py::array indices = contiguous(col_idx, "int32", 1, "col_idx");
  return with_words(values, 3, "values", [&](auto word, const py::array& v) -> py::array {
    using Word = decltype(word);
    expect(indices.shape(0), v.shape(0), "length of col_idx");
    const BlockView<Word> packed{words<Word>(v), words<int32_t>(pointers), words<int32_t>(indices),
                                 v.shape(0), pointers.shape(0)};
    return numpy(block_unpack(packed, rows, columns, v.shape(1), v.shape(2)), v.dtype(),
                 {rows, columns});
  });
}

py::tuple py_bitmask_pack(const py::array& weight, const py::object& mask) {
  return with_dense(weight, mask, [&](const auto& dense, const py::dtype& dtype) {
    const auto packed = bitmask_pack(dense);
    return py::make_tuple(
        numpy(packed.values, dtype, {static_cast<py::ssize_t>(packed.values.size())}),
        numpy(packed.bits, py::dtype("uint8"), {dense.rows, ceil_div(dense.columns, 8)}),
        numpy(packed.row_ptr));
  });
}

py::array py_bitmask_unpack(const py::array& values, const py::array& bits,
                            const py::array& row_ptr, int64_t columns) {
  const py::array bytes = contiguous(bits, "uint8", 2, "bits");
  const py::array pointers = contiguous(row_ptr, "int32", 1, "row_ptr");
  const int64_t rows = bytes.shape(0);
  check_matrix(rows, columns);
  expect(bytes.shape(1), ceil_div(columns, 8), "bits.shape[1]");
  expect(pointers.shape(0), rows + 1, "length of row_ptr");
  return with_words(values, 1, "values", [&](auto word, const py::array& v) -> py::array {
    using Word = decltype(word);
    return numpy(bitmask_unpack(words<Word>(v), v.shape(0), words<uint8_t>(bytes),
                                words<int32_t>(pointers), rows, columns),
                 v.dtype(), {rows, columns});
  });
}

py::dict build_info() {
  py::dict d;
  d["compiler"] = __VERSION__;
  d["x86"] = bool(EVOPRUNE_X86);
  d["emulated_avx512"] = bool(EVOPRUNE_EMULATED);
  d["sanitized"] = bool(EVOPRUNE_SANITIZED);
  return d;
}

py::dict cpu_features() {
  py::dict d;
#if EVOPRUNE_X86
  __builtin_cpu_init();
  d["avx2"] = __builtin_cpu_supports("avx2") != 0;
  d["fma"] = __builtin_cpu_supports("fma") != 0;
  d["f16c"] = __builtin_cpu_supports("f16c") != 0;
  d["avx512f"] = __builtin_cpu_supports("avx512f") != 0;
  d["avx512bw"] = __builtin_cpu_supports("avx512bw") != 0;
  d["avx512vl"] = __builtin_cpu_supports("avx512vl") != 0;
  d["avx512dq"] = __builtin_cpu_supports("avx512dq") != 0;
  d["avx512vbmi2"] = __builtin_cpu_supports("avx512vbmi2") != 0;
  d["avx512bf16"] = __builtin_cpu_supports("avx512bf16") != 0;
#endif
  return d;
}

py::list py_plan(const std::string& pattern, int64_t out_features, int64_t in_features,
                 int64_t tokens, const std::string& level, int value_bytes) {
  py::list parts;
  for (const PlanPart& part :
       plan({pattern, out_features, in_features, tokens, level, value_bytes})) {
    py::dict d;
    d["kernel"] = part.kernel;
    d["lanes"] = part.lanes;
    d["tokens"] = part.tokens;
    d["panel"] = part.panel;
    d["chunk"] = part.chunk;
    parts.append(d);
  }
  return parts;
}

}  // namespace
}  // namespace evoprune::native

PYBIND11_MODULE(_native, m) {
  namespace native = evoprune::native;
  using py::arg;
  m.doc() = "Build facts, CPU features and the packed formats on numpy arrays, without torch.";
  m.def("build_info", &native::build_info, "How this library was compiled.");
  m.def("cpu_features", &native::cpu_features, "Instruction sets of this CPU; empty off x86.");
  m.def("plan", &native::py_plan, arg("pattern"), arg("out_features"), arg("in_features"),
        arg("tokens"), arg("level"), arg("value_bytes") = 4,
        "Which kernel takes which tokens: a list of parts (csrc/core/plan.h).");
  m.def("nm_pack", &native::py_nm_pack, arg("weight"), arg("n"), arg("m"), arg("mask") = py::none(),
        "weight [N, K] -> (values, meta)");
  m.def("nm_unpack", &native::py_nm_unpack, arg("values"), arg("meta"), arg("n"), arg("m"),
        arg("in_features"), "(values, meta) -> weight [N, K]");
  m.def("select_nm", &native::py_select_nm, arg("scores"), arg("n"), arg("m"),
        "scores [N, K] -> mask [N, K]");
  m.def("block_pack", &native::py_block_pack, arg("weight"), arg("bn"), arg("bk"),
        arg("mask") = py::none(), "weight [N, K] -> (values, row_ptr, col_idx)");
  m.def("block_unpack", &native::py_block_unpack, arg("values"), arg("row_ptr"), arg("col_idx"),
        arg("out_features"), arg("in_features"), "(values, row_ptr, col_idx) -> weight [N, K]");
  m.def("bitmask_pack", &native::py_bitmask_pack, arg("weight"), arg("mask") = py::none(),
        "weight [N, K] -> (values, bits, row_ptr)");
  m.def("bitmask_unpack", &native::py_bitmask_unpack, arg("values"), arg("bits"), arg("row_ptr"),
        arg("in_features"), "(values, bits, row_ptr) -> weight [N, K]");
  native::define_steps(m);
}
