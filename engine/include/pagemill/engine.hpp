// Pagemill's engine: text from GGUF weights on CPUs. Many requests at once, batched raggedly over one paged
// cache: prefills in chunks beside decodes, prefixes shared, requests preempted and computed again where
// pages run out.
//
//   auto model = pagemill::engine::Model::load("model.gguf");
//   pagemill::engine::Engine engine(model, {});
//   engine.add({.prompt = model->tokenize("Once upon a time", true), .max_tokens = 20});
//   while (!engine.idle())
//     for (const pagemill::engine::Event& event : engine.step()) std::cout << event.text;
//
// Errors. Everything throws: pagemill::InvalidArgument where the caller is wrong, ModelError where a model
// file is, both with a message that names argument or file, value and expectation. A failed add() leaves the
// engine as it was.
//
// Threads. A Model is immutable: any number of threads and engines may use it at once. An Engine belongs to
// one thread at a time; step() runs on threads of its own, which no other engine shares.
#ifndef PAGEMILL_ENGINE_HPP_
#define PAGEMILL_ENGINE_HPP_

#include <pagemill/pagemill.hpp>

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#define PAGEMILL_ENGINE_API __attribute__((visibility("default")))

namespace pagemill::engine {

// A model file that is missing, cut, corrupt or of a kind that the engine does not run.
struct PAGEMILL_ENGINE_API ModelError : std::runtime_error {
  using std::runtime_error::runtime_error;
};

using Token = int32_t;

struct ModelInfo {
  std::string architecture;  // llama, qwen2, qwen3 or gemma3
  std::string name;          // of the file's metadata; may be empty
  int layers = 0, heads = 0, kv_heads = 0, head_dim = 0;
  int embedding = 0;   // width of the residual stream
  int vocabulary = 0;  // tokens
  int context = 0;     // tokens that the model was trained on: the longest sequence
  int window = 0;      // tokens that a local layer's query sees, its own included; 0 = no local layers
  int64_t weight_bytes = 0;
};

struct Message {
  std::string role;  // system, user or assistant
  std::string content;
};

class PAGEMILL_ENGINE_API Model {
 public:
  // path: a GGUF file of one piece, which stays mapped. Architectures: llama, qwen2, qwen3, gemma3.
  static std::shared_ptr<const Model> load(const std::string& path);
  ~Model();

  const ModelInfo& info() const;

  // text: UTF-8. special: adds what the model begins (and ends) texts with, and reads names of control tokens
  // such as
  // <|im_end|> as these.
  std::vector<Token> tokenize(std::string_view text, bool special) const;
  // Bytes of the token's text: perhaps a part of a character. Empty for control tokens.
  std::string text(Token token) const;
  bool ends_generation(Token token) const;

  // The conversation in the model's own chat template, up to where the assistant's next answer begins.
  std::string chat_prompt(const std::vector<Message>& messages) const;

 private:
  friend class Engine;
  struct Parts;
  explicit Model(std::unique_ptr<Parts> parts);
  std::unique_ptr<Parts> parts_;
};

// How a token is chosen from the logits, in this order: repetition penalty, top-k, top-p, min-p, temperature.
struct Sampling {
  float temperature = 0;         // 0 = the best token, always
  int top_k = 0;                 // the k best; 0 = all
  float top_p = 1;               // the fewest whose probabilities reach p
  float min_p = 0;               // those with at least p times the best one's probability
  float repetition_penalty = 1;  // divides (multiplies, below 0) logits of tokens that occurred; 1 = none
  uint32_t seed = 0;             // the same seed and logits give the same tokens
};

struct Request {
  std::vector<Token> prompt;  // at least one; prompt and max_tokens fit the model's context and the cache
  int max_tokens = 128;       // 0 = none: for the log-probabilities of the prompt
  Sampling sampling = {};
  std::vector<Token> stop_tokens = {};  // end the request and are not part of its text
  std::vector<std::string> stop = {};   // likewise, wherever in the text; none is empty
  bool ignore_end = false;              // goes on where the model would end
  bool logprobs = false;                // of generated tokens
  std::optional<int> score_from = {};   // log-probabilities of prompt tokens from this one on, at least 1
};

enum class Finish {
  kNone,    // goes on
  kEnd,     // a token with which the model ends, or one of stop_tokens
  kStop,    // one of the stop strings
  kLength,  // max_tokens
  kCancelled,
};

// A token of the prompt, as predicted from those before it.
struct Scored {
  float logprob;  // natural logarithm of its probability
  bool best;      // no other token is likelier
};

// What became of a request in a step. Within one request in order; the last one has a finish.
struct Event {
  int64_t request = 0;              // as add() returned it
  std::optional<Token> token = {};  // generated
  std::string text = {};  // UTF-8, whole characters: what is new of the request's text; may be empty
  float logprob = 0;      // natural logarithm of the token's probability, if the request asked
  int first_scored = 0;   // prompt index of scored[0]
  std::vector<Scored> scored = {};
  Finish finish = Finish::kNone;
};

struct Options {
  int threads = 0;                 // 0 = pm_default_threads()
  pm_dtype cache_dtype = PM_BF16;  // or PM_F32, PM_F16
  int page_size = 16;              // tokens, a multiple of 16
  int64_t pages = 0;  // of the cache; 0 = what max_seqs sequences of the model's context need, within 1 GiB
  int token_budget = 512;    // tokens of one step
  int max_seqs = 64;         // requests that run at once; the others wait
  bool prefix_cache = true;  // reuse pages of earlier requests that begin alike
};

// Since the engine was made.
struct Stats {
  int64_t steps = 0;
  int64_t computed_tokens = 0;    // that went through the model, those of preempted requests again
  int64_t prefix_hit_tokens = 0;  // that did not need to
  int64_t preemptions = 0;
  int64_t peak_pages = 0;        // held by requests at once
  int64_t pages = 0;             // of the cache
  std::string isa;               // of the attention's kernels, "" before the first step
  double seconds = 0;            // in step()
  double attention_seconds = 0;  // mean of the threads, in attention and the update of the cache
  // Of attention in steps of decodes alone, and in all others: distinct visible keys and values in bytes, and
  // 4 head_dim operations a visible (query, head, key), both over all layers.
  double decode_bytes = 0, decode_attention_seconds = 0;
  double prefill_flops = 0, prefill_attention_seconds = 0;
};

class PAGEMILL_ENGINE_API Engine {
 public:
  Engine(std::shared_ptr<const Model> model, const Options& options);
  ~Engine();
  Engine(Engine&&) noexcept;

  // Its number: 0, 1, ... Prompt tokens are those of the model's vocabulary.
  int64_t add(Request request);
  // Ends a request; its last event, kCancelled, comes with the next step(). Of one that has ended: nothing.
  void cancel(int64_t request);
  // One step of the model over all requests that have something to compute and fit.
  std::vector<Event> step();
  bool idle() const;  // no request is left and no event due
  Stats stats() const;
  const Options& options() const;  // with defaults filled in

 private:
  struct Parts;
  std::unique_ptr<Parts> parts_;
};

}  // namespace pagemill::engine

#endif  // PAGEMILL_ENGINE_HPP_
