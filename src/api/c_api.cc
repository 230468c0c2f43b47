// The C ABI: arguments checked, then handed on.
#include <memory>
#include <new>
#include <system_error>

#include "api/validate.h"
#include "api/versioned.h"
#include "attention/convert_cache.h"
#include "exec/pool.h"
#include "exec/run.h"
#include "plan/costs.h"

namespace pagemill {
namespace {

pm_status read_executor(const pm_executor* in, pm_executor& out, const pm_executor*& used) {
  used = nullptr;
  if (!in) return PM_OK;
  out = PM_EXECUTOR_INIT;
  PM_TRY(read_versioned(in, "executor", out));
  if (!out.parallel_for)
    return fail(PM_INVALID_ARGUMENT, "executor.parallel_for = NULL: expected a function");
  used = &out;
  return PM_OK;
}

pm_status run(const pm_plan* plan, const pm_args* args, void* workspace, size_t bytes,
              const pm_executor* executor, Parts parts) {
  if (!plan) return fail(PM_INVALID_ARGUMENT, "plan = NULL: expected a plan");
  Step step;
  pm_executor read;
  const pm_executor* used;
  PM_TRY(validate_args(plan->current, args, parts, step));
  PM_TRY(validate_workspace(plan->current, workspace, bytes));
  PM_TRY(read_executor(executor, read, used));
  return run_step(plan->current, step, parts, static_cast<std::byte*>(workspace), used);
}

CacheView view_of(const pm_cache& c) {
  return {static_cast<std::byte*>(c.k),
          static_cast<std::byte*>(c.v),
          c.k_stride_page,
          c.k_stride_token,
          c.k_stride_head,
          c.v_stride_page,
          c.v_stride_token,
          c.v_stride_head,
          c.dtype,
          c.layout,
          c.page_size};
}

pm_status expect_same(const char* name, int32_t src, int32_t dst) {
  if (src == dst) return PM_OK;
  return fail(PM_INVALID_ARGUMENT, "dst.%s = %d: expected src.%s = %d", name, dst, name, src);
}

pm_status expect_pages(const char* name, const int32_t* pages, int64_t n, int64_t num_pages) {
  if (!pages && n > num_pages) {
    return fail(PM_INVALID_ARGUMENT, "n = %lld: expected at most the %lld pages of %s",
                static_cast<long long>(n), static_cast<long long>(num_pages), name);
  }
  for (int64_t i = 0; pages && i < n; ++i) {
    if (pages[i] < 0 || pages[i] >= num_pages) {
      return fail(PM_INVALID_ARGUMENT, "%s_pages[%lld] = %d: expected a page in [0, %lld)", name,
                  static_cast<long long>(i), pages[i], static_cast<long long>(num_pages));
    }
  }
  return PM_OK;
}

}  // namespace
}  // namespace pagemill

using namespace pagemill;

const char* pm_version(void) {
#define PM_STRING2(x) #x
#define PM_STRING(x) PM_STRING2(x)
  return PM_STRING(PM_VERSION_MAJOR) "." PM_STRING(PM_VERSION_MINOR) "." PM_STRING(PM_VERSION_PATCH);
}

pm_status pm_plan_create(pm_plan** plan) {
  if (!plan) return fail(PM_INVALID_ARGUMENT, "plan = NULL: expected where to put the plan");
  *plan = new (std::nothrow) pm_plan;
  return *plan ? PM_OK : fail(PM_OUT_OF_MEMORY, "plan: no memory");
}

void pm_plan_destroy(pm_plan* plan) {
  delete plan;
}

pm_status pm_plan_build(pm_plan* plan, const pm_config* config, const pm_batch* batch) {
  if (!plan) return fail(PM_INVALID_ARGUMENT, "plan = NULL: expected a plan");
  pm_config checked_config;
  pm_batch checked_batch;
  PM_TRY(validate_config(config, checked_config));
  PM_TRY(validate_batch(checked_config, batch, checked_batch));
  PM_TRY(build_plan(checked_config, checked_batch, plan->scratch, plan->next));
  std::swap(plan->current, plan->next);
  return PM_OK;
}

pm_status pm_plan_get_stats(const pm_plan* plan, pm_plan_stats* stats) {
  if (!plan) return fail(PM_INVALID_ARGUMENT, "plan = NULL: expected a plan");
  const PlanData& p = plan->current;
  pm_plan_stats out{};
  out.workspace_bytes = p.workspace.bytes;
  out.parts = p.parts;
  out.items = static_cast<int64_t>(p.items.size());
  for (const Item& item : p.items) {
    out.split_items += item.merge >= 0;
    out.merges += item.merge >= 0 && item.split == 0;
  }
  out.stored_tokens = p.stored_tokens;
  out.fused_tokens = p.fused_tokens;
  out.isa = p.isa ? p.isa->name : "";
  out.kernel = p.selection.kernel ? p.selection.kernel->name : "";
  return write_versioned(out, "stats", stats);
}

