// Options of the subcommands that run a model.
#ifndef PAGEMILL_TOOLS_ENGINE_OPTIONS_H_
#define PAGEMILL_TOOLS_ENGINE_OPTIONS_H_

#include <pagemill/engine.hpp>

namespace CLI {
class App;
}

namespace pagemill {

// --threads, --cache-dtype, --page-size, --pages, --budget, --max-seqs, --no-prefix-cache
void add_engine_options(CLI::App& app, engine::Options& options);

}  // namespace pagemill

#endif  // PAGEMILL_TOOLS_ENGINE_OPTIONS_H_
