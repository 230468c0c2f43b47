// `pagemill generate`: text from prompts.
#include <fmt/core.h>

#include <CLI/CLI.hpp>
#include <iostream>
#include <nlohmann/json.hpp>
#include <pagemill/engine.hpp>

#include "commands.h"
#include "engine_options.h"
#include "generate.h"
#include "generate_report.h"
#include "interrupt.h"
#include "model_store.h"
#include "peaks.h"
#include "prompts.h"

namespace pagemill {
namespace {

struct Options {
  ModelFileOption model;
  std::vector<std::string> prompts;
  std::string file;
  bool chat = false, chat_template = false, json = false;
  engine::Request request;  // all but the prompt
  engine::Options engine;
};

class Generation {
 public:
  explicit Generation(const Options& options)
      : options_(options),
        model_(engine::Model::load(options.model.path())),
        engine_(model_, options.engine) {}

  void answer_all(const std::vector<Prompt>& prompts);
  void converse();

 private:
  engine::Request request(const std::string& text, bool wrapped) const;
  void run(std::vector<engine::Request> requests, std::vector<Answer>& answers);
  void print(const Answer& answer, size_t index, size_t of) const;
  void report(std::span<const Answer> answers) const;

  const Options& options_;
  std::shared_ptr<const engine::Model> model_;
  engine::Engine engine_;
};

engine::Request Generation::request(const std::string& text, bool wrapped) const {
  engine::Request request = options_.request;
  request.prompt = model_->tokenize(wrapped                  ? text
                                    : options_.chat_template ? model_->chat_prompt({{"user", text}})
                                                             : text,
                                    true);
  if (request.prompt.empty()) throw UsageError("--prompt is empty: expected text");
  return request;
}

void Generation::run(std::vector<engine::Request> requests, std::vector<Answer>& answers) {
  const bool stream = answers.size() == 1 && !options_.json;
  LiveTable table(answers.size());
  run_batch(engine_, std::move(requests), answers, [&](const engine::Event& event, size_t) {
    if (stream) {
      fmt::print("{}", event.text);
      std::fflush(stdout);
    } else {
      table.draw(answers, engine_.idle());
    }
  });
  if (stream) fmt::print("\n");
}

void Generation::print(const Answer& answer, size_t index, size_t of) const {
  if (options_.json) {
    nlohmann::json line = {{"index", index},
                           {"prompt_tokens", answer.prompt_tokens},
                           {"text", answer.text},
                           {"tokens", answer.tokens},
                           {"finish", finish_name(answer.finish)}};
    if (options_.request.logprobs) line["logprobs"] = answer.logprobs;
    fmt::print("{}\n", line.dump());
  } else if (of > 1) {
    const std::string prompt =
        answer.prompt.substr(answer.prompt.size() > 70 ? answer.prompt.size() - 70 : 0);
    fmt::print("--- {} of {}: {} tokens, ... {}\n{}\n\n", index + 1, of, answer.prompt_tokens, prompt,
               answer.text);
  }
}

void Generation::report(std::span<const Answer> answers) const {
  const int threads = engine_.options().threads;
  const Pool pool(threads);
  const pm_dtype cache = engine_.options().cache_dtype;
  const engine::Stats stats = engine_.stats();
  const Peaks peaks(pool.executor(), threads, stats.isa, cache == PM_BF16 ? PM_BF16 : PM_F32, cache);
  const Summary summary = summarize(answers, stats, peaks.best());
  if (options_.json) {
    fmt::print("{}\n", nlohmann::json{{"summary", to_json(summary)}}.dump());
  } else {
    std::fflush(stdout);
    fmt::print(stderr, "{}", describe(summary));
  }
}

void Generation::answer_all(const std::vector<Prompt>& prompts) {
  std::vector<engine::Request> requests;
  requests.reserve(prompts.size());
  std::vector<Answer> answers(prompts.size());
  for (size_t i = 0; i < prompts.size(); ++i) {
    requests.push_back(request(prompts[i].text, false));
    requests.back().max_tokens = prompts[i].max_tokens.value_or(options_.request.max_tokens);
    answers[i].prompt = prompts[i].text;
  }
  run(std::move(requests), answers);
  for (size_t i = 0; i < answers.size(); ++i) print(answers[i], i, answers.size());
  throw_if_interrupted();
  report(answers);
}

void Generation::converse() {
  std::vector<engine::Message> history;
  std::vector<Answer> all;
  std::string line;
  while (fmt::print(stderr, "> "), std::getline(std::cin, line)) {
    if (line.empty()) continue;
    history.push_back({"user", line});
    std::vector<Answer> answers(1);
    answers[0].prompt = line;
    run({request(model_->chat_prompt(history), true)}, answers);
    print(answers[0], all.size(), 1);
    throw_if_interrupted();
    history.push_back({"assistant", answers[0].text});
    all.push_back(std::move(answers[0]));
  }
  throw_if_interrupted();
  fmt::print(stderr, "\n");
  if (!all.empty()) report(all);
}

void run_generate(const Options& options) {
  note_interrupts();
  std::vector<Prompt> prompts;
  prompts.reserve(options.prompts.size());
  for (const std::string& text : options.prompts) prompts.push_back({text});
  if (!options.file.empty()) prompts = read_prompts(options.file);
  if (prompts.empty() && !options.chat) throw UsageError("expected --prompt, --file or --chat");
  Generation generation(options);
  if (options.chat) {
    generation.converse();
  } else {
    generation.answer_all(prompts);
  }
}

}  // namespace

void add_generate(CLI::App& app) {
  auto options = std::make_shared<Options>();
  CLI::App* command =
      app.add_subcommand("generate", "Write text with a model, many prompts as one ragged batch");
  options->model.add_to(*command);
  auto* prompt = command->add_option("-p,--prompt", options->prompts, "A prompt; may be given several times");
  auto* file = command->add_option("-f,--file", options->file, "Prompts: *.jsonl, or a line each");
  auto* chat =
      command->add_flag("--chat", options->chat, "A conversation, a line of the standard input at a time");
  prompt->excludes(file)->excludes(chat);
  file->excludes(chat);
  command->add_flag("--chat-template", options->chat_template,
                    "Wrap prompts as the model's own chat template does");
  command->add_flag("--json", options->json, "A JSON object a line");
  engine::Request& request = options->request;
  command->add_option("-n,--max-tokens", request.max_tokens, "Generated tokens, at most")
      ->capture_default_str();
  engine::Sampling& sampling = request.sampling;
  command->add_option("--temperature", sampling.temperature, "0 takes the best token")->capture_default_str();
  command->add_option("--top-k", sampling.top_k, "Among the k best; 0 = all")->capture_default_str();
  command->add_option("--top-p", sampling.top_p, "Among the best that together reach p")
      ->capture_default_str();
  command->add_option("--min-p", sampling.min_p, "Among those at least p times as likely as the best")
      ->capture_default_str();
  command->add_option("--repetition-penalty", sampling.repetition_penalty, "Divides logits of what occurred")
      ->capture_default_str();
  command->add_option("--seed", sampling.seed, "Of each prompt's random numbers")->capture_default_str();
  command->add_option("--stop", request.stop, "Text that ends the answer; may be given several times");
  command->add_flag("--ignore-end", request.ignore_end, "Go on where the model would end");
  command->add_flag("--logprobs", request.logprobs, "Log-probabilities of generated tokens, in --json");
  add_engine_options(*command, options->engine);
  command->callback([options] { run_generate(*options); });
}

}  // namespace pagemill
