// pagemill._core.jax: what XLA calls.
#pragma once

#include <nanobind/nanobind.h>

namespace pagemill::jax {

void bind_handlers(nanobind::module_& m);

}  // namespace pagemill::jax
