#include "model.h"

#include <fmt/format.h>

namespace pagemill::engine {

Model::Parts::Parts(const std::string& path) : weights(path), tokenizer(path) {
  const Shape& shape = weights.shape();
  if (tokenizer.size() != shape.vocabulary) {
    weights.file().fail(fmt::format("the tokeniser has {} tokens: expected {}, as the embedding has",
                                    tokenizer.size(), shape.vocabulary));
  }
  info.architecture = weights.architecture_name();
  info.name = weights.file().string("general.name").value_or("");
  info.layers = shape.layers;
  info.heads = shape.heads;
  info.kv_heads = shape.kv_heads;
  info.head_dim = shape.head_dim;
  info.embedding = shape.embedding;
  info.vocabulary = shape.vocabulary;
  info.context = shape.context;
  info.window = shape.window;
  info.weight_bytes = weights.file().tensor_bytes();
}

Model::Model(std::unique_ptr<Parts> parts) : parts_(std::move(parts)) {}
Model::~Model() = default;

std::shared_ptr<const Model> Model::load(const std::string& path) {
  return std::shared_ptr<const Model>(new Model(std::make_unique<Parts>(path)));
}

const ModelInfo& Model::info() const {
  return parts_->info;
}

std::vector<Token> Model::tokenize(std::string_view text, bool special) const {
  return parts_->tokenizer.tokenize(text, special);
}

std::string Model::text(Token token) const {
  if (token < 0 || token >= info().vocabulary) {
    throw InvalidArgument(fmt::format("token is {}: expected 0 to {}", token, info().vocabulary - 1));
  }
  return parts_->tokenizer.text(token);
}

bool Model::ends_generation(Token token) const {
  return parts_->tokenizer.ends_generation(token);
}

std::string Model::chat_prompt(const std::vector<Message>& messages) const {
  return parts_->tokenizer.chat_prompt(messages);
}

}  // namespace pagemill::engine
