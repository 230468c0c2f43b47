// Runs the attention of every step of a trace's schedule, and times it against the machine's peaks.
#ifndef PAGEMILL_TOOLS_REPLAY_H_
#define PAGEMILL_TOOLS_REPLAY_H_

#include <pagemill/pagemill.hpp>

#include <array>
#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "schedule.h"
#include "workload.h"

namespace pagemill {

struct ReplayOptions {
  Config config;  // page_size, num_pages and threads included
  int layers = 1;
  int max_seqs = 128;
  int32_t budget = 2048;  // tokens of a step
  double seconds = 0;  // from the first step on, after which no other begins; 0 = until all requests are done
  int verify = 0;      // rows of a step that are checked
};

// All layers of one step.
struct StepRecord {
  StepKind kind;
  int32_t tokens;
  double plan_seconds, run_seconds;
  Work work;
  PeakRates peak;
  double roofline_seconds;

  double seconds() const { return plan_seconds + run_seconds; }
};

struct ReplayReport {
  std::vector<StepRecord> steps;  // those whose peaks are known
  int64_t started_steps = 0, tokens = 0;
  int64_t requests = 0, finished = 0;
  int64_t hit_tokens = 0;  // of prompts, found in the cache
  int64_t peak_pages = 0;  // used at once
  int64_t verified = 0;    // rows
  double worst_error = 0;  // in units of the bound
  std::string isa;
};

// Sums over the settled steps, of one kind or all.
struct ReplayTotals {
  int64_t steps = 0, tokens = 0;
  double plan_seconds = 0, run_seconds = 0;
  double read_seconds = 0, flops_seconds = 0, roofline_seconds = 0;  // at the peaks
  Work work;

  void add(const StepRecord& step);
  double seconds() const { return plan_seconds + run_seconds; }
  double mbu() const { return read_seconds / seconds(); }  // NaN without steps, as the others
  double mfu() const { return flops_seconds / seconds(); }
  double roofline() const { return roofline_seconds / seconds(); }
};

struct ReplaySummary {
  std::array<ReplayTotals, 3> kind;  // by StepKind
  ReplayTotals all;
};
ReplaySummary summarize(const ReplayReport& report);

// executor: of config.threads threads. measure_peaks is called before the first step, then about once a
// second, and after the last step; a step is held against the mean of the measurements before and after it.
// on_step is called after each step. Throws std::runtime_error if a check fails, with the step and the
// trace's line.
ReplayReport replay(const Trace& trace, const ReplayOptions& options, const pm_executor& executor,
                    const std::function<PeakRates()>& measure_peaks,
                    const std::function<void(const ReplayReport&)>& on_step);

}  // namespace pagemill

#endif  // PAGEMILL_TOOLS_REPLAY_H_
