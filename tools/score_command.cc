// `pagemill score`: log-likelihoods of continuations, for evaluation harnesses.
#include <fmt/core.h>

#include <CLI/CLI.hpp>
#include <nlohmann/json.hpp>
#include <pagemill/engine.hpp>

#include "commands.h"
#include "engine_options.h"
#include "interrupt.h"
#include "model_store.h"
#include "prompts.h"

namespace pagemill {
namespace {

struct Options {
  ModelFileOption model;
  std::string file;
  engine::Options engine;
};

struct Line {
  double logprob = 0;
  int tokens = 0;
  bool greedy = true;
  bool done = false;
};

// The continuation's tokens are those of context and continuation together, past as many as the context has.
engine::Request scoring(const engine::Model& model, const std::string& context,
                        const std::string& continuation) {
  engine::Request request;
  request.prompt = model.tokenize(context + continuation, true);
  request.max_tokens = 0;
  const auto before = static_cast<int>(model.tokenize(context, true).size());
  const auto all = static_cast<int>(request.prompt.size());
  if (all < 2 || before >= all) throw std::invalid_argument("the continuation adds no token to predict");
  request.score_from = std::max(before, 1);
  return request;
}

void run_score(const Options& options) {
  note_interrupts();
  const auto model = engine::Model::load(options.model.path());
  engine::Engine engine(model, options.engine);
  std::vector<Line> lines;
  for_each_json(options.file, [&](const nlohmann::json& line) {
    engine.add(
        scoring(*model, line.at("context").get<std::string>(), line.at("continuation").get<std::string>()));
    lines.emplace_back();
  });
  size_t printed = 0;
  while (!engine.idle()) {
    throw_if_interrupted();
    for (const engine::Event& event : engine.step()) {
      Line& line = lines[event.request];
      for (const engine::Scored& token : event.scored) {
        line.logprob += token.logprob;
        line.greedy = line.greedy && token.best;
        ++line.tokens;
      }
      line.done = event.finish != engine::Finish::kNone;
    }
    for (; printed < lines.size() && lines[printed].done; ++printed) {
      const Line& line = lines[printed];
      fmt::print(
          "{}\n",
          nlohmann::json{{"logprob", line.logprob}, {"tokens", line.tokens}, {"greedy", line.greedy}}.dump());
    }
  }
  const engine::Stats stats = engine.stats();
  std::fflush(stdout);
  fmt::print(stderr, "{} lines, {} tokens computed, {} found in the cache\n", lines.size(),
             stats.computed_tokens, stats.prefix_hit_tokens);
}

}  // namespace

void add_score(CLI::App& app) {
  auto options = std::make_shared<Options>();
  CLI::App* command = app.add_subcommand("score", "Log-likelihoods of continuations given contexts");
  options->model.add_to(*command);
  command
      ->add_option("FILE", options->file,
                   R"(Lines of {"context": ..., "continuation": ...}; - = standard input)")
      ->required();
  add_engine_options(*command, options->engine);
  command->callback([options] { run_score(*options); });
}

}  // namespace pagemill
