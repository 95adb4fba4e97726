// Reads the tensors of an optimizer step straight from their Python objects, in one walk.
//
//   lists     params  grads  moments  squares  largest_squares  importances  masks  steps
//   index i     w       g      m         v            u              a         k     t    -> StepEntry
//
// The dispatcher walks such lists about ten times (overloads, boxing, keys, handles, checks,
// release), and a thousand small tensors are 8000 of them, whose facts lie in cold memory: that took
// longer than the step. Here every tensor is touched once, through the C struct with which torch
// answers DLPack's exchange API. Whatever is not plain (another type than Tensor or Parameter, another
// device, dtype or shape than expected, gaps, a lazy negation, shared memory) makes `collect` return
// None: the dispatcher then handles it, or says what is wrong.
#include "module_steps.h"

#include <algorithm>
#include <array>
#include <utility>
#include <vector>

#include "cpu/step_entry.h"

namespace py = pybind11;

namespace evoprune::native {
namespace {

// DLPack 1.x, https://dmlc.github.io/dlpack/latest/c_api.html: what is used of it.
struct DlDtype {
  uint8_t code, bits;
  uint16_t lanes;
  bool operator==(const DlDtype&) const = default;
};
struct DlTensor {
  void* data;
  int32_t device_type, device_id;
  int32_t ndim;
  DlDtype dtype;
  int64_t* shape;
  int64_t* strides;
  uint64_t byte_offset;
};
struct DlExchange {
  uint32_t major, minor;
  void* previous;
  void *allocate, *managed_from_object, *managed_to_object;
  int (*tensor_from_object)(void* object, DlTensor* out);
};
constexpr int32_t kDlCpu = 1;
constexpr DlDtype kF32{2, 32, 1}, kBf16{4, 16, 1}, kBool{6, 8, 1};

enum List { kParams, kGrads, kMoments, kSquares, kLargest, kImportances, kMasks, kSteps, kLists };
constexpr Py_ssize_t kBatch = 64;  // indices whose facts stay in the cache until versions advance
constexpr Py_ssize_t kAhead = 8;   // objects

using Objects = std::array<PyObject*, kLists>;  // Python lists

int64_t numel(const DlTensor& t) {
  int64_t n = 1;
  for (int32_t d = 0; d < t.ndim; ++d) n *= t.shape[d];
  return n;
}

bool contiguous(const DlTensor& t) {
  int64_t expected = 1;
  for (int32_t d = t.ndim - 1; d >= 0; --d) {
    if (t.shape[d] != 1 && t.strides[d] != expected) return false;
    expected *= t.shape[d];
  }
  return true;
}

bool same_shape(const DlTensor& a, const DlTensor& b) {
  return a.ndim == b.ndim && std::equal(a.shape, a.shape + a.ndim, b.shape);
}

// Only a hint: the object, and what its first own word points to (in torch: the tensor's facts).
void prefetch_object(PyObject* list, Py_ssize_t i) {
  const Py_ssize_t size = PyList_GET_SIZE(list);
  if (i + kAhead < size) __builtin_prefetch(PyList_GET_ITEM(list, i + kAhead));
  if (i + kAhead / 2 >= size) return;
  PyObject* const* object =
      reinterpret_cast<PyObject* const*>(PyList_GET_ITEM(list, i + kAhead / 2));
  const char* facts = reinterpret_cast<const char*>(object[sizeof(PyObject) / sizeof(PyObject*)]);
  for (int line = 0; line < 3; ++line) __builtin_prefetch(facts + 64 * line);
}

bool share_memory(const std::vector<StepEntry>& entries) {
  std::vector<std::pair<const char*, const char*>> ranges;
  ranges.reserve(entries.size());
  for (const StepEntry& e : entries) {
    const char* begin = static_cast<const char*>(e.tensor.param);
    const int64_t size = e.param_dtype == DType::f32 ? 4 : 2;
    if (e.tensor.numel > 0) ranges.emplace_back(begin, begin + e.tensor.numel * size);
  }
  std::sort(ranges.begin(), ranges.end());
  for (size_t i = 1; i < ranges.size(); ++i)
    if (ranges[i].first < ranges[i - 1].second) return true;
  return false;
}

struct Steps {
  std::vector<StepEntry> entries;
};

class StepReader {
 public:
  StepReader(const py::capsule& exchange, py::type tensor, py::type parameter, py::object is_neg,
             py::object increment_version)
      : exchange_(exchange.get_pointer<DlExchange>()),
        tensor_(std::move(tensor)),
        parameter_(std::move(parameter)),
        is_neg_(std::move(is_neg)),
        increment_version_(std::move(increment_version)) {
    if (exchange_->major != 1)
      throw py::value_error("expected DLPack 1, got another major version");
  }

