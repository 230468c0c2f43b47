#include "sampler.h"

#include <algorithm>
#include <cmath>

namespace pagemill::engine {

Sampler::Sampler(const Sampling& s, int vocabulary, std::span<const Token> prompt, int max_tokens) {
  const bool penalty = s.repetition_penalty != 1;
  if (s.temperature == 0 && !penalty) return;
  chain_.reset(llama_sampler_chain_init(llama_sampler_chain_default_params()));
  const auto add = [this](llama_sampler* sampler) { llama_sampler_chain_add(chain_.get(), sampler); };
  if (penalty) {
    const auto everything = static_cast<int32_t>(prompt.size()) + max_tokens;
    add(llama_sampler_init_penalties(vocabulary, everything, s.repetition_penalty, 0, 0));
  }
  if (s.temperature == 0) {
    add(llama_sampler_init_greedy());
  } else {
    if (s.top_k > 0) add(llama_sampler_init_top_k(s.top_k));
    if (s.top_p < 1) add(llama_sampler_init_top_p(s.top_p, 1));
    if (s.min_p > 0) add(llama_sampler_init_min_p(s.min_p, 1));
    add(llama_sampler_init_temp(s.temperature));
    add(llama_sampler_init_dist(s.seed));
  }
  for (Token token : prompt) llama_sampler_accept(chain_.get(), token);
}

Token Sampler::choose(std::span<const float> logits) {
  if (!chain_) return static_cast<Token>(std::max_element(logits.begin(), logits.end()) - logits.begin());
  std::vector<llama_token_data> candidates(logits.size());
  for (size_t i = 0; i < logits.size(); ++i) candidates[i] = {static_cast<Token>(i), logits[i], 0};
  llama_token_data_array array = {candidates.data(), candidates.size(), -1, false};
  llama_sampler_apply(chain_.get(), &array);
  const Token token = array.data[array.selected].id;
  llama_sampler_accept(chain_.get(), token);
  return token;
}

float log_probability(std::span<const float> logits, Token token) {
  const float best = *std::max_element(logits.begin(), logits.end());
  double sum = 0;
  for (float logit : logits) sum += std::exp(logit - best);
  return static_cast<float>(logits[token] - best - std::log(sum));
}

}  // namespace pagemill::engine
