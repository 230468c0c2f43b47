#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <pagemill/engine.hpp>
#include <unordered_map>
#include <utility>

#include "forward.h"
#include "model.h"
#include "sampler.h"
#include "scheduler.h"
#include "text_stream.h"

namespace pagemill::engine {
namespace {

constexpr int64_t kDefaultCacheBytes = int64_t{1} << 30;
constexpr int kLogitRows = 128;  // of a step, unless more requests run at once: bounds the memory for logits

// Throws InvalidArgument unless the value of the named argument is right.
void expect(bool right, const char* name, auto value, const std::string& expectation) {
  if (!right) throw InvalidArgument(fmt::format("{} is {}: expected {}", name, value, expectation));
}

int64_t page_bytes(const Shape& shape, const Options& options) {
  return int64_t{2} * (options.cache_dtype == PM_F32 ? 4 : 2) * options.page_size * shape.layers *
         shape.kv_heads * shape.head_dim;
}

Options complete(Options options, const Shape& shape) {
  expect(options.threads >= 0, "threads", options.threads, "at least 0");
  const pm_dtype dtype = options.cache_dtype;
  expect(dtype == PM_F32 || dtype == PM_BF16 || dtype == PM_F16, "cache_dtype", static_cast<int>(dtype),
         "PM_F32, PM_BF16 or PM_F16");
  expect(options.page_size > 0 && options.page_size <= 1024 && options.page_size % 16 == 0, "page_size",
         options.page_size, "a multiple of 16 up to 1024");
  expect(options.pages >= 0 && options.pages <= (1 << 30), "pages", options.pages, "0 to 2^30");
  expect(options.token_budget > 0, "token_budget", options.token_budget, "at least 1");
  expect(options.max_seqs > 0, "max_seqs", options.max_seqs, "at least 1");
  options.max_seqs = std::min(options.max_seqs, options.token_budget);
  if (options.threads == 0) options.threads = pm_default_threads();
  if (options.pages == 0) {
    const int64_t wanted =
        int64_t{options.max_seqs} * ((shape.context + options.page_size - 1) / options.page_size);
    options.pages = std::clamp<int64_t>(kDefaultCacheBytes / page_bytes(shape, options), 1, wanted);
  }
  return options;
}

void check_sampling(const Sampling& s) {
  expect(std::isfinite(s.temperature) && s.temperature >= 0, "temperature", s.temperature, "at least 0");
  expect(s.top_k >= 0, "top_k", s.top_k, "at least 0");
  expect(s.top_p > 0 && s.top_p <= 1, "top_p", s.top_p, "above 0, up to 1");
  expect(s.min_p >= 0 && s.min_p <= 1, "min_p", s.min_p, "0 to 1");
  expect(std::isfinite(s.repetition_penalty) && s.repetition_penalty > 0, "repetition_penalty",
         s.repetition_penalty, "above 0");
  expect(s.seed != UINT32_MAX, "seed", s.seed, "below 2^32 - 1");
}

// A request that has not ended.
struct Running {
  Request request;
  Sampler sampler;
  TextStream text;
  int generated = 0;
};

}  // namespace

struct Engine::Parts {
  Parts(std::shared_ptr<const Model> given_model, const Options& given)
      : model(std::move(given_model)),
        options(complete(given, model->parts_->weights.shape())),
        scheduler({options.page_size, static_cast<int32_t>(options.pages), options.token_budget,
                   options.max_seqs, std::max(kLogitRows, options.max_seqs), options.prefix_cache}),
        forward(model->parts_->weights, options) {}

  int64_t add(Request request);
  void cancel(int64_t id);
  std::vector<Event> step();

  void check(const Request& request) const;
  void score(const Step::Piece& piece, const float* logits, std::vector<Event>& events);
  void generate(int64_t id, std::span<const float> logits, std::vector<Event>& events);
  void end(int64_t id, Finish finish, Event& event);

