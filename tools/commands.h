// The subcommands of the command line. Each adds itself to the app; its work runs in its callback, which
// throws what went wrong (exit code 1).
#ifndef PAGEMILL_TOOLS_COMMANDS_H_
#define PAGEMILL_TOOLS_COMMANDS_H_

#include <stdexcept>

namespace CLI {
class App;
}

namespace pagemill {

void add_info(CLI::App& app);
void add_bench(CLI::App& app);
void add_replay(CLI::App& app);
void add_check(CLI::App& app);
void add_tune(CLI::App& app);
void add_plan(CLI::App& app);
// In builds with PAGEMILL_BUILD_ENGINE.
void add_generate(CLI::App& app);
void add_perplexity(CLI::App& app);
void add_score(CLI::App& app);

// What a callback throws for a combination of options that the parser cannot reject (exit code 2).
struct UsageError : std::invalid_argument {
  using std::invalid_argument::invalid_argument;
};

}  // namespace pagemill

#endif  // PAGEMILL_TOOLS_COMMANDS_H_
