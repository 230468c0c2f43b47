// The cost model's file: what `pagemill tune` writes is read; anything else is named and not used.
#include "plan/costs.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>

namespace pagemill {
namespace {

using testing::HasSubstr;

const Isa& scalar() {
  const Isa* isa = nullptr;
  EXPECT_EQ(find_isa("scalar", isa), PM_OK);
  return *isa;
}

// Every key once, each value another one.
std::string whole_file() {
  std::string text = "# a comment\n\nisa scalar\nthreads 4\nerror 0.125\n";
  int n = 0;
  for (const char* kind : kCostKinds) {
    for (const CostField& field : kCostFields) {
      text += std::string(kind) + "." + field.name + " " + std::to_string(++n) + "e-2\n";
    }
  }
  return text;
}

std::string problem_with(const std::string& text) {
  Costs costs = default_costs(scalar());
  const std::string problem = parse_costs(text, scalar(), costs);
  EXPECT_EQ(costs.tuned, problem.empty());
  if (!problem.empty()) {
    EXPECT_EQ(costs.of[0].item, default_costs(scalar()).of[0].item) << "left alone";
  }
  return problem;
}

TEST(Costs, AFileGivesEveryNumber) {
  Costs costs = default_costs(scalar());
  ASSERT_EQ(parse_costs(whole_file(), scalar(), costs), "");
  EXPECT_TRUE(costs.tuned);
  EXPECT_EQ(costs.threads, 4);
  EXPECT_EQ(costs.error, 0.125);
  int n = 0;
  for (const CostModel& model : costs.of) {
    for (const CostField& field : kCostFields)
      EXPECT_DOUBLE_EQ(model.*field.value, ++n / 100.0) << field.name;
  }
}

TEST(Costs, WhatIsWrongIsNamed) {
  const std::string file = whole_file();
  EXPECT_THAT(problem_with(""), HasSubstr("expected isa scalar"));
  EXPECT_THAT(problem_with("isa avx2\n" + file), HasSubstr("line 1: isa avx2: expected scalar"));
  EXPECT_THAT(problem_with("isa scalar\nthreads 4\n"), HasSubstr("no line error"));
  EXPECT_THAT(problem_with(file + "bf16.speed 3\n"), HasSubstr("bf16.speed 3: expected a known key"));
  EXPECT_THAT(problem_with(file + "error 0.1\n"), HasSubstr("error 0.1: expected each key once"));
  EXPECT_THAT(problem_with(file + "bf16.item\n"), HasSubstr("expected a key and a value"));
  EXPECT_THAT(problem_with(file + "bf16.item 1 2\n"), HasSubstr("expected a key and a value"));
  for (const char* value : {"-1", "0", "nan", "inf", "1e10", "1,5", "0x1p3", "many", "1e", "1e999"}) {
    EXPECT_THAT(problem_with("error " + std::string(value) + "\n"),
                HasSubstr("expected a number above 0, up to 1e9"))
        << value;
  }
  std::string no_threads = file;
  no_threads.replace(no_threads.find("threads 4"), 9, "threads .5");
  EXPECT_THAT(problem_with(no_threads), HasSubstr("expected at least 1"));
}

TEST(Costs, EveryTruncatedFileIsRefused) {
  const std::string file = whole_file();
  for (size_t n = 0; n + 4 < file.size(); ++n) EXPECT_NE(problem_with(file.substr(0, n)), "") << n;
}

TEST(Costs, BytesOfNoiseAreRefused) {
  for (int byte = 0; byte < 256; ++byte) {
    EXPECT_NE(problem_with(std::string(100, static_cast<char>(byte)) + "\n"), "") << byte;
  }
}

TEST(Costs, ThreadsShareTheBandwidthOfTheMachine) {
  Costs costs = default_costs(scalar());
  costs.threads = 8;
  costs.of[0].byte = 0.1;
  costs.of[0].shared_byte = 0.4;
  EXPECT_DOUBLE_EQ(costs.model(Mma::kBf16, 1).byte, 0.1) << "one thread reads no faster than it can";
  EXPECT_DOUBLE_EQ(costs.model(Mma::kBf16, 4).byte, 0.2);
  EXPECT_DOUBLE_EQ(costs.model(Mma::kBf16, 8).byte, 0.4);
  EXPECT_DOUBLE_EQ(costs.model(Mma::kBf16, 192).byte, 0.4) << "larger machines have more of it";
}

TEST(Costs, EveryIsaHasDefaults) {
  for (int32_t i = 0; i < isa_count(); ++i) {
    for (const CostModel& model : default_costs(isa_at(i)).of) {
      for (const CostField& field : kCostFields)
        EXPECT_GT(model.*field.value, 0) << isa_at(i).name << field.name;
    }
  }
}

TEST(Costs, AUnitTakesTheLongerOfMemoryAndProducts) {
  const CostModel model{10, 1, 2, 2, 3, 1, 5, 0.5, 0, 0, 4};
  const UnitCost unit = model.unit(16, 2, false);
  EXPECT_DOUBLE_EQ(unit(1, 100), 10 + 16 + 100 * (2 * 2 * 16 * 2.0));           // memory
  EXPECT_DOUBLE_EQ(unit(64, 100), 10 + 64 * 16 + 100 * (32 + 64 * (5 + 8.0)));  // products
  EXPECT_DOUBLE_EQ(model.unit(16, 2, true)(64, 100), unit(64, 100) + 100 * 32 * 3.0);
  EXPECT_DOUBLE_EQ(model.unit(16, 1, false)(64, 100), unit(64, 100) + 100 * 32 * 4.0);
}

}  // namespace
}  // namespace pagemill
