// The picture of a replay, drawn by gnuplot.
#ifndef PAGEMILL_TOOLS_PLOT_H_
#define PAGEMILL_TOOLS_PLOT_H_

#include <string>

#include "replay.h"

namespace pagemill {

// Throws std::runtime_error unless gnuplot is here and the file can be written.
void prepare_plot(const std::string& file);

// Time of each step against its roofline, by kind of step, as SVG.
void plot_replay(const ReplayReport& report, const std::string& title, const std::string& file);

}  // namespace pagemill

#endif  // PAGEMILL_TOOLS_PLOT_H_
