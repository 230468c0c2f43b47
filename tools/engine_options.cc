#include "engine_options.h"

#include <CLI/CLI.hpp>

#include "options.h"

namespace pagemill {

void add_engine_options(CLI::App& app, engine::Options& options) {
  app.add_option("--threads", options.threads, "0 = what affinity and cgroup allow")->capture_default_str();
  add_dtype(app, "--cache-dtype", options.cache_dtype, "Keys and values: f32, f16 or bf16");
  app.add_option("--page-size", options.page_size, "Tokens of a page, a multiple of 16")
      ->capture_default_str();
  app.add_option("--pages", options.pages, "Of the cache; 0 = up to 1 GiB")->capture_default_str();
  app.add_option("--budget", options.token_budget, "Tokens of a step")->capture_default_str();
  app.add_option("--max-seqs", options.max_seqs, "Requests that run at once")->capture_default_str();
  app.add_flag("!--no-prefix-cache", options.prefix_cache, "Compute equal beginnings of prompts again");
}

}  // namespace pagemill
