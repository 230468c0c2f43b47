// Measuring what items take on one thread, and fitting the library's cost model to it.
#ifndef PAGEMILL_TOOLS_TUNE_H_
#define PAGEMILL_TOOLS_TUNE_H_

#include <pagemill/pagemill.h>

#include <array>
#include <functional>
#include <iterator>
#include <span>
#include <string>
#include <vector>

#include "plan/cost.h"

namespace pagemill {

// Items of one shape, each of a sequence of its own that attends to `keys` keys from memory.
struct TuneShape {
  pm_dtype dtype, cache_dtype;
  pm_layout layout;
  int head_dim;
  int group, q_len;  // rows = q_len * group
  int keys;

  int rows() const { return q_len * group; }
};

struct TuneSample {
  TuneShape shape;
  int kind;       // of products: index of kCostKinds
  double ns;      // of one item and KV head
  bool held_out;  // measures the error, is not fitted

  double predict(const CostModel& model) const;  // ns
  double error(const CostModel& model) const { return predict(model) / ns - 1; }
};

// Median of |error| over those samples of the kind that are held out, or those that are not. kind -1: all,
// each by its kind's model. NaN if there are none.
double median_error(std::span<const TuneSample> samples, std::span<const CostModel> models, int kind,
                    bool held_out);

// The numbers of `start` that items show (all but shared_byte, merge and store), changed to those with which
// the samples' times are off by the least factor.
CostModel fit_costs(std::span<const TuneSample> samples, const CostModel& start);

struct Tune {
  std::string isa;
  int threads;
  std::array<CostModel, std::size(kCostKinds)> models;  // by kind
  std::vector<TuneSample> samples;
  double error;  // median, over the samples that were held out
};

// Shapes that the ISA's kernels are measured with: a few of each pair of dtypes, layout and kind of products.
std::vector<TuneShape> tune_shapes();

// progress: called with what is measured next.
Tune measure_tune(const std::string& isa, int threads,
                  const std::function<void(const std::string&)>& progress);

// As the library reads it.
std::string tune_text(const Tune& tune, const std::string& cpu);
// Replaces the file at once, so that no reader sees half of it. Throws std::runtime_error with the reason.
void write_file_at_once(const std::string& path, const std::string& text);

}  // namespace pagemill

#endif  // PAGEMILL_TOOLS_TUNE_H_
