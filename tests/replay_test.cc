// A replay from end to end, and what it says about itself.
#include "replay.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <sstream>
#include <stdexcept>
#include <string>
#include <tuple>
#include <utility>

#include "plot.h"
#include "replay_layers.h"
#include "replay_report.h"

namespace pagemill {
namespace {

using testing::HasSubstr;

// Conversations of up to three blocks, some on the prefix of others.
Trace small_trace() {
  Trace trace{"small.jsonl", {}};
  for (int i = 0; i < 12; ++i) {
    Request r{40 + 131 * i, 1 + 5 * (i % 4), {}, i + 2};
    for (int64_t block = 0; block * kTraceBlock < r.prompt; ++block) r.blocks.push_back(block + 10 * (i % 3));
    trace.requests.push_back(r);
  }
  return trace;
}

ReplayOptions small_options(pm_layout layout, pm_dtype dtype, pm_dtype cache_dtype) {
  ReplayOptions options;
  options.config.num_heads = 6;
  options.config.num_kv_heads = 2;
  options.config.head_dim = 64;
  options.config.dtype = options.config.out_dtype = dtype;
  options.config.cache_dtype = cache_dtype;
  options.config.layout = layout;
  options.config.page_size = 16;
  options.config.num_pages = 300;
  options.config.threads = 2;
  options.layers = 2;
  options.max_seqs = 5;
  options.budget = 300;
  options.verify = 6;
  return options;
}

constexpr PeakRates kPeak{1e9, 1e10};

ReplayReport run_small(const ReplayOptions& options) {
  const Pool pool(options.config.threads);
  int64_t calls = 0;
  const ReplayReport report = replay(
      small_trace(), options, pool.executor(), [] { return kPeak; },
      [&](const ReplayReport& so_far) { EXPECT_EQ(so_far.started_steps, ++calls); });
  EXPECT_EQ(calls, report.started_steps);
  return report;
}

TEST(ReplayTest, RunsATraceToItsEndWithinTheBound) {
  for (auto [layout, dtype, cache_dtype] :
       {std::tuple{PM_TILES, PM_BF16, PM_BF16}, {PM_ROWS, PM_F32, PM_F16}}) {
    const ReplayReport report = run_small(small_options(layout, dtype, cache_dtype));
    int64_t computed = 0;
    for (const Request& r : small_trace().requests) computed += r.prompt + r.output - 1;
    EXPECT_EQ(report.finished, 12);
    EXPECT_EQ(report.requests, 12);
    EXPECT_EQ(report.tokens + report.hit_tokens, computed);
    EXPECT_GT(report.hit_tokens, 0);
    EXPECT_LE(report.peak_pages, 300);
    EXPECT_EQ(std::ssize(report.steps), report.started_steps);
    EXPECT_EQ(report.verified, 6 * report.started_steps);
    EXPECT_GT(report.worst_error, 0);
    EXPECT_LE(report.worst_error, 1);
  }
}

TEST(ReplayTest, StopsAfterSeconds) {
  ReplayOptions options = small_options(PM_TILES, PM_BF16, PM_BF16);
  options.seconds = 1e-9;
  const ReplayReport report = run_small(options);
  EXPECT_EQ(report.started_steps, 1);
  EXPECT_EQ(report.steps.size(), 1u);
}

TEST(ReplayTest, HoldsEachStepAgainstItsRoofline) {
  ReplayOptions options = small_options(PM_TILES, PM_BF16, PM_BF16);
  const ReplayReport report = run_small(options);
  const StepRecord& first = report.steps.front();
  // 2 layers; bytes: 2 KV heads of K and V; flops: 4 D for 6 heads. The first step holds the prompts of 40
  // and 171 tokens and 89 tokens of the next one.
  EXPECT_EQ(first.kind, StepKind::prefill);
  EXPECT_EQ(first.tokens, 300);
  const auto pairs = [](double n) { return n * (n + 1) / 2; };
  EXPECT_EQ(first.work.bytes, 2.0 * 300 * 2 * 2 * 64 * 2);
  EXPECT_EQ(first.work.flops, 2.0 * 4 * 64 * 6 * (pairs(40) + pairs(171) + pairs(89)));
  double roofline = 0;
  for (double n : {40, 171, 89}) {
    roofline += 2 * std::max(n * 2 * 2 * 64 * 2 / kPeak.read, 4 * 64 * 6 * pairs(n) / kPeak.flops);
  }
  EXPECT_NEAR(first.roofline_seconds, roofline, 1e-9 * roofline);
  const ReplaySummary summary = summarize(report);
  EXPECT_EQ(summary.all.steps, report.started_steps);
  EXPECT_EQ(summary.all.tokens, report.tokens);
  EXPECT_EQ(summary.kind[0].steps + summary.kind[1].steps + summary.kind[2].steps, summary.all.steps);
  for (const ReplayTotals& kind : summary.kind) EXPECT_GT(kind.steps, 0);
}

TEST(ReplayTest, CheckNoticesWrongKeysAndOutputs) {
  const ReplayOptions options = small_options(PM_TILES, PM_BF16, PM_BF16);
  const Config& config = options.config;
  const Trace trace = small_trace();
  const Pool pool(2);
  const Executor executor = pool.executor();
  Schedule schedule(trace, {16, 300, 5, 300});
  ReplayLayers layers(config, 1, 300);
  layers.touch(config.num_pages, executor);
  ReplayCheck check(schedule, layers, 50);
  ASSERT_TRUE(schedule.next());
  check.begin(0);
  Args args = layers.args(0, 0);
  const Plan plan(config, schedule.batch());
  const Workspace workspace(plan);
  plan.run(args, workspace, &executor);
  EXPECT_LE(check.check(args, 0, 0), 1);
  const auto message = [&] {
    try {
      check.check(args, 0, 0);
    } catch (const std::runtime_error& error) {
      return std::string(error.what());
    }
    return std::string("no error");
  };
  const std::string good_out(static_cast<char*>(args.out), 300 * 6 * 64 * 2);
  std::memset(args.out, 0, good_out.size());
  EXPECT_THAT(message(), HasSubstr("times the bound"));
  EXPECT_THAT(message(), testing::StartsWith("small.jsonl:"));
  std::memcpy(args.out, good_out.data(), good_out.size());
  EXPECT_EQ(message(), "no error");
  std::swap(args.k_cache, args.v_cache);
  EXPECT_THAT(message(), HasSubstr("is not what was stored"));
}

TEST(ReplayTest, ReportsAsTableAndJson) {
  const ReplayOptions options = small_options(PM_TILES, PM_BF16, PM_BF16);
  const ReplayReport report = run_small(options);
  const ReplayTitle title{"small.jsonl", {"custom", 6, 2, 64, 1}, options};
  const auto json = nlohmann::json::parse(replay_json(title, report).dump());
  for (const char* key : {"case", "model", "isa", "threads", "dtype", "layout", "page_size", "seconds",
                          "bytes", "flops", "peak_read_gbps", "peak_gflops", "mbu", "mfu", "roofline"}) {
    EXPECT_TRUE(json.contains(key)) << key;
  }
  EXPECT_EQ(json["case"], "replay");
  EXPECT_EQ(json["finished"], 12);
  EXPECT_NEAR(json["peak_read_gbps"].get<double>(), 1, 1e-9);
  EXPECT_NEAR(json["peak_gflops"].get<double>(), 10, 1e-9);
  const ReplaySummary summary = summarize(report);
  EXPECT_DOUBLE_EQ(json["mbu"].get<double>(), summary.kind[0].work.bytes / 1e9 / summary.kind[0].seconds());
  EXPECT_DOUBLE_EQ(json["mfu"].get<double>(), summary.kind[1].work.flops / 1e10 / summary.kind[1].seconds());
  EXPECT_THAT(replay_table(title, report), HasSubstr("12 of 12 requests done"));
}

TEST(ReplayTest, ImpossibleRatiosAreErrorsUnlessCachesExplainThem) {
  ReplayReport report;
  const auto add = [&](StepKind kind, Work work, double seconds) {
    report.steps.push_back({kind, 1, 0, seconds, work, kPeak, work.bytes / kPeak.read});
  };
  add(StepKind::decode, {1e6, 0}, 1e-3);
  EXPECT_EQ(judge_ratios(report), "");
  add(StepKind::decode, {1e6, 0}, 1e-4);
  EXPECT_THAT(judge_ratios(report), HasSubstr("caches"));
  report.steps.clear();
  add(StepKind::decode, {1e12, 0}, 900);
  EXPECT_THROW(judge_ratios(report), std::runtime_error);
}

TEST(ReplayTest, PlotsOneCurveForEachKind) {
  const ReplayReport report = run_small(small_options(PM_TILES, PM_BF16, PM_BF16));
  const std::string file = testing::TempDir() + "it's a replay.svg";
  try {
    prepare_plot(file);
  } catch (const std::runtime_error& error) {
    GTEST_SKIP() << error.what();
  }
  plot_replay(report, "a 'title'", file);
  std::stringstream svg;
  svg << std::ifstream(file).rdbuf();
  std::filesystem::remove(file);
  for (const char* text : {"decode", "prefill", "mixed", "roofline", "title", "</svg>"}) {
    EXPECT_THAT(svg.str(), HasSubstr(text));
  }
  EXPECT_THROW(prepare_plot("/no/such/folder/x.svg"), std::runtime_error);
}

}  // namespace
}  // namespace pagemill
