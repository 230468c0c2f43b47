#include "cache.h"

#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>

namespace pagemill::python {
namespace {

constexpr int kGroup = 16;

Array import_plane(nb::handle object, const char* name) {
  try {
    return import_array(object, name, Access::kWrite);
  } catch (const InvalidArgument&) {
    return import_array(object, name, Access::kRead);
  }
}

// A group of the layout `tiles` is one piece of memory.
void expect_packed(const Array& array, const char* name, size_t first_axis) {
  int64_t expected = 1;
  for (size_t axis = array.view.ndim(); axis-- > first_axis;) {
    if (array.extent(axis) > 1 && array.stride(axis) != expected) {
      throw InvalidArgument(std::string(name) + ": stride " + std::to_string(array.stride(axis)) +
                            " of axis " + std::to_string(axis) + ": expected " + std::to_string(expected) +
                            ", pages of layout tiles in one piece");
    }
    expected *= array.extent(axis);
  }
}

// What the bytes of an array are.
void name_bits(Array& array, const char* name, const std::string& dtype) {
  const pm_dtype element = cache_dtype_named(dtype, "dtype");
  const std::string given = name_of(array.element);
  if (given != dtype && (given != "uint8" || bytes_of(element) != 1)) {
    throw nb::type_error((std::string(name) + ".dtype = " + given + ", dtype = " + dtype + ": expected " +
                          dtype + ", or uint8 for fp8")
                             .c_str());
  }
  array.element = element_of(element);
}

constexpr const char* kCacheDoc =
    R"(A paged cache: two arrays, K and V, of pages that sequences share by page tables.

Cache(k, v, layout="rows", dtype=None)

layout "rows": k and v are [pages, P, K, D] with any positive strides and D contiguous, so that a transposed view of
    [pages, K, P, D], token slots [slots, 1, K, D] and views into one interleaved array serve as they are. Any P from
    1 to 1024.
layout "tiles": with r = 4 / itemsize, k is [pages, K, P / 16, D / r, 16, r] and v is [pages, K, P / r, D, r]; a page
    and head is one piece of memory, aligned to 64 bytes; P is a multiple of 16. `new_cache` makes one.

Elements are float32, bfloat16, float16, float8_e4m3fn or float8_e5m2. dtype names one of the last two where the arrays
are uint8, the bits of elements whose dtype NumPy or DLPack does not have. Nothing is copied: the cache keeps both arrays and writes to their memory. One that
holds a read-only array serves plans that do not write.

Raises TypeError for what is no array or has another dtype, ValueError for shapes, strides or alignment that do not
fit, NotImplementedError for what the library does not support.

A step writes the slots of its new tokens only; steps that touch the same pages must not run at the same time unless
none of them writes.)";

}  // namespace

PagedCache::PagedCache(nb::object k, nb::object v, const std::string& layout, const std::string& dtype)
    : k_(std::move(k)), v_(std::move(v)), k_array_(import_plane(k_, "k")), v_array_(import_plane(v_, "v")) {
  writable_ = k_array_.writable && v_array_.writable;
  if (!dtype.empty()) {
    name_bits(k_array_, "k", dtype);
    name_bits(v_array_, "v", dtype);
  }
  view_.dtype = cache_dtype_named(name_of(k_array_.element), "k.dtype");
  expect_element(v_array_, "v", view_.dtype);
  view_.k = k_array_.data();
  view_.v = v_array_.data();
  if (layout == "rows") {
    read_rows();
  } else if (layout == "tiles") {
    read_tiles();
  } else {
    throw InvalidArgument("layout = '" + layout + "': expected 'rows' or 'tiles'");
  }
  check(pm_convert(&view_, nullptr, &view_, nullptr, 0));  // what the library itself asks of a cache
}

void PagedCache::read_rows() {
  expect_shape(k_array_, "k", {{"pages", -1}, {"P", -1}, {"K", -1}, {"D", -1}});
  const Array& k = k_array_;
  expect_shape(v_array_, "v",
               {{"pages", k.extent(0)}, {"P", k.extent(1)}, {"K", k.extent(2)}, {"D", k.extent(3)}});
  view_.layout = PM_ROWS;
  view_.num_pages = k.extent(0);
  view_.page_size = static_cast<int32_t>(k.extent(1));
  view_.num_kv_heads = static_cast<int32_t>(k.extent(2));
  view_.head_dim = static_cast<int32_t>(k.extent(3));
  view_.k_stride_page = k.stride(0), view_.k_stride_token = k.stride(1), view_.k_stride_head = k.stride(2);
  const Array& v = v_array_;
  view_.v_stride_page = v.stride(0), view_.v_stride_token = v.stride(1), view_.v_stride_head = v.stride(2);
}

