// What the tests of the attention call share.
#ifndef PAGEMILL_TESTS_EXPECT_H_
#define PAGEMILL_TESTS_EXPECT_H_

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdlib>
#include <string>
#include <vector>

#include "cases.h"

namespace pagemill {

// n, or PAGEMILL_TEST_SCALE (from 0 to 1) of it, at least 1: sanitizers and emulators are slow.
inline int scaled(int n) {
  static const double scale = [] {
    const char* text = std::getenv("PAGEMILL_TEST_SCALE");
    return text ? std::atof(text) : 1.0;
  }();
  return std::max(1, int(n * scale));
}

// Builds the case, runs it and holds it against the reference.
inline testing::AssertionResult right(const Spec& spec) {
  label_faults("faulting case: " + describe(spec));
  try {
    Case c(spec);
    run(c);
    Verdict verdict = verify(c);
    if (verdict.problem.empty()) return testing::AssertionSuccess();
    return testing::AssertionFailure() << verdict.problem << "\n  case: " << describe(spec);
  } catch (const std::exception& error) {
    return testing::AssertionFailure() << error.what() << "\n  case: " << describe(spec);
  }
}

inline std::vector<pm_isa_info> all_isas() {
  std::vector<pm_isa_info> isas(pm_isa_count());
  for (size_t i = 0; i < isas.size(); ++i) {
    isas[i].struct_size = sizeof isas[i];
    check(pm_isa_get(int32_t(i), &isas[i]));
  }
  return isas;
}

inline std::vector<std::string> isa_names() {
  std::vector<std::string> names;
  for (const pm_isa_info& isa : all_isas()) names.push_back(isa.name);
  return names;
}

// A test for each ISA of the library; skipped with the reason where the machine lacks it.
class EachIsa : public testing::TestWithParam<std::string> {
 protected:
  void SetUp() override {
    for (const pm_isa_info& info : all_isas())
      if (GetParam() == info.name) {
        isa = info.name;
        if (!info.available) GTEST_SKIP() << info.name << ": " << info.reason;
      }
  }
  const char* isa = nullptr;
};

#define PM_INSTANTIATE_EACH_ISA(suite)                                 \
  INSTANTIATE_TEST_SUITE_P(Isa, suite, testing::ValuesIn(isa_names()), \
                           [](const auto& info) { return info.param; })

}  // namespace pagemill

#endif  // PAGEMILL_TESTS_EXPECT_H_
