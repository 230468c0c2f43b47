// A paged cache as Python holds it: two arrays, and what the C ABI calls them.
#pragma once

#include "arrays.h"

namespace pagemill::python {

class PagedCache {
 public:
  // dtype: of arrays of bits; "": the arrays' own.
  PagedCache(nb::object k, nb::object v, const std::string& layout, const std::string& dtype);

  nb::any k() const { return nb::borrow<nb::any>(k_); }
  nb::any v() const { return nb::borrow<nb::any>(v_); }
  const pagemill::Cache& view() const { return view_; }
  const Array& k_array() const { return k_array_; }
  const Array& v_array() const { return v_array_; }
  bool writable() const { return writable_; }
  int64_t bytes() const;

 private:
  void read_rows();
  void read_tiles();

  nb::object k_, v_;
  Array k_array_, v_array_;
  pagemill::Cache view_;
  bool writable_;
};

void bind_cache(nb::module_& m);

}  // namespace pagemill::python
