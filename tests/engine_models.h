// Small random models as GGUF files, and libllama as the reference for their logits.
#ifndef PAGEMILL_TESTS_ENGINE_MODELS_H_
#define PAGEMILL_TESTS_ENGINE_MODELS_H_

#include <cstdint>
#include <functional>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "forward.h"
#include "scheduler.h"
#include "weights.h"

struct gguf_context;

namespace pagemill::engine {

// A file in the tests' temporary folder that is gone when this is.
class TemporaryFile {
 public:
  explicit TemporaryFile(const std::string& name);
  ~TemporaryFile();
  TemporaryFile(const TemporaryFile&) = delete;
  TemporaryFile& operator=(const TemporaryFile&) = delete;

  const std::string& path() const { return path_; }

 private:
  std::string path_;
};

struct RandomModel {
  std::string architecture = "llama";
  int layers = 3, embedding = 64, feed_forward = 96, heads = 4, kv_heads = 2, head_dim = 16;
  int context = 512;
  int window = 0;
  bool tied = false, qkv_bias = false, rope_factors = false;
  float rope_base = 10000, rope_scale = 0;  // scale 0: not in the file
  std::string rope_scaling;                 // "": not in the file
  uint32_t seed = 1;
  // Called before the file is written, to break it.
  std::function<void(gguf_context*)> change;
  std::string without_tensor;  // a name to leave out
};

constexpr int kRandomVocabulary = 320;

void write_model(const RandomModel& model, const std::string& path);
// The same model with all weights as f32.
void write_dequantized(const std::string& from, const std::string& to);

// Logits of positions, each [vocabulary].
using Logits = std::map<int32_t, std::vector<float>>;

// Of libllama, with an f32 cache and without flash attention: of positions from `from` on.
Logits libllama_logits(const std::string& path, const std::vector<int32_t>& tokens, int32_t from);

// Ours: of each prompt, from position from[i] on. All are added at once. on_attention: as in Forward.
std::vector<Logits> our_logits(const Weights& weights, const Options& options,
                               const std::vector<std::vector<int32_t>>& prompts,
                               const std::vector<int32_t>& from,
                               const std::function<void(const AttentionCall&)>& on_attention = {});
Options small_options();  // f32 cache, two threads

// The largest difference of two logits of a position, by that position's largest logit. -1: not the same
// positions.
double relative_error(const Logits& a, const Logits& b);

std::vector<int32_t> random_tokens(int n, uint32_t seed, int vocabulary = kRandomVocabulary);

}  // namespace pagemill::engine

#endif  // PAGEMILL_TESTS_ENGINE_MODELS_H_
