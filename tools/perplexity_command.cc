// `pagemill perplexity`: how well a model predicts a text.
#include <fmt/core.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cmath>
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
  int window = 2048;
  engine::Options engine;
};

void run_perplexity(const Options& options) {
  note_interrupts();
  const std::string text = read_file(options.file);
  const auto model = engine::Model::load(options.model.path());
  const std::vector<engine::Token> tokens = model->tokenize(text, true);
  if (tokens.size() < 2)
    throw std::runtime_error(
        fmt::format("{}: has {} tokens: expected at least 2", options.file, tokens.size()));
  engine::Engine engine(model, options.engine);
  const size_t window = std::min<size_t>(options.window, model->info().context);
  for (size_t begin = 0; begin + 1 < tokens.size(); begin += window) {
    engine::Request request;
    request.prompt.assign(tokens.begin() + begin, tokens.begin() + std::min(begin + window, tokens.size()));
    request.max_tokens = 0;
    request.score_from = 1;
    if (request.prompt.size() > 1) engine.add(std::move(request));
  }
  double sum = 0;
  int64_t scored = 0;
  const bool progress = isatty(STDERR_FILENO);
  while (!engine.idle()) {
    throw_if_interrupted();
    for (const engine::Event& event : engine.step()) {
      for (const engine::Scored& token : event.scored) sum -= token.logprob;
      scored += std::ssize(event.scored);
    }
    if (progress) fmt::print(stderr, "\r{} of {} tokens", scored, tokens.size());
  }
  if (progress) fmt::print(stderr, "\r\033[K");
  fmt::print("perplexity {:.4f} of {} tokens in windows of {}\n", std::exp(sum / scored), scored, window);
}

}  // namespace

void add_perplexity(CLI::App& app) {
  auto options = std::make_shared<Options>();
  CLI::App* command = app.add_subcommand("perplexity", "How well a model predicts a text");
  options->model.add_to(*command);
  command->add_option("FILE", options->file, "UTF-8 text")->required();
  command
      ->add_option("--window", options->window,
                   "Tokens that are predicted from those before them in the same window; at most the context")
      ->check(CLI::Range(2, 1 << 24))
      ->capture_default_str();
  add_engine_options(*command, options->engine);
  command->callback([options] { run_perplexity(*options); });
}

}  // namespace pagemill
