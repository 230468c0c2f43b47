// Small random models of each architecture: our logits beside libllama's.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>

#include "engine_models.h"

namespace pagemill::engine {
namespace {

struct Architecture {
  const char* name;
  RandomModel model;
  double tolerance;
};

RandomModel with(const char* architecture, auto change) {
  RandomModel model;
  model.architecture = architecture;
  change(model);
  return model;
}

// libllama rounds GELU's input to f16, for its table: a difference in the last bit of f32 may become one of
// f16.
constexpr double kExact = 1e-5, kGelu = 2e-3;

const Architecture kModels[] = {
    {"llama", with("llama", [](RandomModel&) {}), kExact},
    {"llama_bias_tied", with("llama", [](RandomModel& m) { m.qkv_bias = m.tied = true; }), kExact},
    {"llama_rope_factors", with("llama", [](RandomModel& m) { m.rope_factors = true, m.rope_base = 500000; }),
     kExact},
    {"llama_linear", with("llama", [](RandomModel& m) { m.rope_scaling = "linear", m.rope_scale = 4; }),
     kExact},
    {"llama_yarn", with("llama", [](RandomModel& m) { m.rope_scaling = "yarn", m.rope_scale = 4; }), kExact},
    {"qwen2", with("qwen2", [](RandomModel& m) { m.qkv_bias = true; }), kExact},
    {"qwen3", with("qwen3", [](RandomModel& m) { m.head_dim = 32, m.tied = true; }), kExact},
    {"gemma3",
     with("gemma3",
          [](RandomModel& m) {
            m.layers = 7, m.window = 24, m.tied = true, m.head_dim = 256, m.kv_heads = 1,
            m.rope_base = 1000000;
          }),
     kGelu},
    {"gemma3_global", with("gemma3", [](RandomModel& m) { m.rope_scaling = "linear", m.rope_scale = 8; }),
     kGelu},
};

class EngineArchitectures : public testing::TestWithParam<Architecture> {};

TEST_P(EngineArchitectures, LogitsAreThoseOfLibllama) {
  const TemporaryFile file(std::string(GetParam().name) + ".gguf");
  write_model(GetParam().model, file.path());
  const Weights weights(file.path());
  const std::vector<std::vector<int32_t>> prompts = {random_tokens(150, 1), random_tokens(1, 2),
                                                     random_tokens(47, 3)};
  std::vector<Logits> expected;
  for (const auto& prompt : prompts) expected.push_back(libllama_logits(file.path(), prompt, 0));
  Options options = small_options();
  for (const int budget : {512, 13}) {
    options.token_budget = budget;
    options.max_seqs = std::min(budget, 4);
    SCOPED_TRACE(budget);
    const std::vector<Logits> found = our_logits(weights, options, prompts, {0, 0, 0});
    for (size_t i = 0; i < prompts.size(); ++i) {
      const double error = relative_error(found[i], expected[i]);
      EXPECT_LE(error, GetParam().tolerance) << "prompt " << i;
      EXPECT_GE(error, 0);
      RecordProperty("error" + std::to_string(i), std::to_string(error));
    }
  }
}

INSTANTIATE_TEST_SUITE_P(All, EngineArchitectures, testing::ValuesIn(kModels),
                         [](const auto& info) { return std::string(info.param.name); });

// Narrower caches round keys and values; bf16 rounds queries too. One that did neither would agree far
// better.
TEST(EngineArchitectures, NarrowCachesCostTheirRounding) {
  const TemporaryFile file("narrow.gguf");
  write_model({}, file.path());
  const Weights weights(file.path());
  const std::vector<int32_t> prompt = random_tokens(100, 4);
  const Logits expected = libllama_logits(file.path(), prompt, 0);
  Options options = small_options();
  for (const auto& [dtype, step] : {std::pair{PM_F16, 0x1p-11}, std::pair{PM_BF16, 0x1p-8}}) {
    options.cache_dtype = dtype;
    const double error = relative_error(our_logits(weights, options, {prompt}, {0})[0], expected);
    EXPECT_LT(error, 20 * step) << "dtype " << dtype;
    EXPECT_GT(error, step / 20) << "dtype " << dtype;
  }
}

TEST(EngineArchitectures, AnotherIsRefusedByName) {
  const TemporaryFile file("other.gguf");
  write_model(with("mamba", [](RandomModel&) {}), file.path());
  EXPECT_THAT([&] { Weights weights(file.path()); }, testing::ThrowsMessage<ModelError>(testing::HasSubstr(
                                                         "mamba: expected llama, qwen2, qwen3 or gemma3")));
}

}  // namespace
}  // namespace pagemill::engine
