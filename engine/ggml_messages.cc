#include "ggml_messages.h"

#include <fmt/core.h>
#include <ggml.h>
#include <llama.h>

#include <mutex>
#include <pagemill/engine.hpp>

namespace pagemill::engine {
namespace {

thread_local int listening = 0;
thread_local std::string last_error;

void note(ggml_log_level level, const char* text, void*) {
  if (level == GGML_LOG_LEVEL_ERROR && listening > 0) last_error = text;
}

void throw_or_print(const char* message) {
  if (listening > 0) throw ModelError(fmt::format("cannot be read: {}", message));
  fmt::print(stderr, "{}\n", message);
}

}  // namespace

GgmlMessages::GgmlMessages() {
  static std::once_flag once;
  std::call_once(once, [] {
    llama_log_set(note, nullptr);
    ggml_set_abort_callback(throw_or_print);
  });
  ++listening;
  last_error.clear();
}

GgmlMessages::~GgmlMessages() {
  --listening;
}

std::string GgmlMessages::last(const std::string& otherwise) const {
  std::string text = last_error.empty() ? otherwise : last_error;
  while (!text.empty() && text.back() == '\n') text.pop_back();
  return text;
}

}  // namespace pagemill::engine