  py::object collect(const py::tuple& lists) const {
    if (lists.size() != kLists) throw py::value_error("expected a tuple of 8 lists");
    Objects objects{};
    for (size_t k = 0; k < kLists; ++k) {
      objects[k] = PyTuple_GET_ITEM(lists.ptr(), k);
      if (!PyList_CheckExact(objects[k])) return py::none();
    }
    const Py_ssize_t count = PyList_GET_SIZE(objects[kParams]);
    for (size_t k = 0; k < kLists; ++k)
      if (const Py_ssize_t size = PyList_GET_SIZE(objects[k]);
          size != count && (size != 0 || k == kGrads || k == kSteps))
        return py::none();
    Steps steps;
    steps.entries.resize(static_cast<size_t>(count));
    for (Py_ssize_t begin = 0; begin < count; begin += kBatch) {
      const Py_ssize_t end = std::min(begin + kBatch, count);
      for (Py_ssize_t i = begin; i < end; ++i)
        if (!read_entry(objects, i, steps.entries[static_cast<size_t>(i)])) return py::none();
      advance_versions(objects, begin, end);
    }
    if (share_memory(steps.entries)) return py::none();
    return py::cast(std::move(steps));
  }

 private:
  // A plain tensor on the CPU with memory of its own; false for everything else.
  bool read(PyObject* list, Py_ssize_t i, DlTensor& t) const {
    prefetch_object(list, i);
    PyObject* object = PyList_GET_ITEM(list, i);
    PyObject* type = reinterpret_cast<PyObject*>(Py_TYPE(object));
    if (type != tensor_.ptr() && type != parameter_.ptr()) return false;
    PyObject* negative = PyObject_CallOneArg(is_neg_.ptr(), object);
    Py_XDECREF(negative);  // a bool lives on
    if (negative != Py_False || exchange_->tensor_from_object(object, &t) != 0) {
      PyErr_Clear();
      return false;
    }
    t.data = static_cast<char*>(t.data) + t.byte_offset;
    return t.device_type == kDlCpu && contiguous(t) && (t.data != nullptr || numel(t) == 0);
  }

  bool read_entry(const Objects& lists, Py_ssize_t i, StepEntry& out) const {
    DlTensor param, other;
    if (!read(lists[kParams], i, param) || (param.dtype != kF32 && param.dtype != kBf16))
      return false;
    DlDtype state = param.dtype;
    std::array<void*, kLists> memory{};
    for (const List k : {kGrads, kMoments, kSquares, kLargest, kImportances, kMasks}) {
      if (PyList_GET_SIZE(lists[k]) == 0) continue;
      if (!read(lists[k], i, other) || !same_shape(other, param)) return false;
      if (k == kMoments && other.dtype == kF32) state = kF32;
      const DlDtype expected = k == kGrads         ? param.dtype
                               : k == kImportances ? kF32
                               : k == kMasks       ? kBool
                                                   : state;
      if (other.dtype != expected) return false;
      memory[k] = other.data;
    }
    if (!read(lists[kSteps], i, other) || other.dtype != kF32 || numel(other) != 1) return false;
    out.step = static_cast<float*>(other.data);
    out.param_dtype = param.dtype == kF32 ? DType::f32 : DType::bf16;
    out.state_dtype = state == kF32 ? DType::f32 : DType::bf16;
    StepTensor& t = out.tensor;
    t.param = param.data;
    t.grad = memory[kGrads];
    t.moment = memory[kMoments];
    t.square = memory[kSquares];
    t.largest_square = memory[kLargest];
    t.importance = static_cast<float*>(memory[kImportances]);
    t.mask = static_cast<const uint8_t*>(memory[kMasks]);
    t.numel = numel(param);
    return true;
  }

  // The kernels write through raw pointers: autograd must hear of it.
  void advance_versions(const Objects& lists, Py_ssize_t begin, Py_ssize_t end) const {
    for (size_t k = 0; k < kLists; ++k) {
      if (k == kMasks || PyList_GET_SIZE(lists[k]) == 0) continue;
      increment_version_(py::reinterpret_steal<py::list>(PyList_GetSlice(lists[k], begin, end)));
    }
  }

  const DlExchange* exchange_;
  py::object tensor_, parameter_, is_neg_, increment_version_;
};

}  // namespace

void define_steps(py::module_& m) {
  py::class_<Steps>(m, "Steps", "Entries of csrc/cpu/step_entry.h, valid while their tensors live.")
      .def_property_readonly("address",
                             [](Steps& s) { return reinterpret_cast<intptr_t>(s.entries.data()); })
      .def_property_readonly("count", [](const Steps& s) { return s.entries.size(); });
  py::class_<StepReader>(m, "StepReader", "Reads lists of plain tensors for an optimizer step.")
      .def(py::init<const py::capsule&, py::type, py::type, py::object, py::object>())
      .def("collect", &StepReader::collect,
           "The entries of (params, grads, moments, squares, largest_squares, importances, masks, "
           "steps), or None where a tensor is not plain; advances versions.");
}

}  // namespace evoprune::native
