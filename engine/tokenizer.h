// Text to tokens and back, by libllama.
#ifndef PAGEMILL_ENGINE_TOKENIZER_H_
#define PAGEMILL_ENGINE_TOKENIZER_H_

#include <llama.h>

#include <memory>
#include <pagemill/engine.hpp>
#include <string>
#include <string_view>
#include <vector>

namespace pagemill::engine {

class Tokenizer {
 public:
  // path: a file that Weights has accepted.
  explicit Tokenizer(const std::string& path);

  std::vector<Token> tokenize(std::string_view text, bool special) const;
  std::string text(Token token) const;
  bool ends_generation(Token token) const { return llama_vocab_is_eog(vocab_, token); }
  std::string chat_prompt(const std::vector<Message>& messages) const;
  int size() const { return llama_vocab_n_tokens(vocab_); }

 private:
  struct Free {
    void operator()(llama_model* model) const { llama_model_free(model); }
  };
  std::string path_;
  std::unique_ptr<llama_model, Free> model_;  // the vocabulary alone
  const llama_vocab* vocab_ = nullptr;
};

}  // namespace pagemill::engine

#endif  // PAGEMILL_ENGINE_TOKENIZER_H_
