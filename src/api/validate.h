// The caller's arguments, checked once: what comes out is complete (defaults filled in) and consistent.
#pragma once

#include "attention/step.h"
#include "plan/plan.h"

namespace pagemill {

pm_status validate_config(const pm_config* in, pm_config& out);
// All of a batch but the pages that it names: build_pages reads those once, and checks them as it does.
pm_status validate_batch(const pm_config& config, const pm_batch* in, pm_batch& out);

enum class Parts { kStore, kAttend, kBoth };  // of a step
// Fills in `step` for the plan but for what lies in the workspace.
pm_status validate_args(const PlanData& plan, const pm_args* in, Parts parts, Step& step);
pm_status validate_workspace(const PlanData& plan, const void* workspace, size_t bytes);

pm_status validate_cache(const pm_cache* in, const char* name, pm_cache& out);
pm_status validate_cache_view(CacheView& view, int32_t num_kv_heads, int32_t head_dim, int64_t num_pages);

pm_status expect_pointer(const void* pointer, const char* name, int64_t alignment);
pm_status expect_dtype(pm_dtype dtype, const char* name);

}  // namespace pagemill