void PagedCache::read_tiles() {
  const int64_t r = 4 / bytes_of(view_.dtype);
  expect_shape(k_array_, "k",
               {{"pages", -1}, {"K", -1}, {"P / 16", -1}, {"D / r", -1}, {"16", kGroup}, {"r", r}});
  const Array& k = k_array_;
  expect_shape(v_array_, "v",
               {{"pages", k.extent(0)},
                {"K", k.extent(1)},
                {"P / r", k.extent(2) * kGroup / r},
                {"D", k.extent(3) * r},
                {"r", r}});
  expect_packed(k_array_, "k", 2);
  expect_packed(v_array_, "v", 2);
  view_.layout = PM_TILES;
  view_.num_pages = k.extent(0);
  view_.num_kv_heads = static_cast<int32_t>(k.extent(1));
  view_.page_size = static_cast<int32_t>(k.extent(2) * kGroup);
  view_.head_dim = static_cast<int32_t>(k.extent(3) * r);
  view_.k_stride_page = k.stride(0), view_.k_stride_head = k.stride(1);
  view_.v_stride_page = v_array_.stride(0), view_.v_stride_head = v_array_.stride(1);
}

int64_t PagedCache::bytes() const {
  return 2 * view_.num_pages * view_.page_size * view_.num_kv_heads * view_.head_dim * bytes_of(view_.dtype);
}

namespace {

void convert_pages(const PagedCache& src, const PagedCache& dst, nb::handle src_pages, nb::handle dst_pages) {
  if (!dst.writable()) throw InvalidArgument("dst: a read-only array: expected one that can be written");
  expect_apart(dst.k_array(), "dst.k", src.k_array(), "src.k");
  expect_apart(dst.v_array(), "dst.v", src.v_array(), "src.v");
  const auto pages = [](nb::handle object, const char* name) {
    std::optional<Array> array;
    if (object.is_none()) return array;
    array = import_array(object, name, Access::kRead);
    expect_shape(*array, name, {{"n", -1}});
    return array;
  };
  const std::optional<Array> from = pages(src_pages, "src_pages"), to = pages(dst_pages, "dst_pages");
  if (from && to && from->extent(0) != to->extent(0)) {
    throw InvalidArgument("dst_pages: " + std::to_string(to->extent(0)) + " pages: expected src_pages' " +
                          std::to_string(from->extent(0)));
  }
  const int64_t n = from ? from->extent(0) : to ? to->extent(0) : src.view().num_pages;
  nb::gil_scoped_release release;
  convert(src.view(), int32_data(from), dst.view(), int32_data(to), n);
}

}  // namespace

void bind_cache(nb::module_& m) {
  nb::class_<PagedCache>(m, "Cache", kCacheDoc)
      .def(
          "__init__",
          [](PagedCache* cache, nb::object k, nb::object v, const std::string& layout,
             std::optional<std::string> dtype) {
            new (cache) PagedCache(std::move(k), std::move(v), layout, dtype.value_or(""));
          },
          nb::arg("k"), nb::arg("v"), nb::arg("layout") = "rows", nb::arg("dtype") = nb::none())
      .def_prop_ro("k", &PagedCache::k, "The array of keys that was given.")
      .def_prop_ro("v", &PagedCache::v, "The array of values that was given.")
      .def_prop_ro(
          "layout", [](const PagedCache& c) { return c.view().layout == PM_TILES ? "tiles" : "rows"; },
          "\"rows\" or \"tiles\".")
      .def_prop_ro(
          "dtype", [](const PagedCache& c) { return name_of(c.view().dtype); },
          "Name of the elements' dtype.")
      .def_prop_ro(
          "num_pages", [](const PagedCache& c) { return c.view().num_pages; }, "Pages of the cache.")
      .def_prop_ro(
          "page_size", [](const PagedCache& c) { return c.view().page_size; }, "P, tokens of a page.")
      .def_prop_ro(
          "num_kv_heads", [](const PagedCache& c) { return c.view().num_kv_heads; }, "K.")
      .def_prop_ro(
          "head_dim", [](const PagedCache& c) { return c.view().head_dim; }, "D.")
      .def_prop_ro("nbytes", &PagedCache::bytes, "Bytes of all keys and values.");
  m.def("convert_pages", &convert_pages, nb::arg("src"), nb::arg("dst"), nb::arg("src_pages").none(),
        nb::arg("dst_pages").none());
}

}  // namespace pagemill::python
