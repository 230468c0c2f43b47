// A model's shape and weights, from its file.
#ifndef PAGEMILL_ENGINE_WEIGHTS_H_
#define PAGEMILL_ENGINE_WEIGHTS_H_

#include <memory>
#include <string>
#include <vector>

#include "gguf_file.h"

namespace pagemill::engine {

enum class Architecture { kLlama, kQwen2, kQwen3, kGemma3 };

struct Rope {
  int mode;                                             // GGML_ROPE_TYPE_*
  int dims;                                             // rotated, of head_dim
  int original_context;                                 // tokens, before it was scaled
  float base, local_base;                               // of global and local layers
  float scale;                                          // of positions, in global layers
  float ext_factor, attn_factor, beta_fast, beta_slow;  // YaRN
};

struct Shape {
  Architecture architecture;
  int layers, embedding, feed_forward;
  int heads, kv_heads, head_dim;
  int vocabulary, context;
  float epsilon;  // of the norms
  Rope rope;
  int window;  // tokens that a query of a local layer sees, its own included; 0 = no local layers
  std::vector<bool> local;  // [layers]
  float attention_scale;
  float final_soft_cap;  // of logits; 0 = none
};

// Weights of matrix products are [outputs, inputs]. Null: the model has none.
struct LayerWeights {
  ggml_tensor *attention_norm, *q, *k, *v, *q_bias, *k_bias, *v_bias, *q_norm, *k_norm, *out, *out_bias;
  ggml_tensor *attention_post_norm, *ff_norm, *gate, *up, *down, *ff_post_norm;
};

class Weights {
 public:
  explicit Weights(const std::string& path);

  const GgufFile& file() const { return file_; }
  const Shape& shape() const { return shape_; }
  const std::string& architecture_name() const { return architecture_name_; }

  ggml_tensor* embedding = nullptr;     // [vocabulary, embedding]
  ggml_tensor* output = nullptr;        // [vocabulary, embedding]: the embedding's again where they are tied
  ggml_tensor* output_bias = nullptr;   // [vocabulary]
  ggml_tensor* output_norm = nullptr;   // [embedding]
  ggml_tensor* rope_factors = nullptr;  // [dims / 2]
  std::vector<LayerWeights> layers;

 private:
  void read_shape();
  void read_rope();
  void read_windows();
  void read_tensors();
  std::string key(const char* name) const { return architecture_name_ + "." + name; }
  int count(const char* name, int64_t high) const;

  GgufFile file_;
  std::string architecture_name_;
  Shape shape_{};
};

}  // namespace pagemill::engine

#endif  // PAGEMILL_ENGINE_WEIGHTS_H_
