// Structs of the C ABI from callers that were compiled against an older or newer header.
#pragma once

#include <cstring>

#include "api/status.h"

namespace pagemill {

// out = *in as far as the caller's struct_size reaches; the rest keeps the defaults that `out` holds.
template <class T>
pm_status read_versioned(const T* in, const char* name, T& out) {
  if (!in) return fail(PM_INVALID_ARGUMENT, "%s = NULL: expected a struct", name);
  if (in->struct_size < sizeof(size_t)) {
    return fail(PM_INVALID_ARGUMENT,
                "%s.struct_size = %zu: expected sizeof of the struct (start from its PM_*_INIT)", name,
                in->struct_size);
  }
  const size_t known = in->struct_size < sizeof(T) ? in->struct_size : sizeof(T);
  std::memcpy(&out, in, known);
  out.struct_size = sizeof(T);
  return PM_OK;
}

// *out = in as far as the caller's struct_size reaches.
template <class T>
pm_status write_versioned(T in, const char* name, T* out) {
  if (!out) return fail(PM_INVALID_ARGUMENT, "%s = NULL: expected a struct", name);
  if (out->struct_size < sizeof(size_t)) {
    return fail(PM_INVALID_ARGUMENT, "%s.struct_size = %zu: expected sizeof of the struct", name,
                out->struct_size);
  }
  in.struct_size = out->struct_size;
  std::memcpy(out, &in, in.struct_size < sizeof(T) ? in.struct_size : sizeof(T));
  return PM_OK;
}

}  // namespace pagemill
