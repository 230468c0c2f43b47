#include "arrays.h"

#include <nanobind/stl/string.h>

#include <array>
#include <stdexcept>
#include <utility>

namespace pagemill::python {
namespace {

// Names as NumPy and ml_dtypes have them; codes of DLPack.
struct Named {
  const char* name;
  nb::dlpack::dtype element;
  const char* bits;  // the NumPy dtype that shows the bits of one which DLPack's NumPy does not know
};
constexpr uint8_t kE4m3 = 10, kE5m2 = 12;
constexpr auto kBfloat = static_cast<uint8_t>(nb::dlpack::dtype_code::Bfloat);
constexpr auto kFloat = static_cast<uint8_t>(nb::dlpack::dtype_code::Float);
constexpr auto kInt = static_cast<uint8_t>(nb::dlpack::dtype_code::Int);
constexpr auto kUInt = static_cast<uint8_t>(nb::dlpack::dtype_code::UInt);
constexpr std::array<Named, 9> kNamed = {{{"float32", {kFloat, 32, 1}, nullptr},
                                          {"bfloat16", {kBfloat, 16, 1}, "uint16"},
                                          {"float16", {kFloat, 16, 1}, nullptr},
                                          {"float8_e4m3fn", {kE4m3, 8, 1}, "uint8"},
                                          {"float8_e5m2", {kE5m2, 8, 1}, "uint8"},
                                          {"float64", {kFloat, 64, 1}, nullptr},
                                          {"int32", {kInt, 32, 1}, nullptr},
                                          {"int64", {kInt, 64, 1}, nullptr},
                                          {"uint8", {kUInt, 8, 1}, nullptr}}};
constexpr std::array<pm_dtype, 3> kDtypes = {PM_F32, PM_BF16, PM_F16};
constexpr std::array<pm_dtype, 2> kFloat8 = {PM_F8E4M3, PM_F8E5M2};  // of caches alone

bool is_numpy(nb::handle object) {
  return nb::hasattr(object, "__array_interface__");
}

// The dtypes of ml_dtypes are of kind "V" to NumPy, which offers them through no protocol.
const Named* of_ml_dtypes(nb::handle object) {
  if (!is_numpy(object)) return nullptr;
  const auto name = nb::cast<std::string>(object.attr("dtype").attr("name"));
  for (const Named& named : kNamed) {
    if (named.bits && name == named.name) return &named;
  }
  return nullptr;
}

// JAX's arrays never change, but the DLPack that they give does not say so.
bool is_of_jax(nb::handle object) {
  return nb::cast<std::string>(object.type().attr("__module__")).starts_with("jax");
}

[[noreturn]] void fail_type(const std::string& message) {
  throw nb::type_error(message.c_str());
}
[[noreturn]] void fail_value(const std::string& message) {
  throw InvalidArgument(message);
}

std::string text_of(const Array& array) {
  std::string text = "[";
  for (size_t axis = 0; axis < array.view.ndim(); ++axis) {
    text += (axis ? ", " : "") + std::to_string(array.view.shape(axis));
  }
  return text + "]";
}

std::string text_of(std::initializer_list<Extent> shape) {
  std::string text = "[";
  for (const Extent& extent : shape) {
    text += text.size() > 1 ? ", " : "";
    text += extent.expected < 0 ? extent.letter : std::to_string(extent.expected);
  }
  return text + "]";
}

}  // namespace

std::string name_of(nb::dlpack::dtype element) {
  for (const Named& named : kNamed) {
    if (named.element == element) return named.name;
  }
  return "dtype of code " + std::to_string(element.code) + ", " + std::to_string(element.bits) + " bits";
}

const char* name_of(pm_dtype dtype) {
  switch (dtype) {
    case PM_F32: return "float32";
    case PM_BF16: return "bfloat16";
    case PM_F16: return "float16";
    case PM_F8E4M3: return "float8_e4m3fn";
    case PM_F8E5M2: return "float8_e5m2";
  }
  throw std::logic_error("a dtype without a name");
}

nb::dlpack::dtype element_of(pm_dtype dtype) {
  for (const Named& named : kNamed) {
    if (std::string(named.name) == name_of(dtype)) return named.element;
  }
  throw std::logic_error("a dtype without an element");
}

int64_t bytes_of(pm_dtype dtype) {
  return element_of(dtype).bits / 8;
}

pm_dtype dtype_named(const std::string& name, const char* argument) {
  for (const pm_dtype dtype : kDtypes) {
    if (name == name_of(dtype)) return dtype;
  }
  fail_type(std::string(argument) + " = " + name + ": expected float32, bfloat16 or float16");
}

pm_dtype cache_dtype_named(const std::string& name, const char* argument) {
  for (const pm_dtype dtype : kFloat8) {
    if (name == name_of(dtype)) return dtype;
  }
  for (const pm_dtype dtype : kDtypes) {
    if (name == name_of(dtype)) return dtype;
  }
  fail_type(std::string(argument) + " = " + name +
            ": expected float32, bfloat16, float16, float8_e4m3fn or float8_e5m2");
}

pm_dtype dtype_of(const Array& array, const char* name) {
  return dtype_named(name_of(array.element), (std::string(name) + ".dtype").c_str());
}

Array import_array(nb::handle object, const char* name, Access access) {
  const Named* named = of_ml_dtypes(object);
  const nb::object bits = named ? object.attr("view")(named->bits) : nb::borrow(object);
  Array array{};
  if (!nb::try_cast(bits, array.view, false)) {
    fail_type(std::string(name) + ": a " + nb::type_name(object.type()).c_str() +
              ": expected an array that NumPy or DLPack gives access to");
  }
  if (array.view.device_type() != nb::device::cpu::value) {
    fail_type(std::string(name) + ": an array on another device: expected one in memory of the CPU");
  }
  nb::ndarray<> writable;
  array.writable = access == Access::kWrite && !is_of_jax(object) && nb::try_cast(bits, writable, false);
  if (access == Access::kWrite && !array.writable) {
    fail_value(std::string(name) + ": a read-only array: expected one that can be written");
  }
  array.element = named ? named->element : array.view.dtype();
  return array;
}

void expect_shape(const Array& array, const char* name, std::initializer_list<Extent> shape) {
  bool fits = array.view.ndim() == shape.size();
  for (size_t axis = 0; fits && axis < shape.size(); ++axis) {
    const int64_t expected = shape.begin()[axis].expected;
    fits = expected < 0 || array.extent(axis) == expected;
  }
  if (!fits) {
    std::string letters = "[";
    for (const Extent& extent : shape)
      letters += (letters.size() > 1 ? ", " : "") + std::string(extent.letter);
    fail_value(std::string(name) + ".shape = " + text_of(array) + ": expected " + letters +
               "] = " + text_of(shape));
  }
  for (size_t axis = 0; axis < shape.size(); ++axis) {
    if (array.extent(axis) > 1 && array.stride(axis) <= 0) {
      fail_value(std::string(name) + ": stride " + std::to_string(array.stride(axis)) + " of axis " +
                 std::to_string(axis) + ": expected a positive one");
    }
  }
  const size_t last = shape.size() - 1;
  if (array.extent(last) > 1 && array.stride(last) != 1) {
    fail_value(std::string(name) + ": stride " + std::to_string(array.stride(last)) +
               " of the last axis: expected it to be contiguous");
  }
}

void expect_element(const Array& array, const char* name, pm_dtype dtype) {
  if (array.element == element_of(dtype)) return;
  fail_type(std::string(name) + ".dtype = " + name_of(array.element) + ": expected " + name_of(dtype));
}

nb::object new_array(std::initializer_list<int64_t> shape, pm_dtype dtype) {
  nb::list extents;
  for (const int64_t extent : shape) extents.append(extent);
  nb::object type = nb::str(name_of(dtype));
  if (dtype == PM_BF16) type = nb::module_::import_("ml_dtypes").attr("bfloat16");
  return nb::module_::import_("numpy").attr("empty")(extents, type);
}

std::optional<Array> import_optional(nb::handle object, const char* name, pm_dtype dtype,
                                     std::initializer_list<Extent> shape) {
  if (object.is_none()) return {};
  Array array = import_array(object, name, Access::kRead);
  expect_element(array, name, dtype);
  expect_shape(array, name, shape);
  return array;
}

const int32_t* int32_data(const std::optional<Array>& array) {
  return array ? reinterpret_cast<const int32_t*>(array->data()) : nullptr;
}

void expect_apart(const Array& written, const char* name, const Array& read, const char* read_name) {
  const auto range = [](const Array& a) {
    const std::byte *begin = a.data(), *end = begin;
    int64_t last = 0;
    for (size_t axis = 0; axis < a.view.ndim(); ++axis) {
      if (a.extent(axis) == 0) return std::pair{begin, begin};
      last += (a.extent(axis) - 1) * a.stride(axis);
    }
    return std::pair{begin, end + (last + 1) * (a.element.bits / 8)};
  };
  const auto [a, a_end] = range(written);
  const auto [b, b_end] = range(read);
  if (a_end <= b || b_end <= a) return;
  fail_value(std::string(name) + ": overlaps " + read_name + ": expected memory of its own");
}

}  // namespace pagemill::python
