// `pagemill tune`: options, progress and report.
#include <fmt/core.h>

#include <CLI/CLI.hpp>
#include <cmath>
#include <memory>
#include <pagemill/pagemill.hpp>
#include <string>

#include "commands.h"
#include "cpu_caches.h"
#include "options.h"
#include "tune.h"
#include "workload.h"

namespace pagemill {
namespace {

struct Command {
  std::string isa, output;
  int threads = pm_default_threads();
  bool table = false;
};

void print_samples(const Tune& tune) {
  fmt::print("{:<8} {:<5} {:<5} {:<5} {:>4} {:>5} {:>6} {:>12} {:>12} {:>7}\n", "products", "q", "cache",
             "layout", "D", "rows", "keys", "measured ns", "model ns", "error");
  for (const TuneSample& s : tune.samples) {
    const CostModel& model = tune.models[s.kind];
    fmt::print("{:<8} {:<5} {:<5} {:<6} {:>4} {:>5} {:>6} {:>12.0f} {:>12.0f} {:>6.0f}%{}\n",
               kCostKinds[s.kind], dtype_name(s.shape.dtype), dtype_name(s.shape.cache_dtype),
               layout_name(s.shape.layout), s.shape.head_dim, s.shape.rows(), s.shape.keys, s.ns,
               s.predict(model), 100 * s.error(model), s.held_out ? " held out" : "");
  }
}

void print_models(const Tune& tune) {
  fmt::print("{:<12}", "ns");
  for (const char* kind : kCostKinds) fmt::print(" {:>10}", kind);
  fmt::print("\n");
  for (const CostField& field : kCostFields) {
    fmt::print("{:<12}", field.name);
    for (const CostModel& model : tune.models) fmt::print(" {:>10.4g}", model.*field.value);
    fmt::print("\n");
  }
  for (const bool held_out : {false, true}) {
    fmt::print("{:<12}", held_out ? "held out" : "fitted");
    for (int kind = 0; kind < static_cast<int>(tune.models.size()); ++kind) {
      const double error = median_error(tune.samples, tune.models, kind, held_out);
      fmt::print(" {:>10}", std::isnan(error) ? "-" : fmt::format("{:.1f}%", 100 * error));
    }
    fmt::print("   median error\n");
  }
  fmt::print("median error of the items that were held out: {:.1f}%\n", 100 * tune.error);
}

void run(const Command& c) {
  pm_tune_info info{};
  info.struct_size = sizeof info;
  check(pm_tune_get(c.isa.empty() ? nullptr : c.isa.c_str(), &info));
  const std::string path = c.output.empty() ? info.path : c.output;
  if (path.empty()) throw UsageError("tune: no place to store it: expected --output, or HOME set");
  int last = 0;
  const Tune tune = measure_tune(info.isa, c.threads, [&](const std::string& what) {
    fmt::print(stderr, "\r{:<{}}", what, last);
    last = static_cast<int>(what.size());
    std::fflush(stderr);
  });
  fmt::print(stderr, "\n");
  if (c.table) print_samples(tune);
  print_models(tune);
  write_file_at_once(path, tune_text(tune, cpu_name()));
  fmt::print("stored in {}\n", path);
}

}  // namespace

void add_tune(CLI::App& app) {
  auto command = std::make_shared<Command>();
  CLI::App* tune =
      app.add_subcommand("tune", "Measure what work items take here, for the plans of all programs");
  tune->add_option("--isa", command->isa, "Default: the best of the machine (see pagemill info)");
  tune->add_option("--threads", command->threads,
                   "That read memory at once; default: what affinity and quota allow")
      ->check(CLI::Range(1, 4096));
  tune->add_option("--output", command->output, "Default: where the library looks for it");
  tune->add_flag("--table", command->table, "Print every measured item too");
  tune->callback([command] { run(*command); });
}

}  // namespace pagemill
