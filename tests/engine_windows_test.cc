// Attention inputs captured from a model with windows, against fp64: an edge that is off by one shows here,
// not in logits.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <span>

#include "engine_models.h"

namespace pagemill::engine {
namespace {

constexpr int kHeads = 4, kKvHeads = 1, kHeadDim = 256, kWindow = 24, kLayers = 7;

// All keys and values of one layer and sequence so far: [S, K, D].
struct Seen {
  std::vector<float> k, v;
};

std::span<const float> row(const float* data, size_t i) {
  return {data + i * kHeadDim, size_t(kHeadDim)};
}

// The largest error of one query head's output, with a window of so many tokens, 0 = all.
double error_of(const Seen& seen, std::span<const float> q, std::span<const float> out, int position,
                int window) {
  const int begin = window > 0 ? std::max(0, position - window + 1) : 0;
  std::vector<double> weights;
  double largest = -INFINITY, sum = 0;
  for (int key = begin; key <= position; ++key) {
    double score = 0;
    for (int d = 0; d < kHeadDim; ++d) score += double(q[d]) * row(seen.k.data(), size_t(key))[d];
    weights.push_back(score / std::sqrt(double(kHeadDim)));
    largest = std::max(largest, weights.back());
  }
  for (double& weight : weights) sum += weight = std::exp(weight - largest);
  double worst = 0;
  for (int d = 0; d < kHeadDim; ++d) {
    double value = 0;
    for (size_t i = 0; i < weights.size(); ++i) value += weights[i] / sum * row(seen.v.data(), begin + i)[d];
    worst = std::max(worst, std::abs(value - out[d]));
  }
  return worst;
}

TEST(EngineWindows, EveryQuerySeesItsWindowAndNoMore) {
  RandomModel model;
  model.architecture = "gemma3";
  model.layers = kLayers, model.window = kWindow, model.head_dim = kHeadDim;
  model.heads = kHeads, model.kv_heads = kKvHeads, model.tied = true;
  const TemporaryFile file("windows.gguf");
  write_model(model, file.path());
  const Weights weights(file.path());
  const std::vector<std::vector<int32_t>> prompts = {random_tokens(100, 1), random_tokens(61, 2)};

  std::map<std::pair<int, int64_t>, Seen> seen;
  double worst = 0, worst_narrower = INFINITY, worst_wider = INFINITY;
  int local_queries = 0, global_queries = 0;
  const auto check = [&](const AttentionCall& call) {
    for (size_t b = 0; b < call.step->pieces.size(); ++b) {
      const Step::Piece& piece = call.step->pieces[b];
      const size_t begin = call.step->query_start[b], end = call.step->query_start[b + 1];
      Seen& s = seen[{call.layer, piece.id}];
      s.k.insert(s.k.end(), call.k + begin * kHeadDim, call.k + end * kHeadDim);
      s.v.insert(s.v.end(), call.v + begin * kHeadDim, call.v + end * kHeadDim);
      for (size_t t = begin; t < end; ++t) {
        const int position = call.step->positions[t];
        double narrower = 0, wider = 0;
        for (int h = 0; h < kHeads; ++h) {
          const auto q = row(call.q, t * kHeads + h), out = row(call.out, t * kHeads + h);
          worst = std::max(worst, error_of(s, q, out, position, call.window));
          if (call.window == 0) continue;
          narrower = std::max(narrower, error_of(s, q, out, position, call.window - 1));
          wider = std::max(wider, error_of(s, q, out, position, call.window + 1));
        }
        (call.window > 0 ? local_queries : global_queries) += 1;
        if (call.window > 0 && position >= call.window) {
          worst_narrower = std::min(worst_narrower, narrower);
          worst_wider = std::min(worst_wider, wider);
        }
      }
    }
  };
  Options options = small_options();
  options.token_budget = 37;
  our_logits(weights, options, prompts, {99, 60}, check);
  EXPECT_EQ(local_queries, 6 * 161);
  EXPECT_EQ(global_queries, 1 * 161);
  EXPECT_LT(worst, 1e-5);
  // What the same comparison says of windows that are off by one, at its least.
  EXPECT_GT(worst_narrower, 1e-5);
  EXPECT_GT(worst_wider, 1e-5);
  RecordProperty("worst", std::to_string(worst));
}

}  // namespace
}  // namespace pagemill::engine
