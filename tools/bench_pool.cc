// `pagemill bench pool`: how long a pool takes to start its threads.
#include <fmt/core.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <chrono>
#include <memory>
#include <nlohmann/json.hpp>
#include <thread>
#include <vector>

#include "bench.h"
#include "options.h"

namespace pagemill {
namespace {

using Clock = std::chrono::steady_clock;

struct Options {
  int threads = pm_default_threads();
  int idle_us = 2000;
  int repetitions = 200;
  bool json = false;
};

constexpr auto kTask = std::chrono::microseconds(200);  // long enough for every thread to get one

// What a step takes beyond its tasks, one for each thread, when the pool has idled before; medians, in
// seconds.
double overhead(const Options& o, const pm_executor& executor, std::chrono::microseconds idle) {
  std::vector<double> seconds(o.repetitions);
  for (double& s : seconds) {
    std::this_thread::sleep_for(idle);
    const auto start = Clock::now();
    executor.parallel_for(
        executor.context, o.threads,
        [](void*, int32_t) {
          const auto until = Clock::now() + kTask;
          while (Clock::now() < until) continue;
        },
        nullptr);
    s = std::chrono::duration<double>(Clock::now() - start - kTask).count();
  }
  std::ranges::nth_element(seconds, seconds.begin() + std::ssize(seconds) / 2);
  return seconds[seconds.size() / 2];
}

void run(const Options& o) {
  Pool pool(o.threads);
  const pm_executor executor = pool.executor();
  overhead(o, executor, {});  // the threads exist
  const double woken = overhead(o, executor, std::chrono::microseconds(o.idle_us));
  const double at_once = overhead(o, executor, {});
  if (o.json) {
    const nlohmann::ordered_json line = {{"case", "pool"},       {"threads", o.threads},
                                         {"idle_us", o.idle_us}, {"repetitions", o.repetitions},
                                         {"seconds", woken},     {"busy_seconds", at_once}};
    fmt::print("{}\n", line.dump());
    return;
  }
  fmt::print("{} threads, a task of {} us each, median of {}\n", o.threads, kTask.count(), o.repetitions);
  fmt::print("{:.1f} us more than the task after {} us of idling, {:.1f} us at once\n", woken * 1e6,
             o.idle_us, at_once * 1e6);
}

}  // namespace

void add_bench_pool(CLI::App& bench) {
  auto o = std::make_shared<Options>();
  CLI::App* app = bench.add_subcommand("pool", "Waking a pool of threads");
  app->add_option("--threads", o->threads, "Of the pool; default: what affinity and quota allow")
      ->check(CLI::Range(1, 4096));
  app->add_option("--idle-us", o->idle_us, "Idling before each step, in microseconds")
      ->check(CLI::Range(0, 1000000))
      ->capture_default_str();
  app->add_option("--repetitions", o->repetitions, "Repetitions to time")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  app->add_flag("--json", o->json, "Print one JSON object");
  app->callback([o] { run(*o); });
}

}  // namespace pagemill
