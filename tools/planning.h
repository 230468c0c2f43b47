// Plans made without running them: how evenly they spread work over threads, also of machines that are not
// here, by the cost model of the library.
#ifndef PAGEMILL_TOOLS_PLANNING_H_
#define PAGEMILL_TOOLS_PLANNING_H_

#include <pagemill/pagemill.hpp>

#include <cstdint>
#include <functional>
#include <span>
#include <vector>

#include "schedule.h"

namespace pagemill {

struct PlannedStep {
  int sequences;
  double unsplit_seconds;  // of all work on one thread, without splits and merges
  double run_seconds;      // until the last thread ends
  double plan_seconds;     // measured here

  double efficiency(int threads) const { return unsplit_seconds / threads / run_seconds; }
};

// Every step of the trace, with config.threads threads; page_size and num_pages are config's. on_step is
// called after each one and says whether to go on.
std::vector<PlannedStep> plan_trace(const Trace& trace, const Config& config, int max_seqs, int32_t budget,
                                    const std::function<bool(const std::vector<PlannedStep>&)>& on_step);

// One step of sequences that decode one token each, with `keys` keys.
PlannedStep plan_decodes(Config config, int sequences, int32_t keys);

// Steps by their number of sequences.
struct EfficiencyClass {
  const char* name;
  int64_t steps;
  double p5, median;  // of the steps' efficiencies; NaN without steps
  double mean;        // of all their work together
};
std::vector<EfficiencyClass> classify(std::span<const PlannedStep> steps, int threads);

}  // namespace pagemill

#endif  // PAGEMILL_TOOLS_PLANNING_H_
