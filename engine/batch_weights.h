// Copies of weights for products with several tokens.
#ifndef PAGEMILL_ENGINE_BATCH_WEIGHTS_H_
#define PAGEMILL_ENGINE_BATCH_WEIGHTS_H_

#include <ggml.h>

#include <memory>
#include <unordered_map>

#include "weights.h"

namespace pagemill::engine {

// ggml multiplies some quantised types token by token and bf16 by blocks: weights of those types also lie
// here in bf16 (rounded once more), if all of them take 1 GiB at most; otherwise there is none. Read-only
// once built.
class BatchWeights {
 public:
  explicit BatchWeights(const Weights& weights);

  // What to multiply `tokens` tokens by: the copy where there is one and it is the faster, else the weight
  // itself.
  ggml_tensor* choose(ggml_tensor* weight, int64_t tokens) const;

 private:
  struct Free {
    void operator()(ggml_context* context) const { ggml_free(context); }
  };
  std::unique_ptr<ggml_context, Free> memory_;
  std::unordered_map<const ggml_tensor*, ggml_tensor*> copies_;  // by the weight
};

}  // namespace pagemill::engine

#endif  // PAGEMILL_ENGINE_BATCH_WEIGHTS_H_
