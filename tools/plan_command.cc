// `pagemill plan`: options and report.
#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cmath>
#include <limits>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <tuple>

#include "commands.h"
#include "models.h"
#include "options.h"
#include "planning.h"
#include "workload.h"

namespace pagemill {
namespace {

struct Command {
  std::string trace;
  std::string decode;  // "BxS"
  ModelOption model;
  Config config;
  std::optional<pm_dtype> cache_dtype;
  std::string isa;
  int max_seqs = 256;
  int32_t budget = 2048;
  double cache_gib = 16;  // of one layer
  size_t limit = 0;       // requests; 0 = all
  int64_t steps = 0;      // 0 = all
  bool json = false;
};

// Sequences and keys of "1x100000".
std::tuple<int, int32_t> parse_decode(const std::string& text) {
  int sequences = 0, used = 0;
  int32_t keys = 0;
  if (std::sscanf(text.c_str(), "%7dx%8d%n", &sequences, &keys, &used) != 2 ||
      static_cast<size_t>(used) != text.size() || sequences < 1 || keys < 1) {
    throw UsageError(fmt::format("--decode {}: expected sequences and keys, such as 1x100000", text));
  }
  return {sequences, keys};
}

pm_tune_info tune_info(const char* isa) {
  pm_tune_info info{};
  info.struct_size = sizeof info;
  check(pm_tune_get(isa, &info));
  return info;
}

std::string cost_model(const pm_tune_info& info) {
  if (info.tuned) return fmt::format("tuned, median error {:.1f}% ({})", 100 * info.error, info.path);
  if (*info.problem) return fmt::format("not tuned: {}: {}", info.path, info.problem);
  return "not tuned: defaults (see pagemill tune)";
}

std::vector<PlannedStep> plan_all(const Command& c) {
  if (!c.decode.empty()) {
    const auto [sequences, keys] = parse_decode(c.decode);
    return {plan_decodes(c.config, sequences, keys)};
  }
  Trace trace = read_trace(c.trace);
  if (c.limit > 0 && c.limit < trace.requests.size()) trace.requests.resize(c.limit);
  return plan_trace(trace, c.config, c.max_seqs, c.budget, [&](const std::vector<PlannedStep>& steps) {
    return c.steps == 0 || std::ssize(steps) < c.steps;
  });
}

double median_plan_seconds(const std::vector<PlannedStep>& steps) {
  std::vector<double> seconds(steps.size());
  std::ranges::transform(steps, seconds.begin(), &PlannedStep::plan_seconds);
  const auto middle = seconds.begin() + std::ssize(seconds) / 2;
  std::ranges::nth_element(seconds, middle);
  return *middle;
}

std::string cell(double value) {
  return std::isfinite(value) ? fmt::format("{:.3f}", value) : "-";
}

void print_table(const Command& c, const Model& model, const pm_tune_info& tune,
                 const std::vector<PlannedStep>& steps) {
  const auto row = [](const char* name, const std::string& value) { fmt::print("{:<12} {}\n", name, value); };
  row("steps", c.decode.empty() ? c.trace : fmt::format("decode {}", c.decode));
  row("model", fmt::format("{}: {} heads, {} KV heads, head dim {}", model.name, model.heads, model.kv_heads,
                           model.head_dim));
  row("plan for", fmt::format("{} threads, {}, {}, cache {}, {}, page size {}", c.config.threads, tune.isa,
                              dtype_name(c.config.dtype), dtype_name(c.config.cache_dtype),
                              layout_name(c.config.layout), c.config.page_size));
  row("cost model", cost_model(tune));
  row("planning", fmt::format("{:.1f} us a step (median)", 1e6 * median_plan_seconds(steps)));
  fmt::print("\nefficiency: (unsplit cost / threads) / cost of the slowest thread\n");
  fmt::print("{:<12} {:>9} {:>8} {:>8} {:>8}\n", "sequences", "steps", "p5", "median", "mean");
  for (const EfficiencyClass& e : classify(steps, c.config.threads)) {
    fmt::print("{:<12} {:>9} {:>8} {:>8} {:>8}\n", e.name, e.steps, cell(e.p5), cell(e.median), cell(e.mean));
  }
}

void print_json(const Command& c, const Model& model, const pm_tune_info& tune,
                const std::vector<PlannedStep>& steps) {
  nlohmann::ordered_json line = {{"case", "plan"},
                                 {"steps_of", c.decode.empty() ? c.trace : "decode " + c.decode},
                                 {"model", model.name},
                                 {"isa", tune.isa},
                                 {"threads", c.config.threads},
                                 {"dtype", dtype_name(c.config.dtype)},
                                 {"cache_dtype", dtype_name(c.config.cache_dtype)},
                                 {"layout", layout_name(c.config.layout)},
                                 {"page_size", c.config.page_size},
                                 {"tuned", tune.tuned != 0},
                                 {"model_error", tune.tuned ? nlohmann::ordered_json(tune.error) : nullptr},
                                 {"plan_seconds", median_plan_seconds(steps)},
                                 {"classes", nlohmann::ordered_json::array()}};
  for (const EfficiencyClass& e : classify(steps, c.config.threads)) {
    line["classes"].push_back(
        {{"sequences", e.name}, {"steps", e.steps}, {"p5", e.p5}, {"median", e.median}, {"mean", e.mean}});
  }
  fmt::print("{}\n", line.dump());
}

void run(Command& c) {
  if (c.trace.empty() == c.decode.empty()) throw UsageError("plan: expected one of --trace and --decode");
  const Model model = c.model.resolve();
  c.config.num_heads = model.heads;
  c.config.num_kv_heads = model.kv_heads;
  c.config.head_dim = model.head_dim;
  c.config.out_dtype = c.config.dtype;
  c.config.cache_dtype = c.cache_dtype.value_or(c.config.dtype);
  if (!c.isa.empty()) c.config.isa = c.isa.c_str();
  const double page_bytes = 2.0 * c.config.page_size * model.kv_heads * model.head_dim *
                            static_cast<double>(element_size(c.config.cache_dtype));
  c.config.num_pages = static_cast<int64_t>(
      std::min<double>(c.cache_gib * (1 << 30) / page_bytes, std::numeric_limits<int32_t>::max()));
  const pm_tune_info tune = tune_info(c.config.isa);
  const std::vector<PlannedStep> steps = plan_all(c);
  c.json ? print_json(c, model, tune, steps) : print_table(c, model, tune, steps);
}

void add_options(CLI::App& app, Command& c) {
  const auto positive = CLI::Range(1, 1 << 20);
  app.add_option("--trace", c.trace, "Azure CSV or Mooncake JSONL: its steps, as replay makes them");
  app.add_option("--decode", c.decode, "One step instead: sequences x keys, such as 1x100000");
  app.add_option("--threads", c.config.threads, "Of the machine to plan for; default: this one's")
      ->check(CLI::Range(1, 4096));
  c.model.add_to(app);
  app.add_option("--limit", c.limit, "Only the first requests")->check(CLI::PositiveNumber);
  app.add_option("--steps", c.steps, "Only the first steps")->check(CLI::PositiveNumber);
  app.add_option("--max-seqs", c.max_seqs, "Sequences that run at once")
      ->check(positive)
      ->capture_default_str();
  app.add_option("--budget", c.budget, "Tokens of a step")->check(positive)->capture_default_str();
  app.add_option("--cache-gib", c.cache_gib, "Size of the cache of a layer, in GiB")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  app.add_option("--page-size", c.config.page_size, "Tokens of a page")
      ->check(CLI::Range(1, 1024))
      ->capture_default_str();
  add_dtype(app, "--dtype", c.config.dtype, "Of q, new keys and values");
  add_cache_dtype(app, c.cache_dtype, "Default: --dtype");
  add_layout(app, c.config.layout);
  app.add_option("--isa", c.isa, "Default: the best of the machine (see pagemill info)");
  app.add_flag("--json", c.json, "Print one JSON object");
}

}  // namespace

void add_plan(CLI::App& app) {
  auto command = std::make_shared<Command>();
  command->config.page_size = 16;
  command->config.threads = pm_default_threads();
  CLI::App* plan =
      app.add_subcommand("plan", "Plan steps without running them: how evenly any number of threads is used");
  add_options(*plan, *command);
  plan->callback([command] { run(*command); });
}

}  // namespace pagemill
