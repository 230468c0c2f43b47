// Three requests as one ragged batch: their text as it comes, and one that is cancelled.
//   generate model.gguf ["a prompt" ...]
#include <cstdio>
#include <exception>
#include <pagemill/engine.hpp>
#include <string>
#include <vector>

namespace engine = pagemill::engine;

static int generate(const char* path, const std::vector<std::string>& prompts) {
  const auto model = engine::Model::load(path);
  engine::Engine runner(model, {.cache_dtype = PM_BF16, .max_seqs = 8});
  std::vector<std::string> texts(prompts.size());
  for (const std::string& prompt : prompts)
    runner.add({.prompt = model->tokenize(prompt, true), .max_tokens = 24});
  const int64_t unwanted = runner.add({.prompt = model->tokenize("Never mind.", true), .max_tokens = 1000});

  while (!runner.idle()) {
    for (const engine::Event& event : runner.step()) {
      if (event.request == unwanted) continue;
      texts[event.request] += event.text;
      if (event.finish != engine::Finish::kNone) {
        std::printf("%lld: %s\n", static_cast<long long>(event.request), texts[event.request].c_str());
      }
    }
    runner.cancel(unwanted);
  }
  const engine::Stats stats = runner.stats();
  std::printf("%lld steps, %.0f%% of the time in attention\n", static_cast<long long>(stats.steps),
              100 * stats.attention_seconds / stats.seconds);
  return 0;
}

int main(int argc, char** argv) {
  if (argc < 2) {
    std::fprintf(stderr, "usage: %s model.gguf [prompt ...]\n", argv[0]);
    return 2;
  }
  std::vector<std::string> prompts(argv + 2, argv + argc);
  if (prompts.empty()) prompts = {"The sky is", "Once upon a time there was a mill", "1, 2, 3,"};
  try {
    return generate(argv[1], prompts);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
}
