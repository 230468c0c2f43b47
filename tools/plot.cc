#include "plot.h"

#include <fmt/format.h>

#include <array>
#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <iterator>
#include <memory>
#include <stdexcept>

namespace pagemill {
namespace {

struct Kind {
  StepKind kind;
  const char* name;
  const char* color;
};
constexpr Kind kKinds[] = {{StepKind::decode, "decode", "#4477aa"},
                           {StepKind::prefill, "prefill", "#ee6677"},
                           {StepKind::mixed, "mixed", "#ccbb44"}};
constexpr size_t kPoints = 3000;  // at most, of each kind

// For a string in single quotes.
std::string escaped(const std::string& text) {
  std::string result;
  for (char c : text) result.append(c == '\'' ? 2 : 1, c);
  return result;
}

std::string make_script(const ReplayReport& report, const std::string& title, const std::string& file) {
  std::string script;
  const auto out = std::back_inserter(script);
  std::string curves = "x with lines linecolor rgb '#888888' title 'roofline'";
  for (const Kind& kind : kKinds) {
    std::vector<const StepRecord*> steps;
    for (const StepRecord& step : report.steps) {
      if (step.kind == kind.kind) steps.push_back(&step);
    }
    if (steps.empty()) continue;
    fmt::format_to(out, "${} << END\n", kind.name);
    for (size_t i = 0; i < steps.size(); i += steps.size() / kPoints + 1) {
      fmt::format_to(out, "{} {}\n", steps[i]->roofline_seconds * 1e3, steps[i]->seconds() * 1e3);
    }
    fmt::format_to(out, "END\n");
    curves += fmt::format(", ${0} with points pointtype 7 pointsize 0.4 linecolor rgb '{1}' title '{0}'",
                          kind.name, kind.color);
  }
  fmt::format_to(out,
                 "set terminal svg size 860,560 font 'sans-serif,13' background 'white'\n"
                 "set output '{}'\n"
                 "set title '{}' noenhanced\n"
                 "set xlabel 'least time at the measured peaks [ms]'\n"
                 "set ylabel 'time of the step, planning included [ms]'\n"
                 "set logscale xy\n"
                 "set grid\n"
                 "set key left top\n"
                 "plot {}\n",
                 escaped(file), escaped(title), curves);
  return script;
}

}  // namespace

void prepare_plot(const std::string& file) {
  if (std::system("gnuplot --version >/dev/null 2>&1") != 0) {
    throw std::runtime_error("--plot: cannot run gnuplot (Debian package gnuplot-nox)");
  }
  if (!std::ofstream(file)) {
    throw std::runtime_error(fmt::format("--plot {}: {}", file, std::strerror(errno)));
  }
}

void plot_replay(const ReplayReport& report, const std::string& title, const std::string& file) {
  const std::string script = make_script(report, title, file);
  FILE* const pipe = popen("gnuplot", "w");
  const bool written = pipe && std::fwrite(script.data(), 1, script.size(), pipe) == script.size();
  if (!pipe || pclose(pipe) != 0 || !written) {
    throw std::runtime_error(fmt::format("--plot {}: gnuplot failed", file));
  }
}

}  // namespace pagemill
