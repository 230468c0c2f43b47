// How long a run of a plan takes by its cost model, without running it.
#pragma once

#include <cstdint>
#include <limits>
#include <vector>

#include "attention/step.h"

namespace pagemill {

// The items of a step in the order in which threads take them.
struct Work {
  std::vector<Item> items;
  std::vector<float> costs;  // [items] ns
  std::vector<Merge> merges;
};

class Simulation {
 public:
  // merge_float: ns to write and fold one float of a partial result.
  void set_shape(int32_t kv_heads, int32_t head_dim, double merge_float) {
    kv_heads_ = kv_heads;
    record_ = head_dim + 2;
    merge_float_ = merge_float;
  }
  // When the last of `threads` threads ends, in ns: whichever is free first takes the next item, and the one
  // that finishes the last split of a tile merges them. Infinity if that is more than `limit`.
  // repeated: each item stands for as many as it takes to do all KV heads, its own number at a time.
  double run(const Work& work, bool repeated, int32_t threads,
             double limit = std::numeric_limits<double>::infinity());

 private:
  struct Thread {
    double free;       // ns
    int32_t split_of;  // (merge, head) of which it then finishes a split, or -1
    int32_t heads;     // of that split
  };
  void replace_first(Thread thread);
  double merge_ns(const Thread& thread);  // what it has to merge when it is free
  int32_t threads_in_step(bool repeated, int32_t threads) const;

  int32_t kv_heads_ = 1, record_ = 0;
  double merge_float_ = 0;
  const Work* work_ = nullptr;
  std::vector<Thread> threads_;    // a heap, the first to be free at the front
  std::vector<int32_t> arrivals_;  // [merges, K]
};

}  // namespace pagemill
