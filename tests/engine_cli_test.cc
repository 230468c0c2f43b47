// `pagemill generate`, `perplexity` and `score` as programs, on a small random model.
#include <fmt/core.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/wait.h>

#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <sstream>

#include "engine_models.h"

namespace pagemill::engine {
namespace {

using testing::HasSubstr;

struct Outcome {
  int status;          // of the exit
  std::string output;  // both streams
};

class EngineCli : public testing::Test {
 protected:
  void SetUp() override {
    RandomModel small;
    small.context = 4096;
    write_model(small, model.path());
  }
  // input: of a shell: what comes before the program, such as a pipe or a variable.
  static Outcome run(const std::string& arguments, const std::string& input = "") {
    const std::string command = fmt::format("{} {} 2>&1 {}", input, PAGEMILL_CLI, arguments);
    FILE* pipe = popen(command.c_str(), "r");
    Outcome outcome;
    char buffer[4096];
    for (size_t n; (n = fread(buffer, 1, sizeof buffer, pipe)) > 0;) outcome.output.append(buffer, n);
    const int status = pclose(pipe);
    outcome.status = WIFEXITED(status) ? WEXITSTATUS(status) : -1;
    return outcome;
  }
  Outcome generate(const std::string& arguments) {
    return run("generate --threads 1 -m " + model.path() + " " + arguments);
  }
  static std::vector<nlohmann::json> lines(const std::string& output) {
    std::vector<nlohmann::json> all;
    std::istringstream stream(output);
    for (std::string line; std::getline(stream, line);) {
      if (line.starts_with('{')) all.push_back(nlohmann::json::parse(line));
    }
    return all;
  }

  TemporaryFile model{"cli.gguf"};
};

TEST_F(EngineCli, ManyPromptsAsJson) {
  const TemporaryFile prompts("prompts.jsonl"), text("before.txt");
  std::ofstream(text.path()) << "t1t2t3";
  std::ofstream(prompts.path()) << R"({"prompt": "t4 t5"})" << "\n\n"
                                << nlohmann::json{{"prompt", "t6"},
                                                  {"max_tokens", 2},
                                                  {"file", std::filesystem::path(text.path()).filename()}}
                                       .dump();
  const Outcome outcome = generate("-f " + prompts.path() + " --json -n 3 --ignore-end --logprobs");
  ASSERT_EQ(outcome.status, 0) << outcome.output;
  const std::vector<nlohmann::json> all = lines(outcome.output);
  ASSERT_EQ(all.size(), 3u);
  EXPECT_EQ(all[0]["tokens"].size(), 3u);
  EXPECT_EQ(all[0]["logprobs"].size(), 3u);
  EXPECT_EQ(all[0]["finish"], "length");
  EXPECT_EQ(all[1]["tokens"].size(), 2u);
  EXPECT_GT(all[1]["prompt_tokens"], 3);
  EXPECT_EQ(all[2]["summary"]["generated_tokens"], 5);
  EXPECT_GT(all[2]["summary"]["attention_share"], 0);
}

TEST_F(EngineCli, OneClearErrorEach) {
  const auto fails = [](const Outcome& outcome, int status, const std::string& what) {
    EXPECT_EQ(outcome.status, status) << outcome.output;
    EXPECT_THAT(outcome.output, HasSubstr("pagemill: "));
    EXPECT_THAT(outcome.output, HasSubstr(what));
    EXPECT_EQ(std::ranges::count(outcome.output, '\n'), 1) << outcome.output;
  };
  fails(run("generate -m /nowhere.gguf -p x"), 1, "/nowhere.gguf: No such file");
  fails(generate(""), 2, "expected --prompt, --file or --chat");
  fails(generate("-p x -f y"), 2, "excludes");
  fails(generate("-p t1 -n 5000"), 1, "expected at most the model's context of 4096 tokens");
  fails(generate("-p t1 --temperature -1"), 1, "temperature is -1");
  fails(generate("-p $(printf 'a\\377')"), 1, "text: byte 1 is not UTF-8");
  fails(generate("-p t1 --chat-template"), 1, "no chat template");
  fails(generate("-f /nowhere.txt"), 1, "/nowhere.txt: No such file");
  fails(generate("-f /dev/null"), 1, "/dev/null: holds no prompts");
  fails(run("generate -m gemma3-270m -p x"), 2, "--accept-license");
  // A cache directory in which nothing can be made.
  fails(run("generate -p x", "XDG_CACHE_HOME=/dev/null"), 1,
        "/dev/null/pagemill: cannot make a folder there");
  fails(run("generate -p x", fmt::format("PATH=/nowhere XDG_CACHE_HOME={}", testing::TempDir())), 1,
        "Debian: python3-venv");
  for (const auto& entry : std::filesystem::directory_iterator(testing::TempDir() + "pagemill")) {
    EXPECT_FALSE(entry.path().filename().string().starts_with("install-")) << entry.path();
  }
}

TEST_F(EngineCli, AnInterruptEndsInOrder) {
  const TemporaryFile slow("slow.gguf"), text("interrupted.txt");
  RandomModel large;
  large.layers = 16, large.embedding = 256, large.feed_forward = 512, large.context = 8192;
  write_model(large, slow.path());
  const Outcome outcome =
      run(fmt::format("generate --threads 1 -m {} -p t1 -n 8000 --ignore-end >{}", slow.path(), text.path()),
          "timeout --preserve-status -s INT 1");
  EXPECT_EQ(outcome.status, 130);
  EXPECT_GT(std::filesystem::file_size(text.path()), 0u);
  EXPECT_EQ(outcome.output, "pagemill: interrupted\n");
}

TEST_F(EngineCli, PerplexityOfAText) {
  const TemporaryFile text("text.txt");
  std::ofstream(text.path()) << "t1 t2 t3 t4 t5 and other letters";
  const Outcome outcome = run("perplexity -m " + model.path() + " " + text.path());
  EXPECT_EQ(outcome.status, 0);
  EXPECT_THAT(outcome.output, HasSubstr("perplexity "));
}

// The likelihoods of both halves of a text add up to that of the whole, and contexts are computed once.
TEST_F(EngineCli, ScoresOfContinuations) {
  const std::string context(2000, 'a');
  const TemporaryFile file("lines.jsonl");
  {
    std::ofstream out(file.path());
    const auto line = [&](const std::string& before, const std::string& after) {
      out << nlohmann::json{{"context", before}, {"continuation", after}}.dump() << "\n";
    };
    line(context, "bc");
    line(context, "b");
    line(context + "b", "c");
    line("", "x");
  }
  const Outcome outcome = run("score --budget 4096 -m " + model.path() + " " + file.path());
  ASSERT_EQ(outcome.status, 0) << outcome.output;
  const std::vector<nlohmann::json> all = lines(outcome.output);
  ASSERT_EQ(all.size(), 4u);
  EXPECT_EQ(all[0]["tokens"], 2);
  const double whole = all[0]["logprob"], first = all[1]["logprob"], second = all[2]["logprob"];
  EXPECT_NEAR(whole, first + second, 0.01 * std::abs(whole));
  EXPECT_LT(whole, 0);
  EXPECT_THAT(outcome.output, HasSubstr("4 lines"));
  int computed = 0, found = 0;
  ASSERT_EQ(std::sscanf(outcome.output.c_str() + outcome.output.find("lines, "),
                        "lines, %d tokens computed, %d", &computed, &found),
            2);
  EXPECT_GT(found, 3900);
  EXPECT_LT(computed, 2100);
}

}  // namespace
}  // namespace pagemill::engine
