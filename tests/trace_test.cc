// Reading traces: the formats, and every way in which a file can be wrong.
#include "trace.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdio>
#include <fstream>
#include <stdexcept>
#include <string>

namespace pagemill {
namespace {

using testing::ElementsAre;
using testing::EndsWith;
using testing::HasSubstr;

class TraceTest : public testing::Test {
 protected:
  std::string write(const std::string& name, const std::string& text) {
    path_ = testing::TempDir() + testing::UnitTest::GetInstance()->current_test_info()->name() + name;
    std::ofstream(path_, std::ios::binary) << text;
    return path_;
  }
  // What reading such a file fails with.
  std::string error(const std::string& name, const std::string& text) {
    try {
      read_trace(write(name, text));
    } catch (const std::runtime_error& failure) {
      return failure.what();
    }
    return "no error";
  }
  // Expects the error of a CSV (or JSONL) file to be `file:line: reason...`.
  void expect_error(const std::string& ending, const std::string& text, int line, const std::string& reason) {
    SCOPED_TRACE(text);
    EXPECT_THAT(error(ending, text), HasSubstr(ending + ":" + std::to_string(line) + ": " + reason));
  }
  ~TraceTest() override { std::remove(path_.c_str()); }

 private:
  std::string path_;
};

TEST_F(TraceTest, ReadsCsv) {
  const Trace trace = read_trace(write("a.csv",
                                       "# a comment\n"
                                       "arrival_s,context_tokens,generated_tokens\n"
                                       "0.000000,374,44\n"
                                       "# another\n"
                                       "4.314579,396,109\r\n"));
  ASSERT_EQ(trace.requests.size(), 2u);
  EXPECT_EQ(trace.requests[0].prompt, 374);
  EXPECT_EQ(trace.requests[0].output, 44);
  EXPECT_EQ(trace.requests[0].line, 3);
  EXPECT_TRUE(trace.requests[0].blocks.empty());
  EXPECT_EQ(trace.requests[1].output, 109);
  EXPECT_EQ(trace.requests[1].line, 5);
}

TEST_F(TraceTest, ReadsDatesAsAzurePublishesThem) {
  const Trace trace = read_trace(write("a.csv",
                                       "TIMESTAMP,ContextTokens,GeneratedTokens\n"
                                       "2023-11-16 23:59:59.6805900,374,44\n"
                                       "2023-11-17 00:00:00.9951690,396,109\n"));
  EXPECT_EQ(trace.requests.size(), 2u);
  expect_error(".csv", "2023-11-17 00:00:01,1,1\n2023-11-16 23:59:59,1,1\n", 2, "arrival");
  expect_error(".csv", "2023-02-30 00:00:01,1,1\n", 1, "expected three numbers");
}

TEST_F(TraceTest, ReadsJsonl) {
  const std::string text =
      "{\"_source\": \"x\", \"_block_size\": 512}\n"
      "{\"timestamp\":0,\"input_length\":513,\"output_length\":7,\"hash_ids\":[4,9]}\n"
      "{\"timestamp\":3,\"input_length\":512,\"output_length\":1}\n";
  for (const char* name : {".jsonl", ".txt"}) {
    const Trace trace = read_trace(write(name, text));
    ASSERT_EQ(trace.requests.size(), 2u);
    EXPECT_EQ(trace.requests[0].prompt, 513);
    EXPECT_EQ(trace.requests[0].output, 7);
    EXPECT_EQ(trace.requests[0].line, 2);
    EXPECT_THAT(trace.requests[0].blocks, ElementsAre(4, 9));
    EXPECT_TRUE(trace.requests[1].blocks.empty());
  }
}

TEST_F(TraceTest, MissingOrEmptyFile) {
  const std::string missing = testing::TempDir() + "no_such_trace.csv";
  try {
    read_trace(missing);
    FAIL();
  } catch (const std::runtime_error& failure) {
    EXPECT_EQ(failure.what(), missing + ": No such file or directory");
  }
  EXPECT_THROW(read_trace(testing::TempDir()), std::runtime_error);
  expect_error(".csv", "", 1, "expected at least one request");
  expect_error(".csv", "a,b,c\n", 1, "expected at least one request");
  expect_error(".jsonl", "", 1, "expected at least one request");
}

TEST_F(TraceTest, MalformedCsv) {
  expect_error(".csv", "0,1,1\n12,abc,3\n", 2, "expected three numbers, got \"12,abc,3\"");
  for (const char* row : {"1,2", "1,2,3,4", "", "1,2,", "1,2,3.5", "1 ,2,3", "1,2,3x", ",2,3", "x,2,3"}) {
    expect_error(".csv", std::string("0,1,1\n") + row + "\n", 2, "expected three numbers");
  }
  expect_error(".csv", "a,b,c\nd,e,f\n0,1,1\n", 2, "expected three numbers");
  expect_error(".csv", "nan,1,1\n", 1, "expected a finite arrival");
  expect_error(".csv", "0,0,1\n", 1, "context tokens 0: expected 1 to");
  expect_error(".csv", "0,1,-3\n", 1, "generated tokens -3: expected 1 to");
  expect_error(".csv", "0,3000000000,1\n", 1, "context tokens 3000000000: expected 1 to");
  expect_error(".csv", "5,1,1\n4.5,1,1\n", 2, "arrival 4.5 s: expected at least the previous request's 5 s");
}

TEST_F(TraceTest, CutFiles) {
  expect_error(".csv", "0,1,1\n1,20,3", 2, "cut: expected a line break after \"1,20,3\"");
  const std::string whole = "{\"timestamp\":0,\"input_length\":12,\"output_length\":7,\"hash_ids\":[4]}";
  EXPECT_EQ(read_trace(write(".jsonl", whole)).requests.size(), 1u);
  for (size_t length = 1; length < whole.size(); ++length) {
    expect_error(".jsonl", whole.substr(0, length), 1, "expected a JSON object, got");
  }
}

TEST_F(TraceTest, MalformedJsonl) {
  const std::string good = "{\"timestamp\":0,\"input_length\":1,\"output_length\":1}\n";
  expect_error(".jsonl", good + "\n", 2, "expected a JSON object");
  expect_error(".jsonl", good + "[1]\n", 2, "expected a JSON object");
  expect_error(".jsonl", "{}\n", 1, "expected the key input_length");
  expect_error(".jsonl", "{\"input_length\":1,\"output_length\":1}\n", 1, "expected the key timestamp");
  expect_error(".jsonl", "{\"timestamp\":0,\"input_length\":1}\n", 1, "expected the key output_length");
  const auto row = [](const char* time, const char* input, const char* output, const char* ids) {
    return std::string("{\"timestamp\":") + time + ",\"input_length\":" + input +
           ",\"output_length\":" + output + ",\"hash_ids\":" + ids + "}\n";
  };
  expect_error(".jsonl", row("\"0\"", "1", "1", "[1]"), 1, "timestamp: expected a number, got \"0\"");
  expect_error(".jsonl", row("0", "1.5", "1", "[1]"), 1, "input_length: expected an integer, got 1.5");
  expect_error(".jsonl", row("0", "0", "1", "[]"), 1, "input_length 0: expected 1 to");
  expect_error(".jsonl", row("0", "1", "0", "[1]"), 1, "output_length 0: expected 1 to");
  expect_error(".jsonl", row("0", "1", "1", "7"), 1, "hash_ids: expected an array");
  expect_error(".jsonl", row("0", "1", "1", "[null]"), 1, "hash_ids: expected integers, got null");
  expect_error(".jsonl", row("0", "1024", "1", "[1,2,3]"), 1,
               "hash_ids: expected 2 for input_length 1024, got 3");
  expect_error(".jsonl", row("0", "1025", "1", "[1,2]"), 1,
               "hash_ids: expected 3 for input_length 1025, got 2");
  expect_error(".jsonl", row("5", "1", "1", "[1]") + row("4", "1", "1", "[1]"), 2, "arrival 0.004 s");
  expect_error(".jsonl", "{\"_block_size\":16}\n" + good, 1, "_block_size: expected 512, got 16");
  expect_error(".jsonl", good + "{\"_block_size\":512}\n", 2, "expected the key input_length");
}

}  // namespace
}  // namespace pagemill
