// Failures on their way to the caller: a status, and a message for pm_last_error.
#pragma once

#include <pagemill/pagemill.h>

namespace pagemill {

// Records the message of this thread's failure and returns `status`.
__attribute__((format(printf, 2, 3))) pm_status fail(pm_status status, const char* format, ...);

#define PM_TRY(expression)                                    \
  do {                                                        \
    if (const pm_status tried_ = (expression)) return tried_; \
  } while (false)

}  // namespace pagemill
