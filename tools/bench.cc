#include "bench.h"

#include <fmt/core.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <stdexcept>

#include "peaks.h"

namespace pagemill {
namespace {

constexpr double kMostRatio = 1.02;
constexpr double kLeastSeconds = 0.03;  // of a repetition: as long as a slice of the peaks
constexpr int kSampledRows = 64;

struct Sample {
  double seconds;  // of a step
  PeakRates peak;  // mean of before and after
};

double seconds_of(int steps, int threads, BenchStep& step, const pm_executor& executor) {
  const double start = clock_seconds(threads);
  for (int i = 0; i < steps; ++i) step.run(executor);
  return clock_seconds(threads) - start;
}

// Steps that fill kLeastSeconds, after as many to warm up.
int steps_per_repetition(int threads, BenchStep& step, const pm_executor& executor) {
  for (int steps = 1;; steps *= 2) {
    const double seconds = seconds_of(steps, threads, step, executor);
    if (seconds >= kLeastSeconds / 2) return int(std::ceil(steps * kLeastSeconds / seconds));
  }
}

std::vector<Sample> measure(const BenchSpec& spec, const BenchLength& length, BenchStep& step,
                            const pm_executor& executor) {
  Peaks peaks(executor, spec.threads, step.config().isa, spec.dtype, spec.cache_dtype);
  const int steps = steps_per_repetition(spec.threads, step, executor);
  const auto start = std::chrono::steady_clock::now();
  const auto more = [&](int done) {
    if (length.repetitions) return done < length.repetitions;
    const std::chrono::duration<double> passed = std::chrono::steady_clock::now() - start;
    return done < BenchLength::kLeastRepetitions || passed.count() < length.seconds;
  };
  std::vector<Sample> samples;
  PeakRates before = peaks.slice();
  while (more(int(samples.size()))) {
    const double seconds = seconds_of(steps, spec.threads, step, executor) / steps;
    const PeakRates after = peaks.slice();
    samples.push_back({seconds, {(before.read + after.read) / 2, (before.flops + after.flops) / 2}});
    before = after;
  }
  return samples;
}

template <class Value>
double median(const std::vector<Sample>& samples, Value value) {
  std::vector<double> values;
  values.reserve(samples.size());
  for (const Sample& sample : samples) values.push_back(value(sample));
  const auto middle = values.begin() + values.size() / 2;
  std::ranges::nth_element(values, middle);
  return *middle;
}

double plan_seconds(const BenchStep& step) {
  Plan plan(step.config(), step.batch());
  const double start = clock_seconds(1);
  plan.build(step.config(), step.batch());
  return clock_seconds(1) - start;
}

}  // namespace

BenchResult run_bench(const BenchSpec& spec, const BenchLength& length) {
  const Pool pool(spec.threads);
  const Executor executor = pool.executor();
  BenchStep step(spec);
  const std::vector<Sample> samples = measure(spec, length, step, executor);

  BenchResult result;
  result.worst_error = step.worst_error(kSampledRows);
  if (!(result.worst_error <= 1)) {
    throw std::runtime_error(fmt::format("{} on {}: wrong results: error {:.3g} times the bound", spec.name,
                                         step.config().isa, result.worst_error));
  }
  const Work work = step_work(step.config(), step.batch());
  result.isa = step.config().isa;
  result.work = work;
  result.repetitions = int(samples.size());
  result.plan_seconds = plan_seconds(step);
  result.seconds = median(samples, [](const Sample& s) { return s.seconds; });
  result.peak.read = median(samples, [](const Sample& s) { return s.peak.read; });
  result.peak.flops = median(samples, [](const Sample& s) { return s.peak.flops; });
  result.mbu = median(samples, [&](const Sample& s) { return work.bytes / s.seconds / s.peak.read; });
  result.mfu = median(samples, [&](const Sample& s) { return work.flops / s.seconds / s.peak.flops; });
  result.roofline = median(samples, [&](const Sample& s) {
    return roofline_seconds(step.config(), step.batch(), s.peak) / s.seconds;
  });
  if (std::max({result.mbu, result.mfu, result.roofline}) > kMostRatio) {
    throw std::runtime_error(
        fmt::format("{} on {}: measuring error: mbu {:.3f}, mfu {:.3f}, roofline {:.3f}, of which none can "
                    "be above {}",
                    spec.name, result.isa, result.mbu, result.mfu, result.roofline, kMostRatio));
  }
  return result;
}

}  // namespace pagemill
