#include <algorithm>
#include <new>

#include "api/status.h"
#include "plan/costs.h"
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

PlanCosts costs_for(const PlanData& plan) {
  const pm_config& c = plan.config;
  const CostModel model = costs_of(*plan.isa).model(plan.selection.kernel->mma, c.threads);
  const UnitCost unit = model.unit(c.head_dim, dtype_bytes(c.cache_dtype), c.layout != PM_TILES);
  return {unit, model.merge, model.store * 2 * c.head_dim};
}

// Tokens that the busiest part stores before attention, as a run shares them out.
int64_t most_stored(const PlanData& plan) {
  int64_t most = 0;
  size_t b = 0;
  for (int64_t part = 0; part < plan.parts; ++part) {
    const int64_t begin = plan.num_queries * part / plan.parts,
                  end = plan.num_queries * (part + 1) / plan.parts;
    int64_t stored = 0;
    while (b < plan.sequences.size()) {
      const Sequence& s = plan.sequences[b];
      const int64_t last = int64_t{s.query_begin} + s.q_len;
      if (!s.fused)
        stored += std::max<int64_t>(0, std::min(end, last) - std::max<int64_t>(begin, s.query_begin));
      if (last > end) break;
      ++b;
    }
    most = std::max(most, stored);
  }
  return most;
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
  plan.costs_of = costs_for(plan);
  PM_TRY(build_pages(batch, scratch, plan));
  build_items(scratch, plan);
  plan.stored_tokens = plan.fused_tokens = 0;
  for (const Sequence& s : plan.sequences) (s.fused ? plan.fused_tokens : plan.stored_tokens) += s.q_len;
  if (!config.write_cache) plan.stored_tokens = 0;
  plan.unsplit_ns +=
      plan.costs_of.store_token * static_cast<double>(plan.stored_tokens) * config.num_kv_heads;
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

double simulate_run(const PlanData& plan) {
  Simulation simulation;
  simulation.set_shape(plan.config.num_kv_heads, plan.config.head_dim, plan.costs_of.merge_float);
  const double attend = simulation.run(plan, false, plan.parts);
  if (plan.stored_tokens == 0) return attend;
  return attend +
         plan.costs_of.store_token * static_cast<double>(most_stored(plan)) * plan.config.num_kv_heads;
}

}  // namespace pagemill
