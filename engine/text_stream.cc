#include "text_stream.h"

#include <algorithm>
#include <utility>

#include "utf8.h"

namespace pagemill::engine {

void TextStream::decode(bool all) {
  size_t i = 0;
  while (i < bytes_.size()) {
    const Character character = first_character(std::string_view(bytes_).substr(i));
    if (character.state == Character::kCut && !all) break;
    held_ += character.state == Character::kValid ? bytes_.substr(i, character.bytes) : "\uFFFD";
    i += character.bytes;
  }
  bytes_.erase(0, i);
}

std::string TextStream::add(std::string_view bytes) {
  bytes_ += bytes;
  decode(false);
  size_t stop = std::string::npos;
  for (const std::string& text : stops_) stop = std::min(stop, held_.find(text));
  if (stop != std::string::npos) {
    stopped_ = true;
    held_.resize(stop);
    bytes_.clear();
    return finish();
  }
  size_t certain = held_.size();
  for (const std::string& text : stops_) {
    for (size_t n = std::min(text.size() - 1, held_.size()); n > 0; --n) {
      if (std::string_view(held_).ends_with(std::string_view(text).substr(0, n))) {
        certain = std::min(certain, held_.size() - n);
        break;
      }
    }
  }
  std::string out = held_.substr(0, certain);
  held_.erase(0, certain);
  return out;
}

std::string TextStream::finish() {
  decode(true);
  return std::exchange(held_, {});
}

}  // namespace pagemill::engine
