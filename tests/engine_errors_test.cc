// What is wrong with a file, a request or an option ends in one message, and leaves everything else as it
// was.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <pagemill/engine.hpp>
#include <random>

#include "engine_models.h"
#include "expect.h"
#include "prompts.h"

namespace pagemill::engine {
namespace {

using testing::HasSubstr;
using testing::ThrowsMessage;

void write_bytes(const std::string& path, std::string_view bytes) {
  std::ofstream(path, std::ios::binary | std::ios::trunc) << bytes;
}

Options one_thread() {
  Options options = small_options();
  options.threads = 1;
  return options;
}

auto refuses(const std::string& what) {
  return ThrowsMessage<ModelError>(HasSubstr(what));
}

// A model with one mistake.
void expect_refused(const std::function<void(RandomModel&)>& break_it, const std::string& what) {
  const TemporaryFile file("broken.gguf");
  RandomModel model;
  break_it(model);
  write_model(model, file.path());
  EXPECT_THAT([&] { Model::load(file.path()); }, refuses(what));
}

TEST(EngineErrors, FilesThatAreNoModels) {
  EXPECT_THAT([] { Model::load("/nowhere/model.gguf"); }, refuses("/nowhere/model.gguf: No such file"));
  EXPECT_THAT([] { Model::load("/"); }, refuses("expected a file"));
  const TemporaryFile file("no.gguf");
  for (const std::string& bytes : {std::string(), std::string("GGUF"), std::string(5000, 'x')}) {
    write_bytes(file.path(), bytes);
    EXPECT_THAT([&] { Model::load(file.path()); }, refuses(file.path()));
  }
}

TEST(EngineErrors, MistakesInTheMetadata) {
  expect_refused([](RandomModel& m) { m.architecture = "mamba"; },
                 "general.architecture is mamba: expected llama");
  expect_refused([](RandomModel& m) { m.head_dim = 20; }, "head dim is 20: expected a multiple of 8");
  expect_refused([](RandomModel& m) { m.heads = 3; },
                 "attention.head_count_kv is 2: expected a divisor of the 3 heads");
  expect_refused([](RandomModel& m) { m.rope_scaling = "longrope"; },
                 "longrope: expected none, linear or yarn");
  expect_refused([](RandomModel& m) { m.without_tensor = "blk.1.attn_k.weight"; },
                 "tensor blk.1.attn_k.weight is missing");
  const auto change = [](auto set) { return [set](RandomModel& m) { m.change = set; }; };
  expect_refused(change([](gguf_context* g) { gguf_set_val_str(g, "tokenizer.ggml.model", "runes"); }),
                 "no tokeniser that libllama knows");
  expect_refused(change([](gguf_context* g) { gguf_remove_key(g, "tokenizer.ggml.tokens"); }),
                 "tokenizer.ggml.tokens is missing");
  expect_refused(change([](gguf_context* g) { gguf_set_val_str(g, "llama.block_count", "three"); }),
                 "llama.block_count is of type str: expected a number");
  expect_refused(change([](gguf_context* g) { gguf_set_val_u32(g, "llama.block_count", 0); }),
                 "llama.block_count is 0: expected 1 to");
  expect_refused(change([](gguf_context* g) { gguf_set_val_u32(g, "llama.embedding_length", 48); }),
                 "has shape [64, 320");
  expect_refused(change([](gguf_context* g) { gguf_set_val_u32(g, "llama.expert_count", 8); }),
                 "mixtures of experts");
}

TEST(EngineErrors, CutFiles) {
  const TemporaryFile whole("whole.gguf"), cut("cut.gguf");
  write_model({}, whole.path());
  const std::string bytes = read_file(whole.path());
  for (size_t n = 0; n < bytes.size(); n += 1 + bytes.size() / 150) {
    write_bytes(cut.path(), std::string_view(bytes).substr(0, n));
    EXPECT_THAT([&] { Model::load(cut.path()); }, refuses(cut.path())) << n << " bytes";
  }
}

// Changed bytes of the header are refused, or make another model that loads and runs.
TEST(EngineErrors, CorruptHeaders) {
  const TemporaryFile whole("sound.gguf"), corrupt("corrupt.gguf");
  write_model({}, whole.path());
  const std::string sound = read_file(whole.path());
  const size_t header = sound.find("blk.0.attn_norm.weight") + 2000;
  std::mt19937 random(5);
  int refused = 0;
  for (int i = 0; i < scaled(600); ++i) {
    std::string bytes = sound;
    for (int n = 1 + int(random() % 3); n > 0; --n)
      bytes[random() % header] = char(random() % 4 == 0 ? 0xFF : random());
    write_bytes(corrupt.path(), bytes);
    try {
      const auto model = Model::load(corrupt.path());
      Options options = one_thread();
      options.pages = 4;
      Engine engine(model, options);
      engine.add({.prompt = {3, 4, 5}, .max_tokens = 2});
      while (!engine.idle()) engine.step();
    } catch (const ModelError&) {
      ++refused;
    } catch (const InvalidArgument&) {  // such as a context of one token
      ++refused;
    }
  }
  EXPECT_GT(refused, 0);
}

class EngineRequests : public testing::Test {
 protected:
  void SetUp() override {
    RandomModel small;
    small.context = 64;
    write_model(small, file.path());
    model = Model::load(file.path());
  }
  auto adding(Request request) {
    return [this, request] {
      Engine engine(model, one_thread());
      engine.add(request);
    };
  }
  auto with(Options options) {
    return [this, options] { Engine(model, options); };
  }
  static auto throws(const char* what) { return ThrowsMessage<InvalidArgument>(HasSubstr(what)); }

