// `pagemill replay`: options and progress.
#include <fmt/format.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <limits>
#include <memory>
#include <optional>

#include "commands.h"
#include "options.h"
#include "peaks.h"
#include "plot.h"
#include "replay_report.h"

namespace pagemill {
namespace {

struct Command {
  std::string trace;
  ModelOption model;
  ReplayOptions replay;
  std::optional<pm_dtype> cache_dtype;
  std::string isa;
  double cache_gib = 4;
  size_t limit = 0;  // requests; 0 = all
  bool json = false;
  std::string plot;
};

// Rewrites one line of a terminal, else prints a line now and then.
class Progress {
 public:
  ~Progress() {
    if (terminal_) fmt::print(stderr, "\r\033[K");
  }

  void operator()(const ReplayReport& report) {
    const auto now = std::chrono::steady_clock::now();
    if (now - last_ < (terminal_ ? std::chrono::milliseconds(200) : std::chrono::seconds(10))) return;
    last_ = now;
    const double roofline = summarize(report).all.roofline();  // NaN until the peaks are measured again
    fmt::print(stderr, "{}{} of {} requests done, step {}, {} tokens{}{}", terminal_ ? "\r" : "",
               report.finished, report.requests, report.started_steps, report.tokens,
               std::isnan(roofline) ? "" : fmt::format(", roofline {:.3f}", roofline),
               terminal_ ? "\033[K" : "\n");
    std::fflush(stderr);
  }

 private:
  const bool terminal_ = isatty(STDERR_FILENO);
  std::chrono::steady_clock::time_point last_ = std::chrono::steady_clock::now();
};

int64_t pages_of(double gib, const pm_config& config, int layers) {
  const double page_bytes = 2.0 * layers * config.page_size * config.num_kv_heads * config.head_dim *
                            static_cast<double>(element_size(config.cache_dtype));
  const double pages = gib * (1 << 30) / page_bytes;
  return static_cast<int64_t>(std::min<double>(pages, std::numeric_limits<int32_t>::max()));
}

// Name of the ISA that the library picks, once it accepts the configuration.
const char* resolve_isa(const pm_config& config) {
  const int32_t no_queries[] = {0};
  Batch batch;
  batch.query_start = no_queries;
  return Plan(config, batch).stats().isa;
}

void run(Command& command) {
  ReplayOptions& options = command.replay;
  Config& config = options.config;
  const Model model = command.model.resolve();
  config.num_heads = model.heads;
  config.num_kv_heads = model.kv_heads;
  config.head_dim = model.head_dim;
  config.out_dtype = config.dtype;
  config.cache_dtype = command.cache_dtype.value_or(config.dtype);
  if (config.num_pages == 0) config.num_pages = pages_of(command.cache_gib, config, options.layers);
  if (!command.isa.empty()) config.isa = command.isa.c_str();
  config.isa = resolve_isa(config);

  Trace trace = read_trace(command.trace);
  if (command.limit > 0 && command.limit < trace.requests.size()) trace.requests.resize(command.limit);
  if (!command.plot.empty()) prepare_plot(command.plot);

  const Pool pool(config.threads);
  const Executor executor = pool.executor();
  std::optional<Peaks> peaks;  // measured first after the trace is found to fit
  const auto measure_peaks = [&] {
    if (!peaks) peaks.emplace(executor, config.threads, config.isa, config.dtype, config.cache_dtype);
    return peaks->slice();
  };
  const ReplayReport report = [&] {
    Progress progress;
    return replay(trace, options, executor, measure_peaks, std::ref(progress));
  }();
  const std::string warning = judge_ratios(report);
  if (!warning.empty()) fmt::print(stderr, "pagemill: {}\n", warning);
  const ReplayTitle title{command.trace, model, options};
  if (!command.plot.empty()) {
    plot_replay(report, fmt::format("{}, {}, {}", command.trace, model.name, report.isa), command.plot);
  }
  fmt::print("{}\n", command.json ? replay_json(title, report).dump() : replay_table(title, report));
}

void add_cache_options(CLI::App& app, Command& c) {
  app.add_option("--page-size", c.replay.config.page_size, "Tokens of a page")
      ->check(CLI::Range(1, 1024))
      ->capture_default_str();
  auto* gib = app.add_option("--cache-gib", c.cache_gib, "Size of the caches of all layers together, in GiB")
                  ->check(CLI::PositiveNumber)
                  ->capture_default_str();
  app.add_option("--pages", c.replay.config.num_pages, "Pages of each layer's cache, instead of --cache-gib")
      ->check(CLI::Range(1, std::numeric_limits<int32_t>::max()))
      ->excludes(gib);
  add_dtype(app, "--dtype", c.replay.config.dtype, "Of q, new keys and values");
  add_cache_dtype(app, c.cache_dtype, "Default: --dtype");
  add_layout(app, c.replay.config.layout);
}

void add_options(CLI::App& app, Command& c) {
  const auto positive = CLI::Range(1, 1 << 20);
  app.add_option("TRACE", c.trace, "Azure CSV or Mooncake JSONL")->required();
  c.model.add_to(app);
  app.add_option("--layers", c.replay.layers, "Layers, each with a cache of its own")
      ->check(positive)
      ->capture_default_str();
  app.add_option("--limit", c.limit, "Only the first requests")->check(CLI::PositiveNumber);
  app.add_option("--seconds", c.replay.seconds, "Stop after this time; default: at the trace's end")
      ->check(CLI::PositiveNumber);
  app.add_option("--max-seqs", c.replay.max_seqs, "Sequences that run at once")
      ->check(positive)
      ->capture_default_str();
  app.add_option("--budget", c.replay.budget, "Tokens of a step")->check(positive)->capture_default_str();
  add_cache_options(app, c);
  app.add_option("--isa", c.isa, "Default: the best of the machine (see pagemill info)");
  app.add_option("--threads", c.replay.config.threads, "Default: what affinity and quota allow")
      ->check(CLI::Range(1, 4096));
  app.add_option("--verify", c.replay.verify, "Compare this many rows of each step with fp64")
      ->expected(0, 1)
      ->default_str("4")
      ->type_name("[ROWS]")
      ->check(positive);
  app.add_flag("--json", c.json, "Print one JSON object");
  app.add_option("--plot", c.plot, "Draw the time of each step against its roofline")->type_name("FILE.svg");
}

}  // namespace

void add_replay(CLI::App& app) {
  auto command = std::make_shared<Command>();
  command->replay.config.page_size = 16;
  command->replay.config.threads = pm_default_threads();
  CLI::App* replay = app.add_subcommand("replay", "Run the attention of every step of a serving trace");
  add_options(*replay, *command);
  replay->callback([command] { run(*command); });
}

}  // namespace pagemill
