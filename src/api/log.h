// What the environment asks the library to report on stderr.
#pragma once

namespace pagemill {

// Whether PAGEMILL_LOG, a list such as "dispatch,tune", names the topic.
bool logging(const char* topic);

}  // namespace pagemill
