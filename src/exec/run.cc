#include "exec/run.h"

#include <algorithm>
#include <new>

#include "api/status.h"
#include "exec/pool.h"

namespace pagemill {
namespace {

struct Run {
  const PlanData& plan;
  Step& step;
  Parts which;
  std::byte* workspace;

  ItemQueue queue() const {
    return {plan.items.data(), plan.items.size(), *reinterpret_cast<std::atomic<size_t>*>(workspace)};
  }
  std::byte* scratch(int32_t part) const {
    return workspace + plan.workspace.scratch + plan.workspace.scratch_stride * static_cast<size_t>(part);
  }

  void bind() const {
    step.arrivals = reinterpret_cast<std::atomic<int32_t>*>(workspace + plan.workspace.arrivals);
    step.partials = reinterpret_cast<float*>(workspace + plan.workspace.partials);
  }

  void reset_counters() const {
    new (workspace) std::atomic<size_t>(0);
    const size_t arrivals = plan.merges.size() * static_cast<size_t>(step.num_kv_heads);
    for (size_t i = 0; i < arrivals; ++i) new (step.arrivals + i) std::atomic<int32_t>(0);
  }

  bool stores_before() const {
    return which == Parts::kStore || (which == Parts::kBoth && plan.stored_tokens > 0);
  }

  // The tokens of this part's share of the step that no item stores, or all with Parts::kStore.
  void store_share(int32_t part, int32_t parts) const {
    const auto begin = static_cast<int32_t>(plan.num_queries * part / parts);
    const auto end = static_cast<int32_t>(plan.num_queries * (part + 1) / parts);
    auto s =
        std::upper_bound(plan.sequences.begin(), plan.sequences.end(), begin,
                         [](int32_t row, const Sequence& seq) { return row < seq.query_begin + seq.q_len; });
    Scratch carved;
    scratch_layout(scratch(part), plan.scratch_rows, step.head_dim, step.batch_invariant, carved);
    for (; s != plan.sequences.end() && s->query_begin < end; ++s) {
      if (s->fused && which != Parts::kStore) continue;
      const int32_t first = std::max(begin - s->query_begin, 0),
                    last = std::min(end - s->query_begin, s->q_len);
      for (int32_t head = 0; head < step.num_kv_heads; ++head) {
        plan.selection.store(step, *s, head, first, last, carved.raw);
      }
    }
  }

  // Takes items until none is left.
  void attend_share(int32_t part) const {
    std::byte* base = scratch(part);
    ItemQueue items = queue();
    const Item* item = items.take();
    while (item) item = plan.selection.kernel->attend(step, *item, items, base, plan.scratch_rows);
  }
};

}  // namespace

pm_status run_step(const PlanData& plan, Step& step, Parts which, std::byte* workspace,
                   const pm_executor* executor) {
  if (plan.items.empty()) return PM_OK;
  const Run run{plan, step, which, workspace};
  run.bind();
  run.reset_counters();
  if (plan.parts == 1) {
    if (run.stores_before()) run.store_share(0, 1);
    if (which != Parts::kStore) run.attend_share(0);
    return PM_OK;
  }
  pm_executor own;
  if (!executor) {
    PM_TRY(default_executor(own));
    executor = &own;
  }
  const auto parallel = [&](void (*task)(void*, int32_t)) {
    executor->parallel_for(executor->context, plan.parts, task, const_cast<Run*>(&run));
  };
  if (run.stores_before()) {
    parallel([](void* arg, int32_t part) {
      const Run& r = *static_cast<const Run*>(arg);
      r.store_share(part, r.plan.parts);
    });
  }
  if (which != Parts::kStore) {
    parallel([](void* arg, int32_t part) { static_cast<const Run*>(arg)->attend_share(part); });
  }
  return PM_OK;
}

void run_phase(const PlanData& plan, Step& step, std::byte* workspace, int32_t phase, int32_t part,
               int32_t parts) {
  if (plan.items.empty()) return;
  const Run run{plan, step, Parts::kBoth, workspace};
  run.bind();
  if (part >= plan.parts) return;  // a step too small for all of the host's threads
  parts = std::min(parts, plan.parts);
  if (phase == 0) {
    if (part == 0) run.reset_counters();
    if (plan.config.write_cache && plan.stored_tokens > 0) run.store_share(part, parts);
  } else {
    run.attend_share(part);
  }
}

}  // namespace pagemill
