#include "plan_cache.h"

#include <algorithm>
#include <tuple>
#include <utility>

namespace pagemill::jax {
namespace {

bool same(std::span<const int32_t> a, const std::vector<int32_t>& b) {
  return a.size() == b.size() && std::equal(a.begin(), a.end(), b.begin());
}

// Those that the front end sets.
auto fields(const Config& c) {
  return std::tie(c.num_heads, c.num_kv_heads, c.head_dim, c.dtype, c.out_dtype, c.cache_dtype, c.page_size,
                  c.num_pages, c.causal, c.window_left, c.write_cache, c.threads);
}

}  // namespace

PlanCache& PlanCache::of_process() {
  static auto* cache = new PlanCache;  // XLA's threads may outlive static objects
  return *cache;
}

bool PlanCache::matches(const Entry& entry, const Config& config, const StepMetadata& step) {
  return fields(entry.config) == fields(config) && same(step.kv_len, entry.kv_len) &&
         same(step.query_start, entry.query_start) && same(step.page_table, entry.page_table);
}

PlanCache::Entry& PlanCache::oldest() {
  if (entries_.size() < kPlans) return entries_.emplace_back();
  return *std::min_element(entries_.begin(), entries_.end(),
                           [](const Entry& a, const Entry& b) { return a.last_used < b.last_used; });
}

std::shared_ptr<const PlannedStep> PlanCache::get(const Config& config, const StepMetadata& step) {
  const std::lock_guard lock(mutex_);
  for (Entry& entry : entries_) {
    if (entry.planned && matches(entry, config, step)) {
      entry.last_used = ++clock_;
      return entry.planned;
    }
  }
  Entry& entry = oldest();
  std::shared_ptr<PlannedStep> planned = std::move(entry.planned);
  entry.planned = nullptr;  // stays empty if planning fails
  if (!planned || planned.use_count() > 1) planned = std::make_shared<PlannedStep>();

  Batch batch;
  batch.num_seqs = static_cast<int32_t>(step.kv_len.size());
  batch.query_start = step.query_start.data();
  batch.num_tokens = batch.num_seqs > 0 ? std::max(0, step.query_start.back()) : 0;
  batch.kv_len = step.kv_len.data();
  batch.page_table = step.page_table.data();
  batch.pages_per_seq = step.pages_per_seq;
  planned->plan.build(config, batch);
  planned->workspace_bytes = planned->plan.stats().workspace_bytes;
  ++plans_made_;

  entry.config = config;
  entry.query_start.assign(step.query_start.begin(), step.query_start.end());
  entry.kv_len.assign(step.kv_len.begin(), step.kv_len.end());
  entry.page_table.assign(step.page_table.begin(), step.page_table.end());
  entry.last_used = ++clock_;
  entry.planned = planned;
  return planned;
}

int64_t PlanCache::plans_made() const {
  const std::lock_guard lock(mutex_);
  return plans_made_;
}

}  // namespace pagemill::jax
