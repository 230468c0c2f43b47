// One step of attention at a given shape, to be timed: random inputs, shuffled pages, and as many copies of
// the cache as it takes that a byte comes back only after 4 times the last-level cache.
#ifndef PAGEMILL_TOOLS_BENCH_STEP_H_
#define PAGEMILL_TOOLS_BENCH_STEP_H_

#include <pagemill/pagemill.hpp>

#include <cstdint>
#include <string>
#include <vector>

#include "cpu_caches.h"
#include "memory.h"
#include "models.h"
#include "workload.h"

namespace pagemill {

struct BenchSpec {
  std::string name;  // decode, prefill or mixed
  Model model;
  int batch;    // sequences; of mixed: those that decode
  int context;  // keys of each, the new tokens included
  int q_len;    // new tokens of each; of mixed: of the one chunk, whose context is half of `context`
  int page_size;
  pm_dtype dtype, cache_dtype;
  pm_layout layout;
  std::string isa;  // "" = the best
  int threads;
  int window;  // keys that a query sees, itself included; 0 = all
  bool invariant;
};

class BenchStep {
 public:
  // turnover: bytes of keys and values that are read before one comes back.
  explicit BenchStep(const BenchSpec& spec, double turnover = 4.0 * last_level_cache_bytes());

  // The step on the next copy of the cache.
  void run(const pm_executor& executor);
  // Its first half alone: new keys and values into the cache.
  void store(const pm_executor& executor);
  // Worst error of `rows` random rows of the last run, in units of the bound.
  double worst_error(int rows);

  const pm_config& config() const { return config_; }
  const pm_batch& batch() const { return batch_; }
  pm_plan_stats stats() const { return plan_.stats(); }
  int copies() const { return copies_; }

 private:
  void lay_out_batch(const BenchSpec& spec);
  void lay_out_pages(const BenchSpec& spec);
  void make_inputs();
  void make_caches(double turnover);
  void next_copy();

  Config config_;
  Batch batch_;
  Args args_;
  std::vector<int32_t> query_start_;  // [B + 1]
  std::vector<int32_t> kv_len_;       // [B]
  std::vector<int32_t> page_table_;   // [B, pages_per_seq], -1 = no page
  HugeBuffer q_;                      // [T, H, D] dtype
  HugeBuffer k_new_, v_new_;          // [T, K, D] dtype
  HugeBuffer out_;                    // [T, H, D] dtype
  HugeBuffer caches_;                 // [copies], each all of K and V
  size_t copy_bytes_ = 0;
  int copies_ = 1, next_copy_ = 0;
  Plan plan_;
  Workspace workspace_;
};

}  // namespace pagemill

#endif  // PAGEMILL_TOOLS_BENCH_STEP_H_
