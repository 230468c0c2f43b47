#include "replay.h"

#include <algorithm>
#include <chrono>
#include <optional>
#include <utility>

#include "peaks.h"
#include "replay_layers.h"

namespace pagemill {
namespace {

using WallClock = std::chrono::steady_clock;
constexpr std::chrono::seconds kPeakInterval{1};

// Keeps steps until the peaks after them are measured too.
class Ledger {
 public:
  void add(const StepRecord& step, std::vector<Work> sequences) {
    pending_.push_back({step, std::move(sequences)});
  }

  // rates: measured now.
  void settle(const PeakRates& rates, std::vector<StepRecord>& settled) {
    const PeakRates peak{(last_.read + rates.read) / 2, (last_.flops + rates.flops) / 2};
    for (auto& [step, sequences] : pending_) {
      step.peak = peak;
      for (const Work& work : sequences) {
        step.roofline_seconds += std::max(work.bytes / peak.read, work.flops / peak.flops);
      }
      settled.push_back(step);
    }
    pending_.clear();
    last_ = rates;
  }

 private:
  struct Pending {
    StepRecord step;
    std::vector<Work> sequences;  // [B] of all layers
  };
  std::vector<Pending> pending_;
  PeakRates last_;
};

Work times(const Work& work, int n) {
  return {n * work.bytes, n * work.flops};
}

class Runner {
 public:
  Runner(const Trace& trace, const ReplayOptions& options, const pm_executor& executor)
      : options_(options),
        executor_(executor),
        schedule_(trace, {options.config.page_size, static_cast<int32_t>(options.config.num_pages),
                          options.max_seqs, options.budget}),
        layers_(options.config, options.layers, options.budget) {
    if (options.verify > 0) check_.emplace(schedule_, layers_, options.verify);
    report_.requests = std::ssize(trace.requests);
  }

  bool next() {
    const bool more = schedule_.next();
    report_.finished = schedule_.finished();
    report_.hit_tokens = schedule_.hit_tokens();
    report_.peak_pages = schedule_.peak_pages();
    return more;
  }

  void run_step() {
    const Config& config = options_.config;
    const Batch batch = schedule_.batch();
    layers_.touch(schedule_.touched_pages(), executor_);
    StepRecord record{schedule_.step().kind, batch.query_start[batch.num_seqs], 0, 0, {}, {}, 0};
    if (check_) check_->begin(report_.started_steps);
    const double before = clock_seconds(config.threads);
    plan_.build(config, batch);
    const pm_plan_stats stats = plan_.stats();
    workspace_.reserve(stats.workspace_bytes);
    record.plan_seconds = clock_seconds(config.threads) - before;
    for (int layer = 0; layer < options_.layers; ++layer) record.run_seconds += run_layer(layer);
    record.work = times(step_work(config, batch), options_.layers);
    std::vector<Work> sequences(batch.num_seqs);
    for (int b = 0; b < batch.num_seqs; ++b) {
      sequences[b] = times(sequence_work(config, batch, b), options_.layers);
    }
    ledger_.add(record, std::move(sequences));
    report_.isa = stats.isa;
    report_.tokens += record.tokens;
    ++report_.started_steps;
  }

  void settle(const PeakRates& rates) { ledger_.settle(rates, report_.steps); }
  ReplayReport& report() { return report_; }

 private:
  // Seconds of the run itself.
  double run_layer(int layer) {
    const int64_t step = report_.started_steps;
    const Args args = layers_.args(step, layer);
    const double before = clock_seconds(options_.config.threads);
    plan_.run(args, workspace_, &executor_);
    const double seconds = clock_seconds(options_.config.threads) - before;
    // One layer of a step, each in its turn.
    if (check_ && step % options_.layers == layer) {
      report_.worst_error = std::max(report_.worst_error, check_->check(args, step, layer));
      report_.verified += check_->rows();
    }
    return seconds;
  }

  const ReplayOptions& options_;
  const pm_executor& executor_;
  Schedule schedule_;
  ReplayLayers layers_;
  std::optional<ReplayCheck> check_;
  Plan plan_;
  Workspace workspace_;
  Ledger ledger_;
  ReplayReport report_;
};

}  // namespace

void ReplayTotals::add(const StepRecord& step) {
  ++steps;
  tokens += step.tokens;
  plan_seconds += step.plan_seconds;
  run_seconds += step.run_seconds;
  read_seconds += step.work.bytes / step.peak.read;
  flops_seconds += step.work.flops / step.peak.flops;
  roofline_seconds += step.roofline_seconds;
  work.bytes += step.work.bytes;
  work.flops += step.work.flops;
}

ReplaySummary summarize(const ReplayReport& report) {
  ReplaySummary summary;
  for (const StepRecord& step : report.steps) {
    summary.kind[static_cast<size_t>(step.kind)].add(step);
    summary.all.add(step);
  }
  return summary;
}

ReplayReport replay(const Trace& trace, const ReplayOptions& options, const pm_executor& executor,
                    const std::function<PeakRates()>& measure_peaks,
                    const std::function<void(const ReplayReport&)>& on_step) {
  Runner runner(trace, options, executor);
  runner.settle(measure_peaks());
  const auto start = WallClock::now();
  auto measured = start;
  while (runner.next()) {
    runner.run_step();
    on_step(runner.report());
    const auto now = WallClock::now();
    if (options.seconds > 0 && now - start >= std::chrono::duration<double>(options.seconds)) break;
    if (now - measured < kPeakInterval) continue;
    runner.settle(measure_peaks());
    measured = WallClock::now();
  }
  runner.settle(measure_peaks());
  return std::move(runner.report());
}

}  // namespace pagemill
