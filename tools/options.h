// Options that several subcommands have.
#ifndef PAGEMILL_TOOLS_OPTIONS_H_
#define PAGEMILL_TOOLS_OPTIONS_H_

#include <pagemill/pagemill.h>

#include <optional>
#include <string>

namespace CLI {
class App;
}

namespace pagemill {

// Each writes to its target when the option is given; the target must outlive the parsing.
void add_dtype(CLI::App& app, const std::string& flag, pm_dtype& target, const std::string& text);
void add_cache_dtype(CLI::App& app, std::optional<pm_dtype>& target, const std::string& text);
void add_layout(CLI::App& app, pm_layout& target);  // --layout

const char* layout_name(pm_layout layout);  // tiles or rows

}  // namespace pagemill

#endif  // PAGEMILL_TOOLS_OPTIONS_H_
