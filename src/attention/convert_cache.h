// Whole pages between layouts and dtypes, and the merge of finished results: plain C++ for every machine.
#pragma once

#include "attention/step.h"

namespace pagemill {

// Page `from` of src to page `to` of dst.
void convert_page(const CacheView& src, int32_t from, const CacheView& dst, int32_t to, int32_t num_kv_heads,
                  int32_t head_dim);

// As pm_merge, for one row.
float merge_row(pm_dtype dtype, int32_t head_dim, const std::byte* a, float lse_a, const std::byte* b,
                float lse_b, std::byte* out);

}  // namespace pagemill
