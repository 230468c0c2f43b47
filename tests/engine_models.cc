#include "engine_models.h"

#include <fmt/format.h>
#include <gtest/gtest.h>
#include <llama.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <memory>
#include <random>
#include <stdexcept>

#include "ggml_messages.h"

namespace pagemill::engine {
namespace {

// A GGUF file in the making.
class Writer {
 public:
  explicit Writer(size_t tensor_bytes)
      : gguf_(gguf_init_empty()), ctx_(ggml_init({tensor_bytes + (size_t{4} << 20), nullptr, false})) {}
  ~Writer() {
    gguf_free(gguf_);
    ggml_free(ctx_);
  }
  gguf_context* gguf() { return gguf_; }
  float* add(const std::string& name, std::vector<int64_t> shape) {
    ggml_tensor* tensor = ggml_new_tensor(ctx_, GGML_TYPE_F32, int(shape.size()), shape.data());
    ggml_set_name(tensor, name.c_str());
    gguf_add_tensor(gguf_, tensor);
    return static_cast<float*>(tensor->data);
  }
  void write(const std::string& path) {
    if (!gguf_write_to_file(gguf_, path.c_str(), false)) throw std::runtime_error("cannot write " + path);
  }

 private:
  gguf_context* gguf_;
  ggml_context* ctx_;
};

// SentencePiece's: three control tokens, all bytes, and a few letters.
void set_tokenizer(gguf_context* gguf) {
  std::vector<std::string> tokens = {"<unk>", "<s>", "</s>"};
  std::vector<int32_t> types = {LLAMA_TOKEN_TYPE_UNKNOWN, LLAMA_TOKEN_TYPE_CONTROL, LLAMA_TOKEN_TYPE_CONTROL};
  for (int byte = 0; byte < 256; ++byte) tokens.push_back(fmt::format("<0x{:02X}>", byte));
  types.resize(tokens.size(), LLAMA_TOKEN_TYPE_BYTE);
  for (int i = 0; std::ssize(tokens) < kRandomVocabulary; ++i) tokens.push_back(fmt::format("t{}", i));
  types.resize(tokens.size(), LLAMA_TOKEN_TYPE_NORMAL);
  std::vector<const char*> pointers;
  for (const std::string& token : tokens) pointers.push_back(token.c_str());
  const std::vector<float> scores(tokens.size());
  gguf_set_val_str(gguf, "tokenizer.ggml.model", "llama");
  gguf_set_arr_str(gguf, "tokenizer.ggml.tokens", pointers.data(), pointers.size());
  gguf_set_arr_data(gguf, "tokenizer.ggml.scores", GGUF_TYPE_FLOAT32, scores.data(), scores.size());
  gguf_set_arr_data(gguf, "tokenizer.ggml.token_type", GGUF_TYPE_INT32, types.data(), types.size());
  gguf_set_val_u32(gguf, "tokenizer.ggml.bos_token_id", 1);
  gguf_set_val_u32(gguf, "tokenizer.ggml.eos_token_id", 2);
}

void set_shape(gguf_context* gguf, const RandomModel& m) {
  const auto key = [&m](const char* name) { return m.architecture + "." + name; };
  const auto set = [&](const char* name, int value) {
    gguf_set_val_u32(gguf, key(name).c_str(), uint32_t(value));
  };
  gguf_set_val_str(gguf, "general.architecture", m.architecture.c_str());
  set("block_count", m.layers);
  set("embedding_length", m.embedding);
  set("feed_forward_length", m.feed_forward);
  set("attention.head_count", m.heads);
  set("attention.head_count_kv", m.kv_heads);
  set("attention.key_length", m.head_dim);
  set("attention.value_length", m.head_dim);
  set("rope.dimension_count", m.head_dim);
  set("context_length", m.context);
  if (m.window > 0) set("attention.sliding_window", m.window);
  gguf_set_val_f32(gguf, key("attention.layer_norm_rms_epsilon").c_str(), 1e-5f);
  gguf_set_val_f32(gguf, key("rope.freq_base").c_str(), m.rope_base);
  if (!m.rope_scaling.empty())
    gguf_set_val_str(gguf, key("rope.scaling.type").c_str(), m.rope_scaling.c_str());
  if (m.rope_scale > 0) {
    gguf_set_val_f32(gguf, key("rope.scaling.factor").c_str(), m.rope_scale);
    set("rope.scaling.original_context_length", m.context / 4);
  }
}

struct FreeLlama {
  void operator()(llama_model* model) const { llama_model_free(model); }
  void operator()(llama_context* context) const { llama_free(context); }
};

}  // namespace

TemporaryFile::TemporaryFile(const std::string& name)
    : path_(fmt::format("{}pagemill-{}-{}", testing::TempDir(), getpid(), name)) {}
TemporaryFile::~TemporaryFile() {
  std::remove(path_.c_str());
}

void write_model(const RandomModel& m, const std::string& path) {
  std::mt19937 random(m.seed);
  Writer writer(size_t{64} << 20);
  const auto add = [&](const std::string& name, std::vector<int64_t> shape, float mean, float deviation) {
    if (name == m.without_tensor) return;
    std::normal_distribution<float> normal(mean, deviation);
    int64_t n = 1;
    for (int64_t extent : shape) n *= extent;
    float* values = writer.add(name, shape);
    std::generate(values, values + n, [&] { return normal(random); });
  };
  const auto matrix = [&](const std::string& name, int in, int out) {
    add(name, {in, out}, 0, 1.5f / std::sqrt(float(in)));
  };
  const auto vector = [&](const std::string& name, int n, float mean) { add(name, {n}, mean, 0.1f); };
  const int q = m.heads * m.head_dim, kv = m.kv_heads * m.head_dim;
  set_shape(writer.gguf(), m);
  set_tokenizer(writer.gguf());
  matrix("token_embd.weight", m.embedding, kRandomVocabulary);
  if (!m.tied) matrix("output.weight", m.embedding, kRandomVocabulary);
  vector("output_norm.weight", m.embedding, 1);
  if (m.rope_factors) add("rope_freqs.weight", {m.head_dim / 2}, 2, 0.3f);
  const bool gemma = m.architecture == "gemma3", qk_norm = gemma || m.architecture == "qwen3";
  for (int i = 0; i < m.layers; ++i) {
    const auto name = [i](const char* part) { return fmt::format("blk.{}.{}", i, part); };
    vector(name("attn_norm.weight"), m.embedding, 1);
    matrix(name("attn_q.weight"), m.embedding, q);
    matrix(name("attn_k.weight"), m.embedding, kv);
    matrix(name("attn_v.weight"), m.embedding, kv);
    if (m.qkv_bias) {
      vector(name("attn_q.bias"), q, 0.2f);
      vector(name("attn_k.bias"), kv, 0.2f);
      vector(name("attn_v.bias"), kv, 0.2f);
    }
    if (qk_norm) {
      vector(name("attn_q_norm.weight"), m.head_dim, 1.5f);
      vector(name("attn_k_norm.weight"), m.head_dim, 1.5f);
    }
    matrix(name("attn_output.weight"), q, m.embedding);
    if (gemma) vector(name("post_attention_norm.weight"), m.embedding, 1);
    vector(name("ffn_norm.weight"), m.embedding, 1);
    matrix(name("ffn_gate.weight"), m.embedding, m.feed_forward);
    matrix(name("ffn_up.weight"), m.embedding, m.feed_forward);
    matrix(name("ffn_down.weight"), m.feed_forward, m.embedding);
    if (gemma) vector(name("post_ffw_norm.weight"), m.embedding, 1);
  }
  if (m.change) m.change(writer.gguf());
  writer.write(path);
}

void write_dequantized(const std::string& from, const std::string& to) {
  ggml_context* tensors = nullptr;
  const std::unique_ptr<gguf_context, decltype(&gguf_free)> source(
      gguf_init_from_file(from.c_str(), {.no_alloc = false, .ctx = &tensors}), gguf_free);
  const std::unique_ptr<ggml_context, decltype(&ggml_free)> owner(tensors, ggml_free);
  if (!source) throw std::runtime_error("cannot read " + from);
  size_t bytes = 0;
  for (auto* t = ggml_get_first_tensor(tensors); t; t = ggml_get_next_tensor(tensors, t))
    bytes += 4 * ggml_nelements(t) + 1024;
  Writer writer(bytes);
  gguf_set_kv(writer.gguf(), source.get());
  for (int64_t i = 0; i < gguf_get_n_tensors(source.get()); ++i) {
    const ggml_tensor* t = ggml_get_tensor(tensors, gguf_get_tensor_name(source.get(), i));
    float* values = writer.add(t->name, {t->ne, t->ne + ggml_n_dims(t)});
    if (t->type == GGML_TYPE_F32) {
      std::copy_n(static_cast<const float*>(t->data), ggml_nelements(t), values);
    } else {
      ggml_get_type_traits(t->type)->to_float(t->data, values, ggml_nelements(t));
    }
  }
  writer.write(to);
}

Logits libllama_logits(const std::string& path, const std::vector<int32_t>& tokens, int32_t from) {
  const GgmlMessages messages;
  const std::unique_ptr<llama_model, FreeLlama> model(
      llama_model_load_from_file(path.c_str(), llama_model_default_params()));
  if (!model) throw std::runtime_error("libllama cannot load " + path + ": " + messages.last(""));
  const auto n = static_cast<uint32_t>(tokens.size());
  llama_context_params params = llama_context_default_params();
  params.n_ctx = (n + 255) / 256 * 256;
  params.n_batch = params.n_ubatch = params.n_ctx;
  params.n_outputs_max = n;
  params.n_threads = params.n_threads_batch = 2;
  params.type_k = params.type_v = GGML_TYPE_F32;
  params.flash_attn_type = LLAMA_FLASH_ATTN_TYPE_DISABLED;
  const std::unique_ptr<llama_context, FreeLlama> context(llama_init_from_model(model.get(), params));
  if (!context) throw std::runtime_error("libllama cannot make a context: " + messages.last(""));
  llama_batch batch = llama_batch_init(int32_t(n), 0, 1);
  batch.n_tokens = int32_t(n);
  for (int32_t i = 0; i < batch.n_tokens; ++i) {
    batch.token[i] = tokens[i];
    batch.pos[i] = i;
    batch.n_seq_id[i] = 1;
    batch.seq_id[i][0] = 0;
    batch.logits[i] = i >= from;
  }
  const int32_t status = llama_decode(context.get(), batch);
  llama_batch_free(batch);
  if (status != 0) throw std::runtime_error(fmt::format("llama_decode: {}: {}", status, messages.last("")));
  const int32_t vocabulary = llama_vocab_n_tokens(llama_model_get_vocab(model.get()));
  Logits logits;
  for (int32_t i = from; i < int32_t(n); ++i) {
    const float* row = llama_get_logits_ith(context.get(), i);
    logits[i].assign(row, row + vocabulary);
  }
  return logits;
}

Options small_options() {
  Options options;
  options.threads = 2;
  options.cache_dtype = PM_F32;
  options.pages = 64;
  return options;
}

std::vector<Logits> our_logits(const Weights& weights, const Options& options,
                               const std::vector<std::vector<int32_t>>& prompts,
                               const std::vector<int32_t>& from,
                               const std::function<void(const AttentionCall&)>& on_attention) {
  Scheduler scheduler({options.page_size, static_cast<int32_t>(options.pages), options.token_budget,
                       options.max_seqs, options.token_budget, options.prefix_cache});
  Forward forward(weights, options);
  forward.on_attention = on_attention;
  for (size_t i = 0; i < prompts.size(); ++i) scheduler.add(int64_t(i), prompts[i], from[i]);
  std::vector<Logits> logits(prompts.size());
  while (!scheduler.idle()) {
    const Step& step = scheduler.next();
    const float* row = forward.run(step);
    for (const Step::Piece& piece : step.pieces) {
      for (int32_t i = 0; i < piece.logits; ++i, row += weights.shape().vocabulary)
        logits[piece.id][piece.logits_first + i].assign(row, row + weights.shape().vocabulary);
    }
    for (const Step::Piece& piece : step.pieces)
      if (piece.first + piece.count == std::ssize(prompts[piece.id])) scheduler.remove(piece.id);
  }
  return logits;
}

double relative_error(const Logits& a, const Logits& b) {
  if (a.size() != b.size()) return -1;
  double worst = 0;
  for (const auto& [position, wanted] : b) {
    const auto found = a.find(position);
    if (found == a.end() || found->second.size() != wanted.size()) return -1;
    double difference = 0, largest = 0;
    for (size_t i = 0; i < wanted.size(); ++i) {
      if (!std::isfinite(found->second[i])) return INFINITY;
      difference = std::max(difference, std::abs(double(found->second[i]) - wanted[i]));
      largest = std::max(largest, std::abs(double(wanted[i])));
    }
    worst = std::max(worst, difference / largest);
  }
  return worst;
}

std::vector<int32_t> random_tokens(int n, uint32_t seed, int vocabulary) {
  std::mt19937 random(seed);
  std::vector<int32_t> tokens(n);
  for (int32_t& token : tokens) token = 3 + int32_t(random() % (vocabulary - 3));
  return tokens;
}

}  // namespace pagemill::engine
