// Timing one step against the peaks of the machine.
#ifndef PAGEMILL_TOOLS_BENCH_H_
#define PAGEMILL_TOOLS_BENCH_H_

#include <string>
#include <vector>

#include "bench_step.h"
#include "workload.h"

namespace CLI {
class App;
}

namespace pagemill {

// How long to repeat: `repetitions` times, or (0) for `seconds`, at least kLeastRepetitions times.
struct BenchLength {
  static constexpr int kLeastRepetitions = 5;
  int repetitions = 0;
  double seconds = 5;
};

// Medians over the repetitions. The ratios are medians of pairs: each repetition's rate over the mean of
// the peaks taken just before and after it.
struct BenchResult {
  std::string isa;
  Work work;
  int repetitions;
  double seconds;       // of a step
  double plan_seconds;  // of building its plan again
  PeakRates peak;
  double mbu, mfu, roofline;
  double worst_error;  // units of the bound
};

// Throws std::runtime_error if the results are wrong, or a ratio is above 1.02: a measuring error.
BenchResult run_bench(const BenchSpec& spec, const BenchLength& length);

void add_bench_plan(CLI::App& bench);  // bench plan
void add_bench_pool(CLI::App& bench);  // bench pool

}  // namespace pagemill

#endif  // PAGEMILL_TOOLS_BENCH_H_
