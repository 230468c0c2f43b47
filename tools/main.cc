#include <fmt/core.h>
#include <pagemill/pagemill.h>

#include <CLI/CLI.hpp>
#include <cstdio>
#include <exception>
#include <new>

#include "commands.h"
#include "interrupt.h"

namespace {

enum ExitCode { kOk = 0, kFailed = 1, kUsage = 2, kInterrupted = 130 };

int fail(ExitCode code, const char* message) {
  std::fflush(stdout);
  fmt::print(stderr, "pagemill: {}\n", message);
  return code;
}

}  // namespace

int main(int argc, char** argv) {
  try {
    CLI::App app(
        "Ragged paged attention on CPUs: write text with it, measure it, replay traces through it, check it.",
        "pagemill");
    app.set_version_flag("--version", pm_version());
    app.require_subcommand(1);
    pagemill::add_info(app);
    pagemill::add_bench(app);
    pagemill::add_replay(app);
    pagemill::add_check(app);
    pagemill::add_tune(app);
    pagemill::add_plan(app);
#ifdef PAGEMILL_HAS_ENGINE
    pagemill::add_generate(app);
    pagemill::add_perplexity(app);
    pagemill::add_score(app);
#endif
    try {
      app.parse(argc, argv);
    } catch (const CLI::ParseError& error) {
      if (error.get_exit_code() == 0) return app.exit(error);  // --help, --version
      return fail(kUsage, error.what());
    }
    return kOk;
  } catch (const pagemill::UsageError& error) {
    return fail(kUsage, error.what());
  } catch (const pagemill::Interrupted&) {
    return fail(kInterrupted, "interrupted");
  } catch (const std::bad_alloc&) {
    return fail(kFailed, "out of memory");
  } catch (const std::exception& error) {
    return fail(kFailed, error.what());
  }
}
