#include "api/status.h"

#include <cstdarg>
#include <cstdio>

namespace pagemill {
namespace {
thread_local char last_error[512] = "";
}

pm_status fail(pm_status status, const char* format, ...) {
  va_list arguments;
  va_start(arguments, format);
  std::vsnprintf(last_error, sizeof last_error, format, arguments);
  va_end(arguments);
  return status;
}

}  // namespace pagemill

const char* pm_last_error(void) {
  return pagemill::last_error;
}

const char* pm_status_name(pm_status status) {
  switch (status) {
    case PM_OK: return "ok";
    case PM_INVALID_ARGUMENT: return "invalid_argument";
    case PM_UNSUPPORTED: return "unsupported";
    case PM_OUT_OF_MEMORY: return "out_of_memory";
  }
  return "unknown status";
}