  std::shared_ptr<const Model> model;
  Options options;
  Scheduler scheduler;
  Forward forward;
  std::unordered_map<int64_t, Running> requests;
  std::vector<Event> due;  // events of cancelled requests
  int64_t next_id = 0;
  double seconds = 0;
};

void Engine::Parts::check(const Request& request) const {
  const ModelInfo& info = model->info();
  expect(!request.prompt.empty(), "prompt", "empty", "at least one token");
  for (Token token : request.prompt) {
    expect(token >= 0 && token < info.vocabulary, "prompt token", token,
           fmt::format("0 to {}, the model's vocabulary", info.vocabulary - 1));
  }
  expect(request.max_tokens >= 0, "max_tokens", request.max_tokens, "at least 0");
  const int64_t length = std::ssize(request.prompt) + request.max_tokens;
  const auto sum =
      fmt::format("prompt of {} and max_tokens of {}", request.prompt.size(), request.max_tokens);
  expect(length <= info.context, sum.c_str(), length,
         fmt::format("at most the model's context of {} tokens", info.context));
  const int64_t capacity = options.pages * options.page_size;
  expect(length <= capacity, sum.c_str(), length, fmt::format("at most the cache's {} tokens", capacity));
  check_sampling(request.sampling);
  for (const std::string& stop : request.stop) expect(!stop.empty(), "stop", "empty", "text");
  if (request.score_from) {
    expect(*request.score_from >= 1 && *request.score_from <= std::ssize(request.prompt), "score_from",
           *request.score_from, fmt::format("1 to {}, the prompt's tokens", request.prompt.size()));
  }
}

int64_t Engine::Parts::add(Request request) {
  check(request);
  const int64_t id = next_id++;
  const auto last = static_cast<int32_t>(request.prompt.size()) - 1;
  scheduler.add(id, request.prompt, request.score_from ? std::min(*request.score_from - 1, last) : last);
  Sampler sampler(request.sampling, model->info().vocabulary, request.prompt, request.max_tokens);
  TextStream text(request.stop);
  requests.emplace(id, Running{std::move(request), std::move(sampler), std::move(text)});
  return id;
}

void Engine::Parts::cancel(int64_t id) {
  expect(id >= 0 && id < next_id, "request", id, "one that add() returned");
  if (!requests.contains(id)) return;
  Event& event = due.emplace_back();
  event.request = id;
  end(id, Finish::kCancelled, event);
}

void Engine::Parts::end(int64_t id, Finish finish, Event& event) {
  event.text += requests.at(id).text.finish();
  event.finish = finish;
  scheduler.remove(id);
  requests.erase(id);
}

std::vector<Event> Engine::Parts::step() {
  const auto begin = std::chrono::steady_clock::now();
  std::vector<Event> events = std::exchange(due, {});
  const Step& step = scheduler.next();
  if (!step.pieces.empty()) {
    const float* logits = forward.run(step);
    for (const Step::Piece& piece : step.pieces) {
      score(piece, logits, events);
      logits += int64_t{piece.logits} * model->info().vocabulary;
    }
  }
  seconds += std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
  return events;
}

// What follows from the piece's logits [logits, vocabulary].
void Engine::Parts::score(const Step::Piece& piece, const float* logits, std::vector<Event>& events) {
  const Running& running = requests.at(piece.id);
  const size_t vocabulary = model->info().vocabulary;
  const auto prompt_tokens = static_cast<int32_t>(running.request.prompt.size());
  Event scored;
  scored.request = piece.id;
  scored.first_scored = piece.logits_first + 1;
  const bool last = piece.first + piece.count == std::ssize(scheduler.tokens(piece.id));
  for (int32_t i = 0; i < piece.logits; ++i, logits += vocabulary) {
    const int32_t next = piece.logits_first + i + 1;
    if (next < prompt_tokens) {
      const Token token = running.request.prompt[next];
      scored.scored.push_back(
          {log_probability({logits, vocabulary}, token),
           std::none_of(logits, logits + vocabulary, [=](float l) { return l > logits[token]; })});
    }
  }
  if (!scored.scored.empty()) events.push_back(std::move(scored));
  if (!last) return;
  if (running.request.max_tokens == 0) {
    Event& event = events.emplace_back();
    event.request = piece.id;
    end(piece.id, Finish::kLength, event);
  } else {
    generate(piece.id, {logits - vocabulary, vocabulary}, events);
  }
}

void Engine::Parts::generate(int64_t id, std::span<const float> logits, std::vector<Event>& events) {
  Running& running = requests.at(id);
  const Request& request = running.request;
  Event& event = events.emplace_back();
  event.request = id;
  const Token token = running.sampler.choose(logits);
  event.token = token;
  if (request.logprobs) event.logprob = log_probability(logits, token);
  ++running.generated;
  const bool stop_token = std::ranges::find(request.stop_tokens, token) != request.stop_tokens.end();
  if (stop_token || (!request.ignore_end && model->ends_generation(token)))
    return end(id, Finish::kEnd, event);
  event.text = running.text.add(model->text(token));
  if (running.text.stopped()) return end(id, Finish::kStop, event);
  if (running.generated == request.max_tokens) return end(id, Finish::kLength, event);
  scheduler.append(id, token);
}

Engine::Engine(std::shared_ptr<const Model> model, const Options& options)
    : parts_(std::make_unique<Parts>(std::move(model), options)) {}
Engine::~Engine() = default;
Engine::Engine(Engine&&) noexcept = default;

int64_t Engine::add(Request request) {
  return parts_->add(std::move(request));
}
void Engine::cancel(int64_t request) {
  parts_->cancel(request);
}
std::vector<Event> Engine::step() {
  return parts_->step();
}
bool Engine::idle() const {
  return parts_->scheduler.idle() && parts_->due.empty();
}
const Options& Engine::options() const {
  return parts_->options;
}

Stats Engine::stats() const {
  Stats stats = parts_->forward.stats();
  stats.prefix_hit_tokens = parts_->scheduler.hit_tokens();
  stats.preemptions = parts_->scheduler.preemptions();
  stats.peak_pages = parts_->scheduler.peak_pages();
  stats.pages = parts_->options.pages;
  stats.seconds = parts_->seconds;
  return stats;
}

}  // namespace pagemill::engine
