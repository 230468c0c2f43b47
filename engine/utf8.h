// Where UTF-8 ends and where it breaks.
#ifndef PAGEMILL_ENGINE_UTF8_H_
#define PAGEMILL_ENGINE_UTF8_H_

#include <cstddef>
#include <optional>
#include <string_view>

namespace pagemill::engine {

struct Character {
  size_t bytes;  // at least 1
  enum { kValid, kCut, kInvalid } state;
};

// The character at the front of text, which is not empty. Cut: the text ends within it. Invalid: one byte to
// skip.
inline Character first_character(std::string_view text) {
  const auto at = [text](size_t i) { return static_cast<unsigned char>(text[i]); };
  const unsigned char lead = at(0);
  const size_t bytes = lead < 0x80   ? 1
                       : lead < 0xC2 ? 0
                       : lead < 0xE0 ? 2
                       : lead < 0xF0 ? 3
                       : lead < 0xF5 ? 4
                                     : 0;
  if (bytes == 0) return {1, Character::kInvalid};
  for (size_t i = 1; i < bytes; ++i) {
    if (i == text.size()) return {i, Character::kCut};
    unsigned char low = 0x80, high = 0xBF;
    if (i == 1) {  // neither overlong, nor a surrogate, nor past U+10FFFF
      if (lead == 0xE0) low = 0xA0;
      if (lead == 0xED) high = 0x9F;
      if (lead == 0xF0) low = 0x90;
      if (lead == 0xF4) high = 0x8F;
    }
    if (at(i) < low || at(i) > high) return {1, Character::kInvalid};
  }
  return {bytes, Character::kValid};
}

// The index of the first byte that is not part of a whole character.
inline std::optional<size_t> first_invalid_utf8(std::string_view text) {
  for (size_t i = 0; i < text.size();) {
    const Character character = first_character(text.substr(i));
    if (character.state != Character::kValid) return i;
    i += character.bytes;
  }
  return std::nullopt;
}

}  // namespace pagemill::engine

#endif  // PAGEMILL_ENGINE_UTF8_H_
