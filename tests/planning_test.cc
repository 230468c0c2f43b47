// Plans that are made and not run: the steps of a trace and their classes.
#include "planning.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstdlib>

namespace pagemill {
namespace {

const bool kUntuned = setenv("PAGEMILL_TUNE", "", 1) == 0;  // the defaults, whatever this machine has

Config llama(int threads) {
  Config config;
  config.num_heads = 32, config.num_kv_heads = 8, config.head_dim = 128;
  config.page_size = 16, config.num_pages = 20000;
  config.threads = threads;
  return config;
}

Trace decodes_and_prompts(int requests) {
  Trace trace{"t.csv", {}};
  for (int i = 0; i < requests; ++i) trace.requests.push_back({500 + 37 * i % 900, 20 + i % 7, {}, i + 1});
  return trace;
}

TEST(Planning, PlansEveryStepOfATrace) {
  ASSERT_TRUE(kUntuned);
  const Trace trace = decodes_and_prompts(40);
  Schedule schedule(trace, {16, 20000, 30, 512});
  std::vector<int> sequences;
  while (schedule.next()) sequences.push_back(schedule.batch().num_seqs);
  const auto steps = plan_trace(trace, llama(4), 30, 512, [](const auto&) { return true; });
  ASSERT_EQ(steps.size(), sequences.size());
  for (size_t i = 0; i < steps.size(); ++i) {
    EXPECT_EQ(steps[i].sequences, sequences[i]);
    EXPECT_GT(steps[i].unsplit_seconds, 0);
    EXPECT_GE(steps[i].run_seconds, steps[i].unsplit_seconds / 4 * 0.9999);
    EXPECT_LE(steps[i].run_seconds, steps[i].unsplit_seconds * 1.0001);
  }
  EXPECT_EQ(plan_trace(trace, llama(4), 30, 512, [](const auto& done) { return done.size() < 3; }).size(),
            3u);
}

TEST(Planning, OneThreadDoesAllOfTheWork) {
  const PlannedStep step = plan_decodes(llama(1), 3, 5000);
  EXPECT_EQ(step.sequences, 3);
  EXPECT_NEAR(step.efficiency(1), 1, 1e-6);
}

TEST(Planning, MoreThreadsTakeLessTime) {
  double before = plan_decodes(llama(2), 1, 100000).run_seconds;
  for (const int threads : {8, 32, 96, 192}) {
    const PlannedStep step = plan_decodes(llama(threads), 1, 100000);
    EXPECT_LT(step.run_seconds, before);
    EXPECT_GE(step.efficiency(threads), 0.9) << threads;
    before = step.run_seconds;
  }
}

TEST(Planning, ClassesHoldTheStepsOfTheirSizes) {
  std::vector<PlannedStep> steps;
  for (int i = 1; i <= 100; ++i)
    steps.push_back({63, 10.0, 1000.0 / i, 0});  // efficiency i / 100 on one thread
  steps.push_back({64, 10.0, 12.5, 0});
  steps.push_back({500, 30.0, 37.5, 0});
  const auto classes = classify(steps, 1);
  ASSERT_EQ(classes.size(), 4u);
  EXPECT_EQ(classes[0].steps, 0);
  EXPECT_TRUE(std::isnan(classes[0].median));
  EXPECT_EQ(classes[1].steps, 100);
  EXPECT_NEAR(classes[1].p5, 0.05, 1e-9);
  EXPECT_NEAR(classes[1].median, 0.50, 1e-9);
  EXPECT_EQ(classes[2].steps, 2);
  EXPECT_NEAR(classes[2].mean, 0.8, 1e-9);
  EXPECT_EQ(classes[3].steps, 102);
}

}  // namespace
}  // namespace pagemill
