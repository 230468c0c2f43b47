// Nanoseconds of work on one thread, as far as cutting and ordering need to know them: only ratios matter.
#pragma once

#include <cstdint>

#include "attention/step.h"
#include "isa/mma_kind.h"

namespace pagemill {

struct CostModel {
  double ns_per_product;  // of one query row and one key
  double ns_per_key;      // bytes of one key and value from memory
  double ns_per_item = 300;

  static CostModel of(Mma mma, int32_t head_dim, pm_dtype cache_dtype) {
    const double gflops = mma == Mma::kBf16 ? 180 : 90, gbytes = 10;
    return {4.0 * head_dim / gflops, 2.0 * head_dim * static_cast<double>(dtype_bytes(cache_dtype)) / gbytes};
  }
  double item(int64_t rows, int64_t keys) const {
    const double products = ns_per_product * static_cast<double>(rows * keys);
    const double bytes = ns_per_key * static_cast<double>(keys);
    return ns_per_item + (products > bytes ? products : bytes);
  }
};

constexpr double kInlineNs = 12000;  // below this a step is not worth waking another thread
constexpr int kItemsPerThread =
    8;  // an item costs at most 1 / kItemsPerThread of a thread's share, if it can be split
constexpr int32_t kLeastSplitKeys = 256;

}  // namespace pagemill
