#include <algorithm>
#include <cmath>
#include <limits>

#include "tune.h"
#include "workload.h"

namespace pagemill {
namespace {

constexpr double CostModel::* kFitted[] = {&CostModel::item,    &CostModel::row,    &CostModel::byte,
                                           &CostModel::pass,    &CostModel::gather, &CostModel::score,
                                           &CostModel::product, &CostModel::widen};

// Sum over the samples of |log(predicted / measured)|, rounded at 0, as a search by one or two numbers at a
// time ends in the kinks of plain sums. The same for twice as long and half as long.
double misfit(std::span<const TuneSample> samples, const CostModel& model) {
  constexpr double kRound = 0.1;
  double sum = 0;
  for (const TuneSample& s : samples) {
    if (!s.held_out) sum += std::hypot(std::log(s.predict(model) / s.ns), kRound) - kRound;
  }
  return sum;
}

}  // namespace

double TuneSample::predict(const CostModel& model) const {
  const UnitCost unit =
      model.unit(shape.head_dim, int64_t(element_size(shape.cache_dtype)), shape.layout != PM_TILES);
  return unit(shape.rows(), shape.keys) + model.store * 2 * shape.head_dim * shape.q_len;
}

double median_error(std::span<const TuneSample> samples, std::span<const CostModel> models, int kind,
                    bool held_out) {
  std::vector<double> errors;
  for (const TuneSample& s : samples) {
    if (s.held_out == held_out && (kind < 0 || s.kind == kind))
      errors.push_back(std::abs(s.error(models[s.kind])));
  }
  if (errors.empty()) return std::numeric_limits<double>::quiet_NaN();
  const auto middle = errors.begin() + std::ssize(errors) / 2;
  std::ranges::nth_element(errors, middle);
  return *middle;
}

// The misfit has kinks (memory or products, whichever takes longer), so it is searched instead of solved: one
// number, or one against another, by factors that get finer.
CostModel fit_costs(std::span<const TuneSample> samples, const CostModel& start) {
  constexpr double kLeast = 1e-4;  // ns: of what the samples do not show
  CostModel model = start;
  double least = misfit(samples, model);
  std::vector<double CostModel::*> shown;  // fields that some sample depends on
  for (double CostModel::* field : kFitted) {
    CostModel trial = model;
    trial.*field += 1;
    if (misfit(samples, trial) != least) shown.push_back(field);
  }
  bool better = true;
  const auto try_factors = [&](double CostModel::* a, double by, double CostModel::* b) {
    CostModel trial = model;
    trial.*a = std::max(kLeast, trial.*a * by);
    if (b != a) trial.*b = std::max(kLeast, trial.*b / by);
    const double sum = misfit(samples, trial);
    if (sum >= least * (1 - 1e-9)) return;
    least = sum;
    model = trial;
    better = true;
  };
  for (const double factor : {4.0, 2.0, 1.4, 1.15, 1.05, 1.02, 1.005, 1.001}) {
    constexpr int kMostRounds = 1000;
    better = true;
    for (int round = 0; better && round < kMostRounds; ++round) {
      better = false;
      for (double CostModel::* a : shown) {
        for (double CostModel::* b : shown) {
          try_factors(a, factor, b);
          try_factors(a, 1 / factor, b);
        }
      }
    }
  }
  return model;
}

}  // namespace pagemill