pm_status pm_plan_estimate(const pm_plan* plan, pm_estimate* estimate) {
  if (!plan) return fail(PM_INVALID_ARGUMENT, "plan = NULL: expected a plan");
  pm_estimate out{};
  try {
    out.unsplit_ns = plan->current.unsplit_ns;
    out.run_ns = simulate_run(plan->current);
  } catch (const std::bad_alloc&) {
    return fail(PM_OUT_OF_MEMORY, "estimate: no memory");
  }
  return write_versioned(out, "estimate", estimate);
}

pm_status pm_tune_get(const char* isa, pm_tune_info* info) {
  const Isa* found = nullptr;
  PM_TRY(find_isa(isa, found));
  const Costs& costs = costs_of(*found);
  pm_tune_info out{};
  out.isa = found->name;
  out.path = costs.path.c_str();
  out.tuned = costs.tuned;
  out.error = costs.error;
  out.problem = costs.problem.c_str();
  return write_versioned(out, "info", info);
}

pm_status pm_run(const pm_plan* plan, const pm_args* args, void* workspace, size_t workspace_bytes,
                 const pm_executor* executor) {
  return run(plan, args, workspace, workspace_bytes, executor, Parts::kBoth);
}

pm_status pm_store(const pm_plan* plan, const pm_args* args, void* workspace, size_t workspace_bytes,
                   const pm_executor* executor) {
  return run(plan, args, workspace, workspace_bytes, executor, Parts::kStore);
}

pm_status pm_attend(const pm_plan* plan, const pm_args* args, void* workspace, size_t workspace_bytes,
                    const pm_executor* executor) {
  return run(plan, args, workspace, workspace_bytes, executor, Parts::kAttend);
}

pm_status pm_run_part(const pm_plan* plan, const pm_args* args, void* workspace, size_t workspace_bytes,
                      int32_t phase, int32_t part, int32_t parts) {
  if (!plan) return fail(PM_INVALID_ARGUMENT, "plan = NULL: expected a plan");
  Step step;
  PM_TRY(validate_args(plan->current, args, Parts::kBoth, step));
  PM_TRY(validate_workspace(plan->current, workspace, workspace_bytes));
  if (phase < 0 || phase >= PM_PHASES) return fail(PM_INVALID_ARGUMENT, "phase = %d: expected 0 or 1", phase);
  if (parts < 1 || parts > plan->current.config.threads) {
    return fail(PM_INVALID_ARGUMENT, "parts = %d: expected 1 to the plan's %d threads", parts,
                plan->current.config.threads);
  }
  if (part < 0 || part >= parts)
    return fail(PM_INVALID_ARGUMENT, "part = %d: expected 0 to %d", part, parts - 1);
  run_phase(plan->current, step, static_cast<std::byte*>(workspace), phase, part, parts);
  return PM_OK;
}

pm_status pm_attention(const pm_config* config, const pm_batch* batch, const pm_args* args,
                       const pm_executor* executor) {
  struct FreeAligned {
    void operator()(std::byte* p) const { ::operator delete(p, std::align_val_t{64}); }
  };
  const std::unique_ptr<pm_plan> plan(new (std::nothrow) pm_plan);
  if (!plan) return fail(PM_OUT_OF_MEMORY, "plan: no memory");
  PM_TRY(pm_plan_build(plan.get(), config, batch));
  const size_t bytes = plan->current.workspace.bytes;
  const std::unique_ptr<std::byte, FreeAligned> workspace(
      static_cast<std::byte*>(::operator new(bytes + 1, std::align_val_t{64}, std::nothrow)));
  if (!workspace) return fail(PM_OUT_OF_MEMORY, "workspace: no memory for %zu bytes", bytes);
  return pm_run(plan.get(), args, workspace.get(), bytes, executor);
}

