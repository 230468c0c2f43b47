#include "batch_weights.h"

#include <new>
#include <vector>

namespace pagemill::engine {
namespace {

// SmolLM2-135M, Q4_1, two Zen 4 cores, decode of so many sequences at once, times as fast by the copy: 2
// 0.92, 4 1.06, 8 1.4, 16 1.7; prefill 2.9.
constexpr int64_t kLeastTokens = 4;
constexpr size_t kMostBytes = size_t{1} << 30;

// That ggml's CPU backend does not multiply by blocks from the file's layout.
bool is_slow(ggml_type type) {
  switch (type) {
    case GGML_TYPE_Q4_0:
    case GGML_TYPE_Q5_0:
    case GGML_TYPE_Q8_0:
    case GGML_TYPE_IQ4_NL: return false;
    default: return ggml_is_quantized(type);
  }
}

}  // namespace

BatchWeights::BatchWeights(const Weights& weights) {
  std::vector<ggml_tensor*> slow;
  size_t bytes = 0;
  const auto add = [&](ggml_tensor* weight) {
    if (!is_slow(weight->type)) return;
    slow.push_back(weight);
    bytes += static_cast<size_t>(ggml_nelements(weight)) * sizeof(ggml_bf16_t) + ggml_tensor_overhead() +
             GGML_MEM_ALIGN;
  };
  for (const LayerWeights& w : weights.layers) {
    for (ggml_tensor* weight : {w.q, w.k, w.v, w.out, w.gate, w.up, w.down}) add(weight);
  }
  add(weights.output);
  if (slow.empty() || bytes > kMostBytes) return;
  memory_.reset(ggml_init({bytes, nullptr, false}));
  if (!memory_) throw std::bad_alloc();
  std::vector<float> row;
  for (ggml_tensor* weight : slow) {
    ggml_tensor* copy = ggml_new_tensor_2d(memory_.get(), GGML_TYPE_BF16, weight->ne[0], weight->ne[1]);
    row.resize(static_cast<size_t>(weight->ne[0]));
    for (int64_t r = 0; r < weight->ne[1]; ++r) {
      ggml_get_type_traits(weight->type)
          ->to_float(static_cast<const char*>(weight->data) + r * weight->nb[1], row.data(), weight->ne[0]);
      ggml_fp32_to_bf16_row(row.data(),
                            reinterpret_cast<ggml_bf16_t*>(static_cast<char*>(copy->data) + r * copy->nb[1]),
                            weight->ne[0]);
    }
    copies_.emplace(weight, copy);
  }
}

ggml_tensor* BatchWeights::choose(ggml_tensor* weight, int64_t tokens) const {
  if (tokens < kLeastTokens) return weight;
  const auto copy = copies_.find(weight);
  return copy == copies_.end() ? weight : copy->second;
}

}  // namespace pagemill::engine
