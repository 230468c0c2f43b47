// The text of one request as it grows: whole characters, and nothing that may yet turn out to be a stop
// string.
#ifndef PAGEMILL_ENGINE_TEXT_STREAM_H_
#define PAGEMILL_ENGINE_TEXT_STREAM_H_

#include <string>
#include <string_view>
#include <vector>

namespace pagemill::engine {

class TextStream {
 public:
  explicit TextStream(std::vector<std::string> stops) : stops_(std::move(stops)) {}

  // Takes in the bytes of the next token; returns what is certain now. Bytes that are not UTF-8 become
  // U+FFFD.
  std::string add(std::string_view bytes);
  // What is left when the request ends: up to the stop string, if one was met.
  std::string finish();
  bool stopped() const { return stopped_; }  // a stop string was met

 private:
  void decode(bool all);

  std::vector<std::string> stops_;
  std::string bytes_;  // perhaps the beginning of a character
  std::string held_;   // whole characters, not returned yet
  bool stopped_ = false;
};

}  // namespace pagemill::engine

#endif  // PAGEMILL_ENGINE_TEXT_STREAM_H_
