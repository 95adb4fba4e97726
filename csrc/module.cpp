// The pybind11 module `_native`: what is no tensor op. Build facts now; the packed-format oracle
// joins it.
#include <pybind11/pybind11.h>

#ifndef EVOPRUNE_SANITIZED
#define EVOPRUNE_SANITIZED 0
#endif

namespace py = pybind11;

PYBIND11_MODULE(_native, m) {
  m.doc() = "Build facts and packed-format routines on numpy arrays, independent of torch.";
  m.def("build_info", [] {
    py::dict d;
    d["compiler"] = __VERSION__;
    d["x86"] = bool(EVOPRUNE_X86);
    d["emulated_avx512"] = bool(EVOPRUNE_EMULATED);
    d["sanitized"] = bool(EVOPRUNE_SANITIZED);
    return d;
  });
}