pm_status pm_merge(pm_dtype dtype, int64_t rows, int32_t head_dim, const void* a, const float* lse_a,
                   const void* b, const float* lse_b, void* out, float* out_lse) {
  PM_TRY(expect_dtype(dtype, "dtype"));
  if (rows < 0)
    return fail(PM_INVALID_ARGUMENT, "rows = %lld: expected at least 0", static_cast<long long>(rows));
  if (head_dim < 1) return fail(PM_INVALID_ARGUMENT, "head_dim = %d: expected at least 1", head_dim);
  if (rows == 0) return PM_OK;
  PM_TRY(expect_pointer(a, "a", dtype_bytes(dtype)));
  PM_TRY(expect_pointer(lse_a, "lse_a", 4));
  PM_TRY(expect_pointer(b, "b", dtype_bytes(dtype)));
  PM_TRY(expect_pointer(lse_b, "lse_b", 4));
  PM_TRY(expect_pointer(out, "out", dtype_bytes(dtype)));
  if (out_lse) PM_TRY(expect_pointer(out_lse, "out_lse", 4));
  for (int64_t row = 0; row < rows; ++row) {
    const int64_t at = row * head_dim * dtype_bytes(dtype);
    const float lse =
        merge_row(dtype, head_dim, static_cast<const std::byte*>(a) + at, lse_a[row],
                  static_cast<const std::byte*>(b) + at, lse_b[row], static_cast<std::byte*>(out) + at);
    if (out_lse) out_lse[row] = lse;
  }
  return PM_OK;
}

pm_status pm_convert(const pm_cache* src, const int32_t* src_pages, const pm_cache* dst,
                     const int32_t* dst_pages, int64_t n) {
  pm_cache from, to;
  PM_TRY(validate_cache(src, "src", from));
  PM_TRY(validate_cache(dst, "dst", to));
  PM_TRY(expect_same("num_kv_heads", from.num_kv_heads, to.num_kv_heads));
  PM_TRY(expect_same("head_dim", from.head_dim, to.head_dim));
  PM_TRY(expect_same("page_size", from.page_size, to.page_size));
  if (n < 0) return fail(PM_INVALID_ARGUMENT, "n = %lld: expected at least 0", static_cast<long long>(n));
  PM_TRY(expect_pages("src", src_pages, n, from.num_pages));
  PM_TRY(expect_pages("dst", dst_pages, n, to.num_pages));
  CacheView in = view_of(from), out = view_of(to);
  PM_TRY(validate_cache_view(in, from.num_kv_heads, from.head_dim, from.num_pages));
  PM_TRY(validate_cache_view(out, to.num_kv_heads, to.head_dim, to.num_pages));
  for (int64_t i = 0; i < n; ++i) {
    convert_page(in, src_pages ? src_pages[i] : static_cast<int32_t>(i), out,
                 dst_pages ? dst_pages[i] : static_cast<int32_t>(i), from.num_kv_heads, from.head_dim);
  }
  return PM_OK;
}

pm_status pm_pool_create(int32_t threads, pm_pool** pool) {
  if (!pool) return fail(PM_INVALID_ARGUMENT, "pool = NULL: expected where to put the pool");
  if (threads < 0 || threads > 4096)
    return fail(PM_INVALID_ARGUMENT, "threads = %d: expected 0 to 4096", threads);
  try {
    *pool = new pm_pool{ThreadPool(threads ? threads : pm_default_threads())};
  } catch (const std::exception& error) {
    return fail(PM_OUT_OF_MEMORY, "threads = %d: %s", threads, error.what());
  }
  return PM_OK;
}

void pm_pool_destroy(pm_pool* pool) {
  delete pool;
}

pm_status pm_pool_executor(pm_pool* pool, pm_executor* executor) {
  if (!pool) return fail(PM_INVALID_ARGUMENT, "pool = NULL: expected a pool");
  return write_versioned(pool->pool.executor(), "executor", executor);
}

int32_t pm_isa_count(void) {
  return isa_count();
}

pm_status pm_isa_get(int32_t index, pm_isa_info* info) {
  if (index < 0 || index >= isa_count()) {
    return fail(PM_INVALID_ARGUMENT, "index = %d: expected 0 to %d", index, isa_count() - 1);
  }
  const Isa* selected = nullptr;
  PM_TRY(find_isa(nullptr, selected));
  const Isa& isa = isa_at(index);
  pm_isa_info out{};
  out.name = isa.name;
  out.available = isa.missing == nullptr;
  out.selected = &isa == selected;
  out.reason = out.selected       ? ""
               : isa.missing      ? isa.missing
               : isa.by_name_only ? "for tests: only by name"
                                  : "another is preferred";
  return write_versioned(out, "info", info);
}

int32_t pm_kernel_count(void) {
  return kernel_count();
}

pm_status pm_kernel_get(int32_t index, pm_kernel_info* info) {
  if (index < 0 || index >= kernel_count()) {
    return fail(PM_INVALID_ARGUMENT, "index = %d: expected 0 to %d", index, kernel_count() - 1);
  }
  const Kernel& kernel = kernel_at(index);
  pm_kernel_info out{};
  out.name = kernel.name;
  out.isa = kernel.isa->name;
  out.head_dim = kernel.head_dim;
  return write_versioned(out, "info", info);
}
