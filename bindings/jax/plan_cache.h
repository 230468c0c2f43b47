// Plans of recent steps: the layers of a step bring the same metadata, and are planned for once.
#pragma once

#include <pagemill/pagemill.hpp>

#include <cstdint>
#include <memory>
#include <mutex>
#include <span>
#include <vector>

namespace pagemill::jax {

struct StepMetadata {
  std::span<const int32_t> query_start;  // [B + 1]
  std::span<const int32_t> kv_len;       // [B]
  std::span<const int32_t> page_table;   // [B, pages_per_seq]
  int32_t pages_per_seq;
};

struct PlannedStep {
  Plan plan;
  size_t workspace_bytes;
};

class PlanCache {
 public:
  static PlanCache& of_process();

  // The plan for this configuration and metadata, made unless it is one of the last kPlans that were asked
  // for. While one thread plans the others wait: devices that share a step get one plan. Throws what
  // Plan::build throws.
  std::shared_ptr<const PlannedStep> get(const Config& config, const StepMetadata& step);

  int64_t plans_made() const;

 private:
  static constexpr size_t kPlans =
      16;  // kinds of layers (windows, head dims) times devices with batches of their own

  struct Entry {
    Config config;
    std::vector<int32_t> query_start, kv_len, page_table;
    std::shared_ptr<PlannedStep> planned;
    uint64_t last_used;
  };
  static bool matches(const Entry& entry, const Config& config, const StepMetadata& step);
  Entry& oldest();

  mutable std::mutex mutex_;
  std::vector<Entry> entries_;
  uint64_t clock_ = 0;
  int64_t plans_made_ = 0;
};

}  // namespace pagemill::jax
