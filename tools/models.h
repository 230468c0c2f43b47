// Attention shapes of well-known models.
#ifndef PAGEMILL_TOOLS_MODELS_H_
#define PAGEMILL_TOOLS_MODELS_H_

#include <span>
#include <string>
#include <string_view>

namespace CLI {
class App;
}

namespace pagemill {

struct Model {
  std::string_view name;
  int heads;     // H
  int kv_heads;  // K
  int head_dim;  // D
  int layers;
};

std::span<const Model> models();

// The shape that `--model` names, or that --heads, --kv-heads and --head-dim spell out.
struct ModelOption {
  std::string name = "llama3-8b";
  int heads = 0, kv_heads = 0, head_dim = 0;

  void add_to(CLI::App& app);
  // name "custom" and one layer if the shape was spelt out. Throws UsageError for half a shape.
  Model resolve() const;
};

}  // namespace pagemill

#endif  // PAGEMILL_TOOLS_MODELS_H_
