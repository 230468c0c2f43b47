// Chooses tokens from logits, by libllama's samplers.
#ifndef PAGEMILL_ENGINE_SAMPLER_H_
#define PAGEMILL_ENGINE_SAMPLER_H_

#include <llama.h>

#include <memory>
#include <pagemill/engine.hpp>
#include <span>
#include <vector>

namespace pagemill::engine {

class Sampler {
 public:
  // prompt: what the repetition penalty counts as having occurred. max_tokens: how many more may be chosen.
  Sampler(const Sampling& sampling, int vocabulary, std::span<const Token> prompt, int max_tokens);

  // logits: [vocabulary]
  Token choose(std::span<const float> logits);

 private:
  struct Free {
    void operator()(llama_sampler* sampler) const { llama_sampler_free(sampler); }
  };
  std::unique_ptr<llama_sampler, Free> chain_;  // null: the best token
};

// Natural logarithm of the token's probability. logits: [vocabulary]
float log_probability(std::span<const float> logits, Token token);

}  // namespace pagemill::engine

#endif  // PAGEMILL_ENGINE_SAMPLER_H_
