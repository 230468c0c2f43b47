#include "planning.h"

#include <algorithm>
#include <limits>
#include <numeric>

#include "peaks.h"

namespace pagemill {
namespace {

PlannedStep plan_step(Plan& plan, const Config& config, const Batch& batch) {
  const double before = clock_seconds(1);
  plan.build(config, batch);
  const double plan_seconds = clock_seconds(1) - before;
  const pm_estimate estimate = plan.estimate();
  return {batch.num_seqs, estimate.unsplit_ns * 1e-9, estimate.run_ns * 1e-9, plan_seconds};
}

double quantile(std::vector<double>& sorted, double q) {
  if (sorted.empty()) return std::numeric_limits<double>::quiet_NaN();
  return sorted[static_cast<size_t>(q * static_cast<double>(sorted.size() - 1))];
}

}  // namespace

std::vector<PlannedStep> plan_trace(const Trace& trace, const Config& config, int max_seqs, int32_t budget,
                                    const std::function<bool(const std::vector<PlannedStep>&)>& on_step) {
  Schedule schedule(trace, {config.page_size, static_cast<int32_t>(config.num_pages), max_seqs, budget});
  std::vector<PlannedStep> steps;
  Plan plan;
  while (schedule.next()) {
    steps.push_back(plan_step(plan, config, schedule.batch()));
    if (!on_step(steps)) break;
  }
  return steps;
}

PlannedStep plan_decodes(Config config, int sequences, int32_t keys) {
  const int32_t pages = (keys + config.page_size - 1) / config.page_size;
  std::vector<int32_t> query_start(sequences + 1), kv_len(sequences, keys), table(int64_t{sequences} * pages);
  std::iota(query_start.begin(), query_start.end(), 0);
  std::iota(table.begin(), table.end(), 0);
  config.num_pages = std::ssize(table);
  Batch batch;
  batch.num_seqs = sequences;
  batch.num_tokens = sequences;
  batch.query_start = query_start.data();
  batch.kv_len = kv_len.data();
  batch.page_table = table.data();
  batch.pages_per_seq = pages;
  Plan plan;
  return plan_step(plan, config, batch);
}

std::vector<EfficiencyClass> classify(std::span<const PlannedStep> steps, int threads) {
  struct Bounds {
    const char* name;
    int least, most;
  };
  constexpr int kAny = std::numeric_limits<int>::max();
  constexpr Bounds kClasses[] = {
      {"1 to 7", 1, 7}, {"8 to 63", 8, 63}, {"64 and more", 64, kAny}, {"all", 1, kAny}};
  std::vector<EfficiencyClass> classes;
  for (const Bounds& bounds : kClasses) {
    std::vector<double> efficiencies;
    double unsplit = 0, run = 0;
    for (const PlannedStep& step : steps) {
      if (step.sequences < bounds.least || step.sequences > bounds.most) continue;
      efficiencies.push_back(step.efficiency(threads));
      unsplit += step.unsplit_seconds;
      run += step.run_seconds;
    }
    std::ranges::sort(efficiencies);
    classes.push_back({bounds.name, std::ssize(efficiencies), quantile(efficiencies, 0.05),
                       quantile(efficiencies, 0.5), unsplit / threads / run});
  }
  return classes;
}

}  // namespace pagemill
