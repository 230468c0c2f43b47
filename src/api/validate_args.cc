#include <cinttypes>
#include <cmath>
#include <cstring>

#include "api/validate.h"
#include "api/versioned.h"
#include "dispatch/cpu.h"

namespace pagemill {
namespace {

struct Extent {
  const char* name;
  int64_t tokens, heads, dim;
};

// Fills in default strides of a [tokens, heads, dim] tensor and checks pointer and strides.
pm_status expect_tensor(const Extent& e, pm_dtype dtype, const void* data, int64_t stride_token,
                        int64_t stride_head, Tensor& out) {
  if (stride_token == 0) stride_token = e.heads * e.dim;
  if (stride_head == 0) stride_head = e.dim;
  out = {static_cast<std::byte*>(const_cast<void*>(data)), stride_token, stride_head};
  if (e.tokens == 0) return PM_OK;
  PM_TRY(expect_pointer(data, e.name, dtype_bytes(dtype)));
  if (e.tokens > 1 && stride_token < e.dim) {
    return fail(PM_INVALID_ARGUMENT, "%s_stride_token = %" PRId64 ": expected at least head_dim = %" PRId64,
                e.name, stride_token, e.dim);
  }
  if (e.heads > 1 && stride_head < e.dim) {
    return fail(PM_INVALID_ARGUMENT, "%s_stride_head = %" PRId64 ": expected at least head_dim = %" PRId64,
                e.name, stride_head, e.dim);
  }
  return PM_OK;
}

pm_status expect_no_self_overlap(const Extent& e, const Tensor& t) {
  if (e.tokens < 2 || e.heads < 2) return PM_OK;
  const bool tokens_outside = t.stride_token >= t.stride_head;
  const int64_t outer = tokens_outside ? t.stride_token : t.stride_head;
  const int64_t inner = tokens_outside ? t.stride_head : t.stride_token;
  const int64_t count = tokens_outside ? e.heads : e.tokens;
  if (outer >= inner * (count - 1) + e.dim) return PM_OK;
  return fail(PM_INVALID_ARGUMENT,
              "%s_stride_token = %" PRId64 ", %s_stride_head = %" PRId64
              ": expected rows that do not overlap",
              e.name, t.stride_token, e.name, t.stride_head);
}

pm_status expect_scalars(const pm_args& a) {
  if (!std::isfinite(a.scale)) {
    return fail(PM_INVALID_ARGUMENT, "scale = %g: expected a finite number (0 = 1 / sqrt(head_dim))",
                double{a.scale});
  }
  if (!(a.soft_cap >= 0) || !std::isfinite(a.soft_cap)) {
    return fail(PM_INVALID_ARGUMENT, "soft_cap = %g: expected a positive number, or 0 for none",
                double{a.soft_cap});
  }
  const struct {
    const char* name;
    float value;
  } scales[] = {{"q_scale", a.q_scale}, {"k_scale", a.k_scale}, {"v_scale", a.v_scale}};
  for (const auto& s : scales) {
    if (!(s.value > 0) || !std::isfinite(s.value)) {
      return fail(PM_INVALID_ARGUMENT, "%s = %g: expected a positive number", s.name, double{s.value});
    }
  }
  return PM_OK;
}

pm_status expect_cache_stride(const char* name, int64_t stride, int64_t count, int64_t least,
                              int64_t multiple) {
  if (count < 2) return PM_OK;
  if (stride < least) {
    return fail(PM_INVALID_ARGUMENT, "%s = %" PRId64 ": expected at least %" PRId64 " elements", name, stride,
                least);
  }
  if (stride % multiple != 0) {
    return fail(PM_INVALID_ARGUMENT,
                "%s = %" PRId64 ": expected a multiple of %" PRId64 " elements (64 bytes)", name, stride,
                multiple);
  }
  return PM_OK;
}

}  // namespace

pm_status expect_pointer(const void* pointer, const char* name, int64_t alignment) {
  if (!pointer) return fail(PM_INVALID_ARGUMENT, "%s = NULL: expected an array", name);
  if (reinterpret_cast<uintptr_t>(pointer) % static_cast<uintptr_t>(alignment) != 0) {
    return fail(PM_INVALID_ARGUMENT, "%s = %p: expected alignment to %" PRId64 " bytes", name, pointer,
                alignment);
  }
  return PM_OK;
}

pm_status validate_cache_view(CacheView& c, int32_t num_kv_heads, int32_t head_dim, int64_t num_pages) {
  const bool tiles = c.layout == PM_TILES;
  const int64_t element = dtype_bytes(c.dtype), plane = int64_t{c.page_size} * head_dim;
  const int64_t alignment = tiles ? 64 : element, multiple = alignment / element;
  const auto fill = [&](int64_t& page, int64_t& token, int64_t& head) {
    if (page == 0) page = (tiles ? 2 : 1) * plane * num_kv_heads;
    if (token == 0) token = int64_t{num_kv_heads} * head_dim;
    if (head == 0) head = tiles ? 2 * plane : head_dim;
  };
  fill(c.k_page, c.k_token, c.k_head);
  fill(c.v_page, c.v_token, c.v_head);
  if (num_pages == 0) return PM_OK;
  PM_TRY(expect_pointer(c.k, "k_cache", alignment));
  PM_TRY(expect_pointer(c.v, "v_cache", alignment));
  const int64_t least = tiles ? plane : head_dim, tokens = tiles ? 1 : c.page_size;
  PM_TRY(expect_cache_stride("k_stride_page", c.k_page, num_pages, least, multiple));
  PM_TRY(expect_cache_stride("k_stride_token", c.k_token, tokens, least, multiple));
  PM_TRY(expect_cache_stride("k_stride_head", c.k_head, num_kv_heads, least, multiple));
  PM_TRY(expect_cache_stride("v_stride_page", c.v_page, num_pages, least, multiple));
  PM_TRY(expect_cache_stride("v_stride_token", c.v_token, tokens, least, multiple));
  return expect_cache_stride("v_stride_head", c.v_head, num_kv_heads, least, multiple);
}

namespace {

pm_status expect_cache(const PlanData& plan, const pm_args& a, const Tensor& k_new, const Tensor& v_new,
                       CacheView& out) {
  const pm_config& c = plan.config;
  if (c.layout == PM_NO_CACHE) {
    out = {k_new.data,
           v_new.data,
           0,
           k_new.stride_token,
           k_new.stride_head,
           0,
           v_new.stride_token,
           v_new.stride_head,
           c.dtype,
           PM_NO_CACHE,
           1};
    return PM_OK;
  }
  out = {static_cast<std::byte*>(a.k_cache),
         static_cast<std::byte*>(a.v_cache),
         a.k_stride_page,
         a.k_stride_token,
         a.k_stride_head,
         a.v_stride_page,
         a.v_stride_token,
         a.v_stride_head,
         c.cache_dtype,
         c.layout,
         c.page_size};
  return validate_cache_view(out, c.num_kv_heads, c.head_dim, plan.pages.empty() ? 0 : c.num_pages);
}

pm_status expect_output(const PlanData& plan, const pm_args& a, Step& step) {
  const pm_config& c = plan.config;
  const Extent extent{"out", plan.num_queries, c.num_heads, c.head_dim};
  PM_TRY(expect_tensor(extent, c.out_dtype, a.out, a.out_stride_token, a.out_stride_head, step.out));
  PM_TRY(expect_no_self_overlap(extent, step.out));
  step.lse_stride = a.lse_stride_token ? a.lse_stride_token : c.num_heads;
  step.lse = a.lse;
  if (a.lse) PM_TRY(expect_pointer(a.lse, "lse", 4));
  if (a.lse && plan.num_queries > 1 && step.lse_stride < c.num_heads) {
    return fail(PM_INVALID_ARGUMENT, "lse_stride_token = %" PRId64 ": expected at least num_heads = %d",
                step.lse_stride, c.num_heads);
  }
  return PM_OK;
}

}  // namespace

pm_status validate_args(const PlanData& plan, const pm_args* in, Parts parts, Step& step) {
  const pm_config& c = plan.config;
  pm_args a = PM_ARGS_INIT;
  PM_TRY(read_versioned(in, "args", a));
  if (parts == Parts::kStore && !c.write_cache) {
    return fail(PM_INVALID_ARGUMENT, "write_cache = 0: expected a plan that writes the cache");
  }
  step = {};
  step.num_heads = c.num_heads;
  step.num_kv_heads = c.num_kv_heads;
  step.group = c.num_heads / c.num_kv_heads;
  step.head_dim = c.head_dim;
  step.dtype = c.dtype;
  step.out_dtype = c.out_dtype;
  const int64_t n = plan.num_queries;
  if ((c.write_cache && parts != Parts::kAttend) || c.layout == PM_NO_CACHE) {
    PM_TRY(expect_tensor({"k_new", n, c.num_kv_heads, c.head_dim}, c.dtype, a.k_new, a.k_new_stride_token,
                         a.k_new_stride_head, step.k_new));
    PM_TRY(expect_tensor({"v_new", n, c.num_kv_heads, c.head_dim}, c.dtype, a.v_new, a.v_new_stride_token,
                         a.v_new_stride_head, step.v_new));
  }
  if (parts != Parts::kStore) {
    PM_TRY(expect_tensor({"q", n, c.num_heads, c.head_dim}, c.dtype, a.q, a.q_stride_token, a.q_stride_head,
                         step.q));
    PM_TRY(expect_output(plan, a, step));
    if (a.sinks) PM_TRY(expect_pointer(a.sinks, "sinks", 4));
    if (a.alibi_slopes) PM_TRY(expect_pointer(a.alibi_slopes, "alibi_slopes", 4));
  }
  PM_TRY(expect_cache(plan, a, step.k_new, step.v_new, step.cache));
  PM_TRY(expect_scalars(a));

  step.scale =
      (a.scale == 0 ? 1.0f / std::sqrt(static_cast<float>(c.head_dim)) : a.scale) * a.q_scale * a.k_scale;
  step.soft_cap = a.soft_cap;
  step.k_scale = a.k_scale;
  step.v_scale = a.v_scale;
  step.sinks = a.sinks;
  step.alibi_slopes = a.alibi_slopes;
  step.window = plan.window;
  step.sequences = plan.sequences.data();
  step.pages = plan.pages.data();
  step.merges = plan.merges.data();
  step.batch_invariant = c.batch_invariant != 0;
  step.fuse = c.write_cache && parts == Parts::kBoth;
  step.vbmi = cpu_features().avx512_vbmi;
  step.many_streams = cpu_features().many_streams;
  return PM_OK;
}

pm_status validate_workspace(const PlanData& plan, const void* workspace, size_t bytes) {
  if (plan.workspace.bytes == 0) return PM_OK;
  PM_TRY(expect_pointer(workspace, "workspace", 64));
  if (bytes >= plan.workspace.bytes) return PM_OK;
  return fail(PM_INVALID_ARGUMENT, "workspace_bytes = %zu: expected at least the plan's %zu", bytes,
              plan.workspace.bytes);
}

pm_status validate_cache(const pm_cache* in, const char* name, pm_cache& out) {
  out = PM_CACHE_INIT;
  PM_TRY(read_versioned(in, name, out));
  pm_config config = PM_CONFIG_INIT;
  config.num_heads = config.num_kv_heads = out.num_kv_heads;
  config.head_dim = out.head_dim;
  config.page_size = out.page_size;
  config.num_pages = out.num_pages;
  config.layout = out.layout;
  config.cache_dtype = out.dtype;
  pm_config checked;
  PM_TRY(validate_config(&config, checked));
  if (out.layout == PM_NO_CACHE) {
    return fail(PM_INVALID_ARGUMENT, "%s.layout = PM_NO_CACHE: expected PM_TILES or PM_ROWS", name);
  }
  return PM_OK;
}

}  // namespace pagemill
