#include <fmt/core.h>

#include <CLI/CLI.hpp>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>

#include "bench.h"
#include "commands.h"
#include "options.h"

namespace pagemill {
namespace {

struct Options {
  ModelOption model;
  BenchSpec spec;
  BenchLength length;
  std::optional<pm_dtype> cache_dtype;
  bool json = false;
};

void print_json(const BenchSpec& spec, const BenchResult& result) {
  const nlohmann::ordered_json line = {{"case", spec.name},
                                       {"model", spec.model.name},
                                       {"isa", result.isa},
                                       {"threads", spec.threads},
                                       {"dtype", dtype_name(spec.dtype)},
                                       {"cache_dtype", dtype_name(spec.cache_dtype)},
                                       {"layout", layout_name(spec.layout)},
                                       {"page_size", spec.page_size},
                                       {"heads", spec.model.heads},
                                       {"kv_heads", spec.model.kv_heads},
                                       {"head_dim", spec.model.head_dim},
                                       {"batch", spec.batch},
                                       {"context", spec.context},
                                       {"q_len", spec.q_len},
                                       {"window", spec.window},
                                       {"invariant", spec.invariant},
                                       {"repetitions", result.repetitions},
                                       {"seconds", result.seconds},
                                       {"plan_seconds", result.plan_seconds},
                                       {"bytes", result.work.bytes},
                                       {"flops", result.work.flops},
                                       {"peak_read_gbps", result.peak.read / 1e9},
                                       {"peak_gflops", result.peak.flops / 1e9},
                                       {"mbu", result.mbu},
                                       {"mfu", result.mfu},
                                       {"roofline", result.roofline},
                                       {"worst_error", result.worst_error}};
  fmt::print("{}\n", line.dump());
}

void print_table(const BenchSpec& spec, const BenchResult& result) {
  const auto row = [](const char* name, const std::string& value) { fmt::print("{:<10} {}\n", name, value); };
  const Model& m = spec.model;
  const Work& work = result.work;
  const double t = result.seconds;
  row("case", fmt::format("{}: batch {}, context {}, q_len {}{}", spec.name, spec.batch, spec.context,
                          spec.q_len, spec.window ? fmt::format(", window {}", spec.window) : ""));
  row("model",
      fmt::format("{}: {} heads, {} KV heads, head dim {}", m.name, m.heads, m.kv_heads, m.head_dim));
  row("kernel", fmt::format("{}, {} threads, {}, cache {}, {}, page size {}{}", result.isa, spec.threads,
                            dtype_name(spec.dtype), dtype_name(spec.cache_dtype), layout_name(spec.layout),
                            spec.page_size, spec.invariant ? ", batch-invariant" : ""));
  row("time", fmt::format("{:.3f} ms a step (median of {}), plan {:.3f} ms", t * 1e3, result.repetitions,
                          result.plan_seconds * 1e3));
  row("read", fmt::format("{:.1f} MB, {:.1f} of {:.1f} GB/s", work.bytes / 1e6, work.bytes / t / 1e9,
                          result.peak.read / 1e9));
  row("computed", fmt::format("{:.2f} GFLOP, {:.1f} of {:.1f} GFLOP/s", work.flops / 1e9,
                              work.flops / t / 1e9, result.peak.flops / 1e9));
  row("mbu", fmt::format("{:.3f}", result.mbu));
  row("mfu", fmt::format("{:.3f}", result.mfu));
  row("roofline", fmt::format("{:.3f}", result.roofline));
  row("error", fmt::format("{:.3f} of the bound", result.worst_error));
}

void add_options(CLI::App& app, Options& o) {
  BenchSpec& spec = o.spec;
  const auto positive = CLI::PositiveNumber;
  o.model.add_to(app);
  app.add_option("--batch", spec.batch, "Sequences; of mixed: those that decode")->check(positive);
  app.add_option("--context", spec.context, "Keys of each, new tokens included; the chunk of mixed has half")
      ->check(positive);
  app.add_option("--q-len", spec.q_len, "New tokens of each sequence; of mixed: of its one chunk")
      ->check(positive);
  app.add_option("--page-size", spec.page_size, "Tokens of a page (16)")->check(CLI::Range(1, 1024));
  add_dtype(app, "--dtype", spec.dtype, "Of q, new keys and values (bf16)");
  add_cache_dtype(app, o.cache_dtype, "Default: --dtype");
  add_layout(app, spec.layout);
  app.add_option("--isa", spec.isa, "Default: the best of the machine (see pagemill info)");
  app.add_option("--threads", spec.threads, "Default: what affinity and quota allow")
      ->check(CLI::Range(1, 4096));
  app.add_option("--window", spec.window, "Keys that a query sees, itself included; 0 = all")
      ->check(CLI::NonNegativeNumber);
  app.add_flag("--invariant", spec.invariant, "Batch-invariant mode");
  auto* repetitions =
      app.add_option("--repetitions", o.length.repetitions, "Repetitions to time, instead of --seconds")
          ->check(positive);
  app.add_option("--seconds", o.length.seconds, "Seconds to repeat for (5)")
      ->check(CLI::PositiveNumber)
      ->excludes(repetitions);
  app.add_flag("--json", o.json, "Print one JSON object");
}

void run(Options& o) {
  o.spec.model = o.model.resolve();
  o.spec.cache_dtype = o.cache_dtype.value_or(o.spec.dtype);
  if (o.spec.q_len == 0) o.spec.q_len = o.spec.context;
  if (o.spec.name != "mixed" && o.spec.q_len > o.spec.context) {
    throw UsageError(fmt::format("--q-len {}: expected at most --context {}", o.spec.q_len, o.spec.context));
  }
  const BenchResult result = run_bench(o.spec, o.length);
  o.json ? print_json(o.spec, result) : print_table(o.spec, result);
}

void add_case(CLI::App& bench, const char* name, const char* text, int batch, int context, int q_len) {
  auto options = std::make_shared<Options>();
  options->spec = {
      name, {}, batch, context, q_len, 16, PM_BF16, PM_BF16, PM_TILES, "", pm_default_threads(), 0, false};
  CLI::App* app = bench.add_subcommand(name, text);
  add_options(*app, *options);
  app->callback([options] { run(*options); });
}

}  // namespace

void add_bench(CLI::App& app) {
  CLI::App* bench = app.add_subcommand("bench", "Time a step against the peaks of the machine");
  bench->require_subcommand(1);
  constexpr int kWholePrompt = 0;
  add_case(*bench, "decode", "One new token a sequence (16 x 4096)", 16, 4096, 1);
  add_case(*bench, "prefill", "Whole prompts (1 x 4096), or chunks of --q-len at their end", 1, 4096,
           kWholePrompt);
  add_case(*bench, "mixed", "Decodes (14 x 4096) and one chunk of a prompt (512 of 2048)", 14, 4096, 512);
  add_bench_plan(*bench);
  add_bench_pool(*bench);
}

}  // namespace pagemill
