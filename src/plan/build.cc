#include <new>

#include "api/status.h"
#include "plan/plan.h"

namespace pagemill {
namespace {

constexpr size_t kLine = 64;
constexpr size_t lines(size_t bytes) {
  return (bytes + kLine - 1) / kLine * kLine;
}

WorkspaceLayout lay_out(const PlanData& plan) {
  const auto kv_heads = static_cast<size_t>(plan.config.num_kv_heads);
  WorkspaceLayout w;
  w.arrivals = kLine;
  w.scratch = w.arrivals + lines(plan.merges.size() * kv_heads * sizeof(int32_t));
  Scratch measured;
  w.scratch_stride = scratch_layout(nullptr, plan.scratch_rows, plan.config.head_dim,
                                    plan.config.batch_invariant != 0, measured);
  w.partials = w.scratch + w.scratch_stride * static_cast<size_t>(plan.parts);
  w.bytes = w.partials;
  if (!plan.merges.empty()) {
    const Merge& last = plan.merges.back();
    w.bytes += (static_cast<size_t>(last.partial_offset) +
                kv_heads * static_cast<size_t>(last.num_splits) * static_cast<size_t>(last.rows) *
                    static_cast<size_t>(plan.config.head_dim + 2)) *
               sizeof(float);
  }
  w.bytes = plan.items.empty() ? 0 : lines(w.bytes);
  return w;
}

pm_status build(const pm_config& config, const pm_batch& batch, PlanScratch& scratch, PlanData& plan) {
  constexpr int64_t kUnbounded = int64_t{1} << 40;
  plan.config = config;
  plan.config.isa = nullptr;  // the caller's string need not outlive the call
  PM_TRY(find_isa(config.isa, plan.isa));
  PM_TRY(select_kernel(*plan.isa, config.dtype, config.cache_dtype, config.head_dim, plan.selection));
  plan.window = {config.window_left < 0 ? kUnbounded : config.window_left,
                 config.window_right < 0 ? kUnbounded : config.window_right};
  plan.num_queries = batch.num_seqs ? batch.query_start[batch.num_seqs] : 0;
  PM_TRY(build_pages(batch, scratch.writers, plan));
  build_items(scratch, plan);
  plan.stored_tokens = plan.fused_tokens = 0;
  for (const Sequence& s : plan.sequences) (s.fused ? plan.fused_tokens : plan.stored_tokens) += s.q_len;
  if (!config.write_cache) plan.stored_tokens = 0;
  plan.workspace = lay_out(plan);
  return PM_OK;
}

}  // namespace

pm_status build_plan(const pm_config& config, const pm_batch& batch, PlanScratch& scratch, PlanData& plan) {
  try {
    return build(config, batch, scratch, plan);
  } catch (const std::bad_alloc&) {
    return fail(PM_OUT_OF_MEMORY, "plan: no memory for num_seqs = %d", batch.num_seqs);
  }
}

}  // namespace pagemill
