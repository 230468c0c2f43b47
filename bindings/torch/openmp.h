// The OpenMP threads of PyTorch's CPU operators, so that a process has no second pool.
#pragma once

#include <pagemill/pagemill.hpp>

namespace pagemill::torch {

// Throws InvalidArgument where PyTorch is not loaded or was built without OpenMP.
Executor openmp_executor();

}  // namespace pagemill::torch
