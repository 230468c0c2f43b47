// SIGINT and SIGTERM as something that long work asks about, so that it ends in order.
#ifndef PAGEMILL_TOOLS_INTERRUPT_H_
#define PAGEMILL_TOOLS_INTERRUPT_H_

#include <exception>

namespace pagemill {

// What ends a command then (exit code 130).
struct Interrupted : std::exception {};

// From now on the first of these signals is noted; the second ends the program.
void note_interrupts();
bool interrupted();
void throw_if_interrupted();

}  // namespace pagemill

#endif  // PAGEMILL_TOOLS_INTERRUPT_H_
