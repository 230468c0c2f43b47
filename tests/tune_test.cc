// The fit, on times that were made up, so that the right answer is known; and the file that carries it.
#include "tune.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <pagemill/pagemill.hpp>
#include <random>
#include <stdexcept>

namespace pagemill {
namespace {

constexpr CostModel kTruth{400, 0.15, 0.07, 0.09, 0.08, 0.015, 0.12, 0.021, 0.3, 0.4, 0.05};
constexpr CostModel kStart{300, 0.2, 0.07, 0.09, 0.1, 0.02, 0.2, 0.04, 0.3, 0.4, 0.03};

// Times as kTruth has them, each off by a random factor of about 1 + noise.
std::vector<TuneSample> made_up(double noise) {
  std::mt19937 random(5);
  std::normal_distribution<double> normal;
  std::vector<TuneSample> samples;
  for (const TuneShape& shape : tune_shapes()) {
    TuneSample sample{shape, 0, 0, samples.size() % 4 == 3};
    sample.ns = sample.predict(kTruth) * std::exp(noise * normal(random));
    samples.push_back(sample);
  }
  return samples;
}

TEST(TuneFit, FindsTheNumbersBehindExactTimes) {
  const std::vector<TuneSample> samples = made_up(0);
  const CostModel fitted = fit_costs(samples, kStart);
  for (const CostField& field : kCostFields) {
    EXPECT_NEAR(fitted.*field.value / (kTruth.*field.value), 1, 0.1) << field.name;
  }
  EXPECT_LT(median_error(samples, {&fitted, 1}, 0, true), 0.01);
}

TEST(TuneFit, PredictsThroughNoise) {
  const std::vector<TuneSample> samples = made_up(0.1);
  const CostModel fitted = fit_costs(samples, kStart);
  std::vector<TuneSample> truth = samples;
  for (TuneSample& s : truth) s.ns = s.predict(kTruth);
  EXPECT_LT(median_error(truth, {&fitted, 1}, 0, true), 0.05);
  EXPECT_NEAR(median_error(samples, {&fitted, 1}, 0, true), 0.07, 0.03) << "that of the noise itself";
}

TEST(TuneFit, ShapesOfEveryKindAreFittedAndHeldOut) {
  const std::vector<TuneShape> shapes = tune_shapes();
  for (const pm_layout layout : {PM_TILES, PM_ROWS}) {
    for (const pm_dtype cache : {PM_F32, PM_BF16, PM_F16, PM_F8E4M3}) {
      int count[2] = {};
      for (size_t i = 0; i < shapes.size(); ++i) {
        count[i % 4 == 3] += shapes[i].layout == layout && shapes[i].cache_dtype == cache;
      }
      EXPECT_GE(count[0], 10);
      EXPECT_GE(count[1], 4);
    }
  }
}

TEST(TuneFit, TheErrorIsThatOfTheSamplesAsked) {
  std::vector<TuneSample> samples;
  for (const double factor : {1.0, 1.25, 2.0}) {
    TuneSample sample{tune_shapes().front(), 0, 0, true};
    sample.ns = sample.predict(kTruth) * factor;
    samples.push_back(sample);
  }
  EXPECT_DOUBLE_EQ(median_error(samples, {&kTruth, 1}, 0, true), 0.2);
  EXPECT_TRUE(std::isnan(median_error(samples, {&kTruth, 1}, 0, false)));
}

Tune some_tune() {
  Tune tune{"scalar", 3, {}, {}, 0.0625};
  tune.models.fill(kTruth);
  return tune;
}

// Each in a process of its own, as the library reads its files once.
class TuneFile : public testing::Test {
 protected:
  void SetUp() override {
    GTEST_FLAG_SET(death_test_style, "threadsafe");
    const std::string name = testing::UnitTest::GetInstance()->current_test_info()->name();
    directory_ = std::filesystem::path(testing::TempDir()) / ("pagemill_tune_test_" + name);
    std::filesystem::remove_all(directory_);
    path_ = (directory_ / "deep" / "scalar.tune").string();
  }
  void TearDown() override { std::filesystem::remove_all(directory_); }

  [[noreturn]] void report(const char* variable, const std::string& value) const {
    setenv(variable, value.c_str(), 1);
    pm_tune_info info{};
    info.struct_size = sizeof info;
    check(pm_tune_get("scalar", &info));
    std::fprintf(stderr, "tuned %d, error %g, path %s, problem %s.", info.tuned, info.error, info.path,
                 info.problem);
    std::exit(0);
  }

  std::filesystem::path directory_;
  std::string path_;
};

TEST_F(TuneFile, IsReadByTheLibrary) {
  write_file_at_once(path_, tune_text(some_tune(), "a CPU"));
  EXPECT_EXIT(report("PAGEMILL_TUNE", path_), testing::ExitedWithCode(0),
              "tuned 1, error 0.0625, .*problem \\.");
}

TEST_F(TuneFile, IsFoundInTheCacheOfTheUser) {
  EXPECT_EXIT(
      {
        unsetenv("PAGEMILL_TUNE");
        report("XDG_CACHE_HOME", "/some/cache");
      },
      testing::ExitedWithCode(0), "tuned 0, error 0, path /some/cache/pagemill/.*-scalar.tune, problem \\.");
}

TEST_F(TuneFile, ABadOneIsNamedAndNotUsed) {
  write_file_at_once(path_, tune_text(some_tune(), "a CPU") + "more 1\n");
  EXPECT_EXIT(report("PAGEMILL_TUNE", path_), testing::ExitedWithCode(0),
              "tuned 0.*more 1: expected a known key");
}

TEST_F(TuneFile, ReplacesAnOlderOneAndLeavesNothingElse) {
  write_file_at_once(path_, "old and longer");
  write_file_at_once(path_, "new");
  std::ifstream file(path_);
  EXPECT_EQ(std::string(std::istreambuf_iterator<char>(file), {}), "new");
  EXPECT_EQ(std::distance(std::filesystem::directory_iterator(directory_ / "deep"), {}), 1);
}

TEST_F(TuneFile, ThatCannotBeWrittenIsNamed) {
  write_file_at_once(path_, "a file");
  try {
    write_file_at_once(path_ + "/not/in/a/file", "text");
    FAIL() << "expected an error";
  } catch (const std::runtime_error& error) {
    EXPECT_THAT(error.what(), testing::HasSubstr("/not/in/a/file"));
  }
}

}  // namespace
}  // namespace pagemill
