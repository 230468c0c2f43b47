#include "tokenizer.h"

#include <fmt/format.h>

#include <mutex>

#include "ggml_messages.h"
#include "utf8.h"

namespace pagemill::engine {

Tokenizer::Tokenizer(const std::string& path) : path_(path) {
  const GgmlMessages messages;
  static std::once_flag once;
  std::call_once(once, llama_backend_init);
  llama_model_params params = llama_model_default_params();
  params.vocab_only = true;
  model_.reset(llama_model_load_from_file(path.c_str(), params));
  if (!model_)
    throw ModelError(
        fmt::format("{}: no tokeniser that libllama knows: {}", path, messages.last("no reason given")));
  vocab_ = llama_model_get_vocab(model_.get());
  if (llama_vocab_type(vocab_) == LLAMA_VOCAB_TYPE_NONE) {
    throw ModelError(path + ": tokenizer.ggml.model is missing or none: expected a tokeniser");
  }
}

std::vector<Token> Tokenizer::tokenize(std::string_view text, bool special) const {
  if (const auto bad = first_invalid_utf8(text)) {
    throw InvalidArgument(fmt::format("text: byte {} is not UTF-8", *bad));
  }
  const std::string copy(text);
  const auto bytes = static_cast<int32_t>(copy.size());
  std::vector<Token> tokens(text.size() + 8);
  const int32_t capacity = static_cast<int32_t>(tokens.size());
  int32_t count = llama_tokenize(vocab_, copy.c_str(), bytes, tokens.data(), capacity, special, special);
  if (count < 0) {  // as many as it takes
    tokens.resize(-int64_t{count});
    count = llama_tokenize(vocab_, copy.c_str(), bytes, tokens.data(), -count, special, special);
  }
  tokens.resize(count);
  return tokens;
}

std::string Tokenizer::text(Token token) const {
  std::string piece(64, '\0');
  int32_t bytes = llama_token_to_piece(vocab_, token, piece.data(), int32_t(piece.size()), 0, false);
  if (bytes < 0) {
    piece.resize(-bytes);
    bytes = llama_token_to_piece(vocab_, token, piece.data(), int32_t(piece.size()), 0, false);
  }
  piece.resize(bytes);
  return piece;
}

std::string Tokenizer::chat_prompt(const std::vector<Message>& messages) const {
  const char* chat_template = llama_model_chat_template(model_.get(), nullptr);
  if (!chat_template)
    throw ModelError(path_ + ": tokenizer.chat_template is missing: the model has no chat template");
  std::vector<llama_chat_message> chat;
  size_t size = 256;
  for (const Message& message : messages) {
    chat.push_back({message.role.c_str(), message.content.c_str()});
    size += 64 + 2 * (message.role.size() + message.content.size());
  }
  std::string prompt(size, '\0');
  int32_t bytes =
      llama_chat_apply_template(chat_template, chat.data(), chat.size(), true, prompt.data(), int32_t(size));
  if (bytes > int32_t(size)) {
    prompt.resize(bytes);
    bytes = llama_chat_apply_template(chat_template, chat.data(), chat.size(), true, prompt.data(), bytes);
  }
  if (bytes < 0) throw ModelError(path_ + ": tokenizer.chat_template is none that libllama knows");
  prompt.resize(bytes);
  return prompt;
}

}  // namespace pagemill::engine
