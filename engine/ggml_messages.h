// What ggml and libllama report while this object lives, instead of printing it: the last error that the
// calling thread met. A check of theirs that fails throws ModelError instead of ending the program.
#ifndef PAGEMILL_ENGINE_GGML_MESSAGES_H_
#define PAGEMILL_ENGINE_GGML_MESSAGES_H_

#include <string>

namespace pagemill::engine {

class GgmlMessages {
 public:
  GgmlMessages();
  ~GgmlMessages();
  GgmlMessages(const GgmlMessages&) = delete;
  GgmlMessages& operator=(const GgmlMessages&) = delete;

  std::string last(const std::string& otherwise) const;  // the last error, without its end of line
};

}  // namespace pagemill::engine

#endif  // PAGEMILL_ENGINE_GGML_MESSAGES_H_
