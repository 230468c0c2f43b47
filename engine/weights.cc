#include "weights.h"

#include <fmt/format.h>

#include <array>
#include <cmath>
#include <utility>

namespace pagemill::engine {
namespace {

constexpr std::array<std::pair<const char*, Architecture>, 4> kArchitectures = {{
    {"llama", Architecture::kLlama},
    {"qwen2", Architecture::kQwen2},
    {"qwen3", Architecture::kQwen3},
    {"gemma3", Architecture::kGemma3},
}};
constexpr int64_t kMaxCount = 1 << 20;  // of anything but tokens: far beyond any model

}  // namespace

Weights::Weights(const std::string& path) : file_(path) {
  read_shape();
  read_rope();
  read_windows();
  read_tensors();
}

int Weights::count(const char* name, int64_t high) const {
  return static_cast<int>(file_.integer(key(name), 1, high));
}

void Weights::read_shape() {
  architecture_name_ = file_.required_string("general.architecture");
  const Architecture* found = nullptr;
  for (const auto& [name, architecture] : kArchitectures)
    if (architecture_name_ == name) found = &architecture;
  if (!found) {
    file_.fail(fmt::format("general.architecture is {}: expected llama, qwen2, qwen3 or gemma3",
                           architecture_name_));
  }
  Shape& s = shape_;
  s.architecture = *found;
  if (const int64_t experts = file_.integer(key("expert_count")).value_or(0); experts != 0) {
    file_.fail(fmt::format("{} is {}: mixtures of experts are not supported", key("expert_count"), experts));
  }
  s.layers = count("block_count", 4096);
  s.embedding = count("embedding_length", kMaxCount);
  s.feed_forward = count("feed_forward_length", kMaxCount);
  s.heads = count("attention.head_count", 4096);
  s.kv_heads =
      file_.integer(key("attention.head_count_kv")) ? count("attention.head_count_kv", s.heads) : s.heads;
  if (s.heads % s.kv_heads != 0) {
    file_.fail(fmt::format("{} is {}: expected a divisor of the {} heads", key("attention.head_count_kv"),
                           s.kv_heads, s.heads));
  }
  const bool named = file_.integer(key("attention.key_length")).has_value();
  s.head_dim = named ? count("attention.key_length", 512) : s.embedding / s.heads;
  if (s.head_dim < 16 || s.head_dim > 512 || s.head_dim % 8 != 0) {
    file_.fail(fmt::format("head dim is {}: expected a multiple of 8 from 16 to 512", s.head_dim));
  }
  if (const auto v = file_.integer(key("attention.value_length")); v && *v != s.head_dim) {
    file_.fail(
        fmt::format("{} is {}: expected the key length, {}", key("attention.value_length"), *v, s.head_dim));
  }
  s.context = count("context_length", int64_t{1} << 24);
  s.vocabulary = static_cast<int>(file_.array_size("tokenizer.ggml.tokens"));
  if (s.vocabulary == 0) file_.fail("tokenizer.ggml.tokens is missing: expected the vocabulary");
  const auto epsilon = file_.number(key("attention.layer_norm_rms_epsilon"));
  if (!epsilon || !(*epsilon >= 0 && *epsilon < 1)) {
    file_.fail(fmt::format("{} is missing or not from 0 to 1", key("attention.layer_norm_rms_epsilon")));
  }
  s.epsilon = static_cast<float>(*epsilon);
  s.final_soft_cap = static_cast<float>(
      s.architecture == Architecture::kGemma3 ? file_.number(key("final_logit_softcapping")).value_or(0) : 0);
  // Gemma 3 27B, which has 62 layers, scales by the embedding's share of a head.
  const bool by_embedding = s.architecture == Architecture::kGemma3 && s.layers == 62;
  s.attention_scale = 1 / std::sqrt(static_cast<float>(by_embedding ? s.embedding / s.heads : s.head_dim));
}

void Weights::read_rope() {
  Rope& rope = shape_.rope;
  rope.mode = shape_.architecture == Architecture::kLlama ? GGML_ROPE_TYPE_NORMAL : GGML_ROPE_TYPE_NEOX;
  rope.dims = file_.integer(key("rope.dimension_count")) ? count("rope.dimension_count", shape_.head_dim)
                                                         : shape_.head_dim;
  if (rope.dims % 2 != 0) {
    file_.fail(fmt::format("{} is {}: expected an even number", key("rope.dimension_count"), rope.dims));
  }
  rope.base = static_cast<float>(file_.number(key("rope.freq_base")).value_or(10000));
  rope.local_base = static_cast<float>(file_.number(key("rope.freq_base_swa")).value_or(10000));
  if (!(rope.base > 0 && rope.local_base > 0)) {
    file_.fail(fmt::format("{} is {}: expected a positive number", key("rope.freq_base"), rope.base));
  }
  const std::string type = file_.string(key("rope.scaling.type")).value_or("linear");
  if (type != "none" && type != "linear" && type != "yarn") {
    file_.fail(fmt::format("{} is {}: expected none, linear or yarn", key("rope.scaling.type"), type));
  }
  auto factor = file_.number(key("rope.scaling.factor"));
  if (!factor) factor = file_.number(key("rope.scale_linear"));
  rope.scale = type == "none" || !factor || *factor == 0 ? 1 : static_cast<float>(1 / *factor);
  rope.original_context =
      static_cast<int>(file_.integer(key("rope.scaling.original_context_length")).value_or(shape_.context));
  rope.ext_factor = type == "yarn" ? 1 : 0;
  rope.attn_factor = static_cast<float>(file_.number(key("rope.scaling.attn_factor")).value_or(1));
  rope.beta_fast = 32;
  rope.beta_slow = 1;
}

void Weights::read_windows() {
  shape_.local.assign(shape_.layers, false);
  if (shape_.architecture != Architecture::kGemma3) return;
  const auto window = file_.integer(key("attention.sliding_window")).value_or(0);
  if (window == 0) return;
  shape_.window = count("attention.sliding_window", int64_t{1} << 24);
  const std::string name = key("attention.sliding_window_pattern");
  if (const auto pattern = file_.booleans(name)) {
    if (std::ssize(*pattern) < shape_.layers) {
      file_.fail(fmt::format("{} has {} entries: expected one for each of {} layers", name, pattern->size(),
                             shape_.layers));
    }
    for (int i = 0; i < shape_.layers; ++i) shape_.local[i] = (*pattern)[i];
    return;
  }
  const int64_t period = file_.integer(name).value_or(6);  // the last layer of each is global
  for (int i = 0; i < shape_.layers; ++i) shape_.local[i] = period == 0 || i % period < period - 1;
}

void Weights::read_tensors() {
  const Shape& s = shape_;
  const int64_t embedding_dim = s.embedding, vocabulary = s.vocabulary, ff = s.feed_forward;
  const int64_t q_dim = int64_t{s.heads} * s.head_dim, kv_dim = int64_t{s.kv_heads} * s.head_dim;
  embedding = file_.tensor("token_embd.weight", {embedding_dim, vocabulary});
  output = file_.optional_tensor("output.weight", {embedding_dim, vocabulary});
  if (!output) output = embedding;
  output_bias = file_.optional_tensor("output.bias", {vocabulary});
  output_norm = file_.tensor("output_norm.weight", {embedding_dim});
  if (s.architecture == Architecture::kLlama) {
    rope_factors = file_.optional_tensor("rope_freqs.weight", {s.rope.dims / 2});
  }
  const bool qk_norm = s.architecture == Architecture::kQwen3 || s.architecture == Architecture::kGemma3;
  const bool post_norms = s.architecture == Architecture::kGemma3;
  for (int i = 0; i < s.layers; ++i) {
    const auto name = [i](const char* part) { return fmt::format("blk.{}.{}", i, part); };
    LayerWeights& w = layers.emplace_back();
    w.attention_norm = file_.tensor(name("attn_norm.weight"), {embedding_dim});
    w.q = file_.tensor(name("attn_q.weight"), {embedding_dim, q_dim});
    w.k = file_.tensor(name("attn_k.weight"), {embedding_dim, kv_dim});
    w.v = file_.tensor(name("attn_v.weight"), {embedding_dim, kv_dim});
    w.q_bias = file_.optional_tensor(name("attn_q.bias"), {q_dim});
    w.k_bias = file_.optional_tensor(name("attn_k.bias"), {kv_dim});
    w.v_bias = file_.optional_tensor(name("attn_v.bias"), {kv_dim});
    w.q_norm = qk_norm ? file_.tensor(name("attn_q_norm.weight"), {s.head_dim}) : nullptr;
    w.k_norm = qk_norm ? file_.tensor(name("attn_k_norm.weight"), {s.head_dim}) : nullptr;
    w.out = file_.tensor(name("attn_output.weight"), {q_dim, embedding_dim});
    w.out_bias = file_.optional_tensor(name("attn_output.bias"), {embedding_dim});
    w.attention_post_norm =
        post_norms ? file_.tensor(name("post_attention_norm.weight"), {embedding_dim}) : nullptr;
    w.ff_norm = file_.tensor(name("ffn_norm.weight"), {embedding_dim});
    w.gate = file_.tensor(name("ffn_gate.weight"), {embedding_dim, ff});
    w.up = file_.tensor(name("ffn_up.weight"), {embedding_dim, ff});
    w.down = file_.tensor(name("ffn_down.weight"), {ff, embedding_dim});
    w.ff_post_norm = post_norms ? file_.tensor(name("post_ffw_norm.weight"), {embedding_dim}) : nullptr;
  }
}

}  // namespace pagemill::engine
