// What the layers of a replay attend with: a cache each, and queries, keys and values drawn beforehand.
#ifndef PAGEMILL_TOOLS_REPLAY_LAYERS_H_
#define PAGEMILL_TOOLS_REPLAY_LAYERS_H_

#include <pagemill/pagemill.hpp>

#include <cstddef>
#include <cstdint>
#include <vector>

#include "memory.h"
#include "schedule.h"

namespace pagemill {

class ReplayLayers {
 public:
  // max_tokens: of a step.
  ReplayLayers(const pm_config& config, int layers, int32_t max_tokens);

  // Fills the first pages of all caches with NaN, those that were not yet, so that no run meets memory that
  // the system has not handed out.
  void touch(int64_t pages, const pm_executor& executor);

  // Of one layer's run in step number `step`: rows of the pool from another place each time.
  Args args(int64_t step, int layer);

 private:
  friend class ReplayCheck;
  int64_t pool_row(int64_t step, int layer) const;  // of the step's first token
  const std::byte* pool(int64_t row, int head) const;

  pm_config config_;
  int64_t row_elements_;            // (H + 2K) D
  int64_t plane_bytes_;             // of K or V, of one page and head
  int64_t touched_ = 0;             // pages
  std::vector<std::byte> pool_;     // [rows, H + 2K, D] dtype, N(0,1): q, k and v of a token side by side
  std::vector<std::byte> out_;      // [max_tokens, H, D] out_dtype
  std::vector<HugeBuffer> caches_;  // [layers]
};

// Compares sampled rows of every step with the fp64 reference, and keys and values that they see with those
// once stored.
class ReplayCheck {
 public:
  ReplayCheck(const Schedule& schedule, const ReplayLayers& layers, int rows);

  int rows() const { return rows_; }
  // Notes the tokens that the schedule's step stores.
  void begin(int64_t step);
  // After the layer's run. Returns the worst error in units of the bound; throws std::runtime_error that
  // names the request's line and what is wrong.
  double check(const pm_args& args, int64_t step, int layer) const;

 private:
  bool slot_right(const pm_args& args, int layer, int seq, int64_t key, int kv_head) const;

  const Schedule& schedule_;
  const ReplayLayers& layers_;
  int rows_;
  std::vector<int32_t> source_;  // [num_pages, P] pool row of the token in each slot, on layer 0
};

}  // namespace pagemill

#endif  // PAGEMILL_TOOLS_REPLAY_LAYERS_H_
