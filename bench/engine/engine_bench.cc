// Times steps of a model, without sampling, as llama-batched-bench does, and prints one JSON object.
//   engine_bench MODEL THREADS prefill PROMPTS TOKENS    all prompts, of random tokens, as one batch
//   engine_bench MODEL THREADS decode BATCH DEPTH STEPS  one token for each of BATCH sequences with DEPTH
//   keys and more
#include <fmt/core.h>

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <random>
#include <stdexcept>
#include <string>
#include <vector>

#include "forward.h"
#include "scheduler.h"
#include "weights.h"

namespace pagemill::engine {
namespace {

constexpr int kPageSize = 16;

double now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

void print(double tokens, double seconds, const Stats& before, const Stats& after) {
  fmt::print("{{\"tokens_per_second\": {:.2f}, \"attention_share\": {:.3f}}}\n", tokens / seconds,
             (after.attention_seconds - before.attention_seconds) / seconds);
}

Options options(int threads, int64_t tokens) {
  Options o;
  o.threads = threads;
  o.page_size = kPageSize;
  o.pages = tokens / kPageSize;
  return o;
}

void prefill(const Weights& weights, int threads, int prompts, int length) {
  std::mt19937 random(1);
  const Options o = options(threads, int64_t{prompts} * (length + kPageSize));
  Scheduler scheduler({o.page_size, static_cast<int32_t>(o.pages), o.token_budget, prompts, prompts, false});
  for (int i = 0; i < prompts; ++i) {
    std::vector<int32_t> tokens(length);
    for (int32_t& token : tokens) token = static_cast<int32_t>(random() % weights.shape().vocabulary);
    scheduler.add(i, tokens, length - 1);
  }
  Forward forward(weights, o);
  const double begin = now();
  for (int done = 0; done < prompts;) {
    const Step& step = scheduler.next();
    forward.run(step);
    done += static_cast<int>(step.logit_rows.size());
  }
  print(double(prompts) * length, now() - begin, {}, forward.stats());
}

// The cache's contents do not matter to the time, so they are drawn: zeros would be unlike any text.
void fill_cache(HugeBuffer& cache) {
  std::mt19937 random(2);
  std::normal_distribution<float> normal;
  std::vector<uint16_t> values(1 << 16);
  for (uint16_t& value : values) {
    const float x = normal(random);
    uint32_t bits;
    std::memcpy(&bits, &x, sizeof bits);
    value = static_cast<uint16_t>(bits >> 16);
  }
  const size_t chunk = values.size() * sizeof values[0];
  for (size_t at = 0; at < cache.bytes(); at += chunk) {
    std::memcpy(cache.data() + at, values.data(), std::min(chunk, cache.bytes() - at));
  }
}

void decode(const Weights& weights, int threads, int batch, int depth, int steps) {
  constexpr int kWarmUp = 2;
  std::mt19937 random(3);
  const int pages_per_seq = (depth + steps + kWarmUp) / kPageSize + 1;
  Forward forward(weights, options(threads, int64_t{batch} * pages_per_seq * kPageSize));
  fill_cache(forward.cache());
  std::vector<int32_t> pages(size_t(batch) * pages_per_seq);
  for (size_t i = 0; i < pages.size(); ++i) pages[i] = static_cast<int32_t>(i);
  double begin = 0;
  Stats before;
  for (int i = -kWarmUp; i < steps; ++i) {
    if (i == 0) {
      begin = now();
      before = forward.stats();
    }
    const int position = depth + kWarmUp + i;
    Step step;
    step.pages_per_seq = pages_per_seq;
    step.page_table = pages;
    step.query_start.push_back(0);
    for (int b = 0; b < batch; ++b) {
      step.pieces.push_back({b, position, 1, position, 1});
      step.tokens.push_back(static_cast<int32_t>(random() % weights.shape().vocabulary));
      step.positions.push_back(position);
      step.query_start.push_back(b + 1);
      step.kv_len.push_back(position + 1);
      step.logit_rows.push_back(b);
    }
    forward.run(step);
  }
  print(double(batch) * steps, now() - begin, before, forward.stats());
}

int run(const std::vector<std::string>& words) {
  const auto number = [&words](size_t i) { return std::stoi(words.at(i)); };
  const Weights weights(words.at(1));
  if (words.at(3) == "prefill") {
    prefill(weights, number(2), number(4), number(5));
  } else if (words[3] == "decode") {
    decode(weights, number(2), number(4), number(5), number(6));
  } else {
    throw std::invalid_argument(words[3] + ": expected prefill or decode");
  }
  return 0;
}

}  // namespace
}  // namespace pagemill::engine

int main(int argc, char** argv) {
  try {
    return pagemill::engine::run({argv, argv + argc});
  } catch (const std::exception& error) {
    fmt::print(stderr, "engine_bench: {}\n", error.what());
    return 1;
  }
}
