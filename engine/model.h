#ifndef PAGEMILL_ENGINE_MODEL_H_
#define PAGEMILL_ENGINE_MODEL_H_

#include <pagemill/engine.hpp>

#include "tokenizer.h"
#include "weights.h"

namespace pagemill::engine {

struct Model::Parts {
  explicit Parts(const std::string& path);

  Weights weights;
  Tokenizer tokenizer;
  ModelInfo info;
};

}  // namespace pagemill::engine

#endif  // PAGEMILL_ENGINE_MODEL_H_
