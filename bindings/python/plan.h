// pagemill.Plan: a plan of the C++ API whose tensors are Python arrays.
#pragma once

#include "cache.h"

namespace pagemill::python {

void bind_plan(nb::module_& m);

}  // namespace pagemill::python
