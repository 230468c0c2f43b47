// Arrays of the caller (NumPy with ml_dtypes, or any that offers DLPack), seen as memory: never copied.
#pragma once

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <pagemill/pagemill.hpp>

#include <initializer_list>
#include <optional>
#include <string>

namespace pagemill::python {

namespace nb = nanobind;

struct Array {
  nb::ndarray<nb::ro> view;   // keeps the memory
  nb::dlpack::dtype element;  // of bfloat16 and fp8 too, which NumPy hands out as plain bits
  bool writable;

  std::byte* data() const { return const_cast<std::byte*>(static_cast<const std::byte*>(view.data())); }
  int64_t extent(size_t axis) const { return static_cast<int64_t>(view.shape(axis)); }
  int64_t stride(size_t axis) const { return view.stride(axis); }  // elements
};

enum class Access { kRead, kWrite };

// TypeError unless `object` is an array in memory of the CPU, ValueError if it must be written and cannot.
Array import_array(nb::handle object, const char* name, Access access);

// One extent of a shape; `expected` < 0: any.
struct Extent {
  const char* letter;
  int64_t expected;
};
// The axes and their contiguity: ValueError unless the shape fits, no axis of more than one element has
// stride 0, and the innermost axis is contiguous.
void expect_shape(const Array& array, const char* name, std::initializer_list<Extent> shape);
void expect_element(const Array& array, const char* name, pm_dtype dtype);

// TypeError for any other than those of the core.
pm_dtype dtype_of(const Array& array, const char* name);
pm_dtype dtype_named(const std::string& name, const char* argument);
pm_dtype cache_dtype_named(const std::string& name, const char* argument);  // fp8 too
const char* name_of(pm_dtype dtype);
int64_t bytes_of(pm_dtype dtype);
nb::dlpack::dtype element_of(pm_dtype dtype);
std::string name_of(nb::dlpack::dtype element);

// A new NumPy array, not filled.
nb::object new_array(std::initializer_list<int64_t> shape, pm_dtype dtype);

// Optional arguments: an array of exactly this shape and dtype, or nothing for None.
std::optional<Array> import_optional(nb::handle object, const char* name, pm_dtype dtype,
                                     std::initializer_list<Extent> shape);
const int32_t* int32_data(const std::optional<Array>& array);

// ValueError if the bytes between first and last element of the two have any in common.
void expect_apart(const Array& written, const char* name, const Array& read, const char* read_name);

}  // namespace pagemill::python
