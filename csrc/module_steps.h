// The reader of an optimizer's tensors, a part of the module `_native`.
#pragma once

#include <pybind11/pybind11.h>

namespace evoprune::native {

void define_steps(pybind11::module_& m);

}  // namespace evoprune::native
