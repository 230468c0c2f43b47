#include "api/log.h"

#include <cstdlib>
#include <cstring>

namespace pagemill {

bool logging(const char* topic) {
  static const char* const topics = std::getenv("PAGEMILL_LOG");
  return topics && std::strstr(topics, topic);
}

}  // namespace pagemill
