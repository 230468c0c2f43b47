// SmolLM2-135M-Instruct, as it is and with its weights as f32, beside libllama.
#include <fmt/core.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <numeric>
#include <pagemill/engine.hpp>
#include <random>

#include "engine_models.h"
#include "model_store.h"
#include "prompts.h"
#include "sampler.h"

namespace pagemill::engine {
namespace {

std::string smollm2() {
  static const std::string path = find_model("smollm2", false);
  return path;
}

std::vector<Token> opticks() {
  static const std::vector<Token> tokens =
      Model::load(smollm2())->tokenize(read_file(PAGEMILL_SOURCE_DIR "/texts/opticks.txt"), true);
  return tokens;
}

std::vector<Token> part(size_t first, size_t n) {
  const std::vector<Token> text = opticks();
  return {text.begin() + ptrdiff_t(first), text.begin() + ptrdiff_t(first + n)};
}

// Quantised weights would hide errors of attention: rounding activations to int8 makes far larger ones.
class DequantizedSmolLm2 : public testing::Test {
 protected:
  void SetUp() override { write_dequantized(smollm2(), file.path()); }
  const TemporaryFile file{"smollm2-f32.gguf"};
};

TEST_F(DequantizedSmolLm2, LogitsAreThoseOfLibllama) {
  constexpr double kTolerance = 1e-5;
  constexpr int kRows = 8;  // the last of each prompt
  std::vector<std::vector<Token>> prompts;
  std::vector<int32_t> from;
  std::vector<Logits> expected;
  for (const int n : {5, 32, 500, 2000}) {
    prompts.push_back(part(0, n));
    from.push_back(std::max(0, n - kRows));
    expected.push_back(libllama_logits(file.path(), prompts.back(), from.back()));
  }
  const Weights weights(file.path());
  Options options = small_options();
  options.pages = 256;
  double worst = 0;
  const auto compare = [&](const char* how, size_t i, const Logits& found) {
    const double error = relative_error(found, expected[i]);
    EXPECT_GE(error, 0) << how << ", " << prompts[i].size() << " tokens";
    EXPECT_LE(error, kTolerance) << how << ", " << prompts[i].size() << " tokens";
    worst = std::max(worst, error);
  };
  for (const int budget : {2048, 192}) {
    options.token_budget = budget;
    for (size_t i = 0; i < prompts.size(); ++i) {
      compare(budget == 2048 ? "whole" : "chunked", i,
              our_logits(weights, options, {prompts[i]}, {from[i]})[0]);
    }
  }
  for (const bool prefix_cache : {false, true}) {
    options.token_budget = 512;
    options.prefix_cache = prefix_cache;
    const std::vector<Logits> found = our_logits(weights, options, prompts, from);
    for (size_t i = 0; i < prompts.size(); ++i)
      compare(prefix_cache ? "batch with hits" : "batch", i, found[i]);
  }
  fmt::print("largest relative error {:.2g}\n", worst);
}

// A request by itself, best tokens only: what it writes, and by how much the best logit led each time.
struct Alone {
  std::vector<Token> tokens;
  std::vector<float> lead;
};

Alone run_alone(const Weights& weights, const Options& options, const Request& request) {
  Scheduler scheduler({options.page_size, int32_t(options.pages), options.token_budget, 1, 1, false});
  static std::map<const Weights*, std::unique_ptr<Forward>> forwards;
  std::unique_ptr<Forward>& forward = forwards[&weights];
  if (!forward) forward = std::make_unique<Forward>(weights, options);
  scheduler.add(0, request.prompt, int32_t(request.prompt.size()) - 1);
  Alone alone;
  while (true) {
    const Step& step = scheduler.next();
    const float* row = forward->run(step);
    if (step.logit_rows.empty()) continue;
    std::vector<float> logits(row, row + weights.shape().vocabulary);
    const auto best = std::max_element(logits.begin(), logits.end());
    alone.tokens.push_back(Token(best - logits.begin()));
    const float top = std::exchange(*best, -INFINITY);
    alone.lead.push_back(top - *std::max_element(logits.begin(), logits.end()));
    if (std::ssize(alone.tokens) == request.max_tokens) return alone;
    scheduler.append(0, alone.tokens.back());
  }
}

struct Concurrent {
  std::vector<std::vector<Token>> tokens;
  std::vector<Finish> finish;
  Stats stats;
};

// All requests through one engine, at random times; some are cancelled at random times.
Concurrent run_concurrently(const std::string& path, const Options& options,
                            const std::vector<Request>& requests, const std::vector<bool>& cancelled) {
  Engine engine(Model::load(path), options);
  std::mt19937 random(7);
  Concurrent all;
  all.tokens.resize(requests.size());
  all.finish.resize(requests.size(), Finish::kNone);
  size_t added = 0;
  while (added < requests.size() || !engine.idle()) {
    for (size_t n = random() % 4; n > 0 && added < requests.size(); --n) engine.add(requests[added++]);
    for (size_t i = 0; i < added; ++i)
      if (cancelled[i] && random() % 10 == 0) engine.cancel(int64_t(i));
    for (const Event& event : engine.step()) {
      if (event.token) all.tokens[event.request].push_back(*event.token);
      EXPECT_EQ(all.finish[event.request], Finish::kNone) << "an event after the last";
      all.finish[event.request] = event.finish;
    }
  }
  all.stats = engine.stats();
  return all;
}

std::vector<Request> random_requests(int n) {
  std::mt19937 random(11);
  std::vector<Request> requests(n);
  for (Request& request : requests) {
    request.prompt = part(random() % 4 * 500, 4 + random() % 150);
    request.max_tokens = 4 + int(random() % 20);
    request.ignore_end = true;
  }
  return requests;
}

// Fewer pages than the requests need, so that they wait and are preempted.
Options crowded(pm_dtype cache) {
  Options options = small_options();
  options.cache_dtype = cache;
  options.pages = 64;
  options.token_budget = 96;
  options.max_seqs = 24;
  return options;
}

TEST_F(DequantizedSmolLm2, SixtyFourRequestsAtOnceWriteWhatEachWritesAlone) {
  constexpr float kTie = 1e-4f;
  const std::vector<Request> requests = random_requests(64);
  std::vector<bool> cancelled(requests.size());
  for (size_t i = 0; i < cancelled.size(); i += 6) cancelled[i] = true;
  const Options options = crowded(PM_F32);
  const Concurrent together = run_concurrently(file.path(), options, requests, cancelled);
  EXPECT_GT(together.stats.preemptions, 0);
  EXPECT_GT(together.stats.prefix_hit_tokens, 0);
  EXPECT_EQ(together.stats.peak_pages, options.pages);
  const Weights weights(file.path());
  int cut = 0, ties = 0;
  for (size_t i = 0; i < requests.size(); ++i) {
    SCOPED_TRACE(i);
    const Alone alone = run_alone(weights, options, requests[i]);
    const std::vector<Token>& found = together.tokens[i];
    const bool whole = found.size() == alone.tokens.size();
    EXPECT_TRUE(whole || cancelled[i]) << found.size() << " of " << alone.tokens.size() << " tokens";
    EXPECT_EQ(together.finish[i],
              whole && together.finish[i] == Finish::kLength ? Finish::kLength : Finish::kCancelled);
    cut += together.finish[i] == Finish::kCancelled;
    const size_t n = std::min(found.size(), alone.tokens.size());
    const size_t same =
        std::mismatch(found.begin(), found.begin() + ptrdiff_t(n), alone.tokens.begin()).first -
        found.begin();
    if (same == n) continue;
    const float least = *std::min_element(alone.lead.begin(), alone.lead.begin() + ptrdiff_t(same) + 1);
    EXPECT_LT(least, kTie) << "token " << same << " differs";
    ++ties;
  }
  EXPECT_GT(cut, 0);
  fmt::print(
      "{} requests, {} cancelled, {} preemptions, {} prompt tokens found, {} that differ after a tie\n",
      requests.size(), cut, together.stats.preemptions, together.stats.prefix_hit_tokens, ties);
}

// With quantised weights the least difference may flip a rounding, so this reports and asserts nothing of
// tokens.
TEST(QuantizedSmolLm2, HowFarRequestsTogetherDivergeFromEachAlone) {
  const std::vector<Request> requests = random_requests(16);
  const Options options = crowded(PM_BF16);
  const Concurrent together =
      run_concurrently(smollm2(), options, requests, std::vector<bool>(requests.size()));
  const Weights weights(smollm2());
  size_t same = 0, all = 0;
  for (size_t i = 0; i < requests.size(); ++i) {
    const Alone alone = run_alone(weights, options, requests[i]);
    ASSERT_EQ(together.tokens[i].size(), alone.tokens.size());
    same += std::mismatch(alone.tokens.begin(), alone.tokens.end(), together.tokens[i].begin()).first -
            alone.tokens.begin();
    all += alone.tokens.size();
  }
  fmt::print("{} of {} tokens come before the first difference\n", same, all);
}

TEST(QuantizedSmolLm2, PerplexityIsThatOfLibllama) {
  constexpr size_t kWindow = 2048;
  const std::vector<Token> text = opticks();
  Options options;
  options.threads = 2;
  Engine engine(Model::load(smollm2()), options);
  double expected = 0;
  int64_t tokens = 0;
  for (size_t begin = 0; begin < text.size(); begin += kWindow) {
    Request request;
    request.prompt = part(begin, std::min(kWindow, text.size() - begin));
    request.max_tokens = 0;
    request.score_from = 1;
    for (const auto& [position, logits] : libllama_logits(smollm2(), request.prompt, 0)) {
      if (position + 1 == std::ssize(request.prompt)) continue;
      expected -= log_probability(logits, request.prompt[position + 1]);
      ++tokens;
    }
    engine.add(std::move(request));
  }
  double found = 0;
  int64_t scored = 0;
  while (!engine.idle())
    for (const Event& event : engine.step())
      for (const Scored& token : event.scored) {
        found -= token.logprob;
        ++scored;
      }
  ASSERT_EQ(scored, tokens);
  found = std::exp(found / double(tokens));
  expected = std::exp(expected / double(tokens));
  EXPECT_NEAR(found / expected, 1, 0.005);
  fmt::print("perplexity {:.4f}, libllama's {:.4f}, of {} tokens\n", found, expected, tokens);
}

}  // namespace
}  // namespace pagemill::engine