  TemporaryFile file{"requests.gguf"};
  std::shared_ptr<const Model> model;
};

TEST_F(EngineRequests, MistakesOfTheCaller) {
  EXPECT_THAT(adding({}), throws("prompt is empty: expected at least one token"));
  EXPECT_THAT(adding({.prompt = {320}}), throws("prompt token is 320: expected 0 to 319"));
  EXPECT_THAT(adding({.prompt = {-1}}), throws("prompt token is -1"));
  EXPECT_THAT(
      adding({.prompt = random_tokens(60, 1), .max_tokens = 5}),
      throws("prompt of 60 and max_tokens of 5 is 65: expected at most the model's context of 64 tokens"));
  EXPECT_THAT(adding({.prompt = {3}, .max_tokens = -1}), throws("max_tokens is -1"));
  EXPECT_THAT(adding({.prompt = {3}, .max_tokens = 1, .sampling = {.temperature = -1}}),
              throws("temperature is -1"));
  EXPECT_THAT(adding({.prompt = {3}, .max_tokens = 1, .sampling = {.top_p = 0}}), throws("top_p is 0"));
  EXPECT_THAT(adding({.prompt = {3}, .max_tokens = 1, .stop = {""}}), throws("stop is empty"));
  EXPECT_THAT(adding({.prompt = {3}, .max_tokens = 1, .score_from = 2}),
              throws("score_from is 2: expected 1 to 1"));
  Options options = one_thread();
  options.cache_dtype = PM_F8E4M3;  // which needs scales of each layer
  EXPECT_THAT(with(options), throws("cache_dtype is 3: expected PM_F32, PM_BF16 or PM_F16"));
  options.cache_dtype = PM_BF16;
  options.page_size = 8;
  EXPECT_THAT(with(options), throws("page_size is 8: expected a multiple of 16"));
  options = one_thread();
  options.pages = 2;
  EXPECT_THAT([&] { Engine(model, options).add({.prompt = random_tokens(30, 1), .max_tokens = 3}); },
              throws("33: expected at most the cache's 32 tokens"));
  EXPECT_THAT([&] { Engine(model, one_thread()).cancel(0); },
              throws("request is 0: expected one that add() returned"));
  EXPECT_THAT([&] { model->tokenize("a\xFF", true); }, throws("text: byte 1 is not UTF-8"));
  EXPECT_THAT([&] { model->text(320); }, throws("token is 320: expected 0 to 319"));
}

TEST_F(EngineRequests, ARefusedRequestLeavesTheOthers) {
  Engine engine(model, one_thread());
  const int64_t id = engine.add({.prompt = {3, 4}, .max_tokens = 3, .ignore_end = true});
  EXPECT_THROW(engine.add({}), InvalidArgument);
  int tokens = 0;
  while (!engine.idle())
    for (const Event& event : engine.step()) {
      EXPECT_EQ(event.request, id);
      tokens += event.token.has_value();
    }
  EXPECT_EQ(tokens, 3);
}

TEST_F(EngineRequests, CancellingEndsARequestOnce) {
  Engine engine(model, one_thread());
  const int64_t id = engine.add({.prompt = {3, 4}, .max_tokens = 20, .ignore_end = true});
  engine.step();
  engine.cancel(id);
  engine.cancel(id);
  const std::vector<Event> events = engine.step();
  ASSERT_EQ(events.size(), 1u);
  EXPECT_EQ(events[0].finish, Finish::kCancelled);
  EXPECT_TRUE(engine.idle());
  EXPECT_EQ(engine.add({.prompt = {3}, .max_tokens = 1}), 1);
}

std::vector<Token> tokens_of(Engine& engine, const Request& request) {
  const int64_t id = engine.add(request);
  std::vector<Token> tokens;
  while (!engine.idle())
    for (const Event& event : engine.step())
      if (event.request == id && event.token) tokens.push_back(*event.token);
  return tokens;
}

TEST_F(EngineRequests, SamplingFollowsTheSeed) {
  Engine engine(model, one_thread());
  Request request{.prompt = {3, 4}, .max_tokens = 20, .ignore_end = true};
  const std::vector<Token> greedy = tokens_of(engine, request);
  request.sampling = {.temperature = 2, .seed = 1};
  const std::vector<Token> first = tokens_of(engine, request);
  EXPECT_EQ(tokens_of(engine, request), first);
  request.sampling.seed = 2;
  EXPECT_NE(tokens_of(engine, request), first);
  EXPECT_NE(greedy, first);
  for (const Sampling& narrow :
       {Sampling{.temperature = 2, .top_k = 1}, Sampling{.temperature = 2, .top_p = 1e-6f},
        Sampling{.temperature = 2, .min_p = 1}}) {
    request.sampling = narrow;
    EXPECT_EQ(tokens_of(engine, request), greedy);
  }
}

TEST_F(EngineRequests, APenaltyKeepsFromRepeating) {
  Engine engine(model, one_thread());
  Request request{.prompt = {3, 4}, .max_tokens = 40, .ignore_end = true};
  request.sampling.repetition_penalty = 1e6f;
  std::vector<Token> tokens = tokens_of(engine, request);
  tokens.insert(tokens.end(), {3, 4});
  std::ranges::sort(tokens);
  EXPECT_EQ(std::ranges::adjacent_find(tokens), tokens.end());
}

TEST_F(EngineRequests, StopTokensAndLogProbabilities) {
  Engine engine(model, one_thread());
  Request request{.prompt = {3, 4}, .max_tokens = 10, .ignore_end = true, .logprobs = true};
  const std::vector<Token> free = tokens_of(engine, request);
  request.stop_tokens = {free[4]};
  engine.add(request);
  std::vector<Token> tokens;
  std::vector<float> logprobs;
  Finish finish = Finish::kNone;
  while (!engine.idle())
    for (const Event& event : engine.step()) {
      tokens.push_back(*event.token);
      logprobs.push_back(event.logprob);
      finish = event.finish;
    }
  EXPECT_EQ(finish, Finish::kEnd);
  EXPECT_EQ(tokens.back(), free[4]);
  // The same from the prompt's side: what was generated, scored.
  std::vector<Token> whole = request.prompt;
  whole.insert(whole.end(), tokens.begin(), tokens.end());
  engine.add({.prompt = whole, .max_tokens = 0, .score_from = 2});
  std::vector<Scored> scored;
  while (!engine.idle())
    for (const Event& event : engine.step())
      scored.insert(scored.end(), event.scored.begin(), event.scored.end());
  ASSERT_EQ(scored.size(), logprobs.size());
  for (size_t i = 0; i < scored.size(); ++i) {
    EXPECT_NEAR(scored[i].logprob, logprobs[i], 1e-4) << i;
    EXPECT_TRUE(scored[i].best) << i;
  }
}

}  // namespace
}  // namespace pagemill::engine
