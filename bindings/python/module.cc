// pagemill._core: the C++ API for Python arrays. What users call is in pagemill/__init__.py.
#include <nanobind/stl/string.h>

#include "../jax/handlers.h"
#include "plan.h"

namespace pagemill::python {
namespace {

void expect_contiguous(const Array& array, const char* name) {
  int64_t expected = 1;
  for (size_t axis = array.view.ndim(); axis-- > 0;) {
    if (array.extent(axis) > 1 && array.stride(axis) != expected) {
      throw InvalidArgument(std::string(name) + ": strides: expected a contiguous array");
    }
    expected *= array.extent(axis);
  }
}

void expect_same_shape(const Array& array, const char* name, const Array& other, const char* other_name,
                       size_t axes) {
  bool same = array.view.ndim() == axes;
  for (size_t axis = 0; same && axis < axes; ++axis) same = array.extent(axis) == other.extent(axis);
  if (!same) {
    throw InvalidArgument(std::string(name) + ".shape: expected " +
                          (axes == other.view.ndim() ? "that of " : "all but the last axis of ") +
                          other_name);
  }
}

Array import_lse(nb::handle object, const char* name, const Array& a, Access access) {
  Array lse = import_array(object, name, access);
  expect_element(lse, name, PM_F32);
  expect_contiguous(lse, name);
  expect_same_shape(lse, name, a, "a", a.view.ndim() - 1);
  return lse;
}

void merge_into(nb::handle a_object, nb::handle lse_a_object, nb::handle b_object, nb::handle lse_b_object,
                nb::handle out_object, nb::handle out_lse_object) {
  const Array a = import_array(a_object, "a", Access::kRead);
  const pm_dtype dtype = dtype_of(a, "a");
  if (a.view.ndim() < 1) throw InvalidArgument("a.shape = []: expected [..., D]");
  expect_contiguous(a, "a");
  const auto import_like = [&](nb::handle object, const char* name, Access access) {
    Array array = import_array(object, name, access);
    expect_element(array, name, dtype);
    expect_contiguous(array, name);
    expect_same_shape(array, name, a, "a", a.view.ndim());
    return array;
  };
  const Array b = import_like(b_object, "b", Access::kRead),
              out = import_like(out_object, "out", Access::kWrite);
  const Array lse_a = import_lse(lse_a_object, "lse_a", a, Access::kRead);
  const Array lse_b = import_lse(lse_b_object, "lse_b", a, Access::kRead);
  const Array out_lse = import_lse(out_lse_object, "out_lse", a, Access::kWrite);
  const int64_t head_dim = a.extent(a.view.ndim() - 1);
  int64_t rows = 1;
  for (size_t axis = 0; axis + 1 < a.view.ndim(); ++axis) rows *= a.extent(axis);
  const auto f32 = [](const Array& array) { return reinterpret_cast<float*>(array.data()); };
  nb::gil_scoped_release release;
  merge(dtype, rows, static_cast<int>(head_dim), a.data(), f32(lse_a), b.data(), f32(lse_b), out.data(),
        f32(out_lse));
}

nb::list isas() {
  nb::list all;
  for (int32_t i = 0; i < pm_isa_count(); ++i) {
    pm_isa_info info{};
    info.struct_size = sizeof info;
    check(pm_isa_get(i, &info));
    nb::dict isa;
    isa["name"] = info.name;
    isa["available"] = info.available != 0;
    isa["selected"] = info.selected != 0;
    isa["reason"] = info.reason;
    all.append(isa);
  }
  return all;
}

nb::list kernels() {
  nb::list all;
  for (int32_t i = 0; i < pm_kernel_count(); ++i) {
    pm_kernel_info info{};
    info.struct_size = sizeof info;
    check(pm_kernel_get(i, &info));
    all.append(info.name);
  }
  return all;
}

nb::dict costs() {
  pm_tune_info info{};
  info.struct_size = sizeof info;
  check(pm_tune_get(nullptr, &info));
  nb::dict out;
  out["isa"] = info.isa;
  out["path"] = info.path;
  out["tuned"] = info.tuned != 0;
  out["problem"] = info.problem;
  return out;
}

}  // namespace
}  // namespace pagemill::python

NB_MODULE(_core, m) {
  using namespace pagemill::python;
  nb::set_leak_warnings(false);  // PyTorch keeps operators, and what they hold, to the process's end
  m.doc() = "The compiled half of the package pagemill.";
  nb::register_exception_translator([](const std::exception_ptr& pointer, void*) {
    try {
      std::rethrow_exception(pointer);
    } catch (const pagemill::Unsupported& error) {
      PyErr_SetString(PyExc_NotImplementedError, error.what());
    }
  });
  bind_cache(m);
  bind_plan(m);
  pagemill::jax::bind_handlers(m);
  m.def("merge_into", &merge_into, nb::arg("a"), nb::arg("lse_a"), nb::arg("b"), nb::arg("lse_b"),
        nb::arg("out"), nb::arg("out_lse"));
  m.def("isas", &isas);
  m.def("kernels", &kernels);
  m.def("costs", &costs);
  m.def("default_threads", &pm_default_threads);
  m.def("version", &pm_version);
}
