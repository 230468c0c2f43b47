// What must hold in every step of a schedule, whatever the trace.
#include "schedule.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <random>
#include <set>
#include <stdexcept>
#include <vector>

namespace pagemill {
namespace {

using testing::HasSubstr;

Trace make_trace(std::vector<Request> requests) {
  Trace trace{"t.jsonl", std::move(requests)};
  for (size_t i = 0; i < trace.requests.size(); ++i) trace.requests[i].line = static_cast<int>(i) + 1;
  return trace;
}

// Conversations that grow: every request goes on from the blocks of an earlier one or begins anew.
Trace random_trace(uint32_t seed, int requests) {
  std::mt19937 bits(seed);
  const auto below = [&](int n) { return static_cast<int64_t>(bits() % n); };
  int64_t next_id = 0;
  std::vector<Request> result;
  for (int i = 0; i < requests; ++i) {
    Request r{1 + below(4000), 1 + below(60), {}, 0};
    if (below(5) > 0) {
      const size_t blocks = (r.prompt + kTraceBlock - 1) / kTraceBlock;
      if (i > 0) r.blocks = result[below(i)].blocks;
      // The last block of the earlier prompt may have been a partial one.
      r.blocks.resize(std::min(blocks, r.blocks.empty() ? 0 : r.blocks.size() - 1));
      while (r.blocks.size() < blocks) r.blocks.push_back(next_id++);
    }
    result.push_back(r);
  }
  return make_trace(std::move(result));
}

// Follows a schedule and checks each step against what was computed before.
class Follower {
 public:
  Follower(const Trace& trace, const ScheduleOptions& options)
      : trace_(trace),
        options_(options),
        done_(trace.requests.size()),
        holds_(int64_t{options.pages} * options.page_size) {}

  void check(const Schedule& schedule) {
    const Step& step = schedule.step();
    const Batch batch = schedule.batch();
    ASSERT_GT(batch.num_seqs, 0);
    ASSERT_LE(batch.num_seqs, options_.max_seqs);
    ASSERT_LE(batch.num_tokens, options_.budget);
    ASSERT_EQ(std::set<int32_t>(step.row.begin(), step.row.end()).size(), step.row.size());
    int decodes = 0;
    std::map<int32_t, int> writer;  // of a page
    for (int b = 0; b < batch.num_seqs; ++b) {
      const Request& r = trace_.requests[step.request[b]];
      const int64_t begin = batch.kv_len[b] - (batch.query_start[b + 1] - batch.query_start[b]);
      const bool decode = begin >= r.prompt;
      decodes += decode;
      ASSERT_TRUE(!decode || batch.kv_len[b] == begin + 1);
      ASSERT_LT(begin, batch.kv_len[b]);
      ASSERT_LE(batch.kv_len[b], decode ? r.prompt + r.output - 1 : r.prompt);
      check_begin(step.request[b], begin);
      for (int64_t key = begin; key < batch.kv_len[b]; ++key) {
        const auto [it, first] = writer.emplace(page(batch, b, key), b);
        ASSERT_TRUE(first || it->second == b) << "two sequences write page " << it->first;
        slot(batch, b, key) = value(step.request[b], key);
      }
      done_[step.request[b]] = batch.kv_len[b];
    }
    for (int b = 0; b < batch.num_seqs; ++b) {
      for (int64_t key = 0; key < batch.kv_len[b]; ++key) {
        ASSERT_EQ(slot(batch, b, key), value(step.request[b], key))
            << "request " << step.request[b] << " key " << key;
      }
    }
    const StepKind kind = decodes == batch.num_seqs ? StepKind::decode
                          : decodes                 ? StepKind::mixed
                                                    : StepKind::prefill;
    ASSERT_EQ(step.kind, kind);
  }

  void check_end(const Schedule& schedule) const {
    for (size_t i = 0; i < done_.size(); ++i) {
      EXPECT_EQ(done_[i], trace_.requests[i].prompt + trace_.requests[i].output - 1) << "request " << i;
    }
    EXPECT_EQ(schedule.finished(), std::ssize(done_));
    EXPECT_EQ(schedule.hit_tokens(), hit_tokens_);
  }

 private:
  void check_begin(int32_t request, int64_t begin) {
    if (done_[request] > 0) {
      ASSERT_EQ(begin, done_[request]);
      return;
    }
    ASSERT_EQ(begin % kTraceBlock, 0);
    ASSERT_LT(begin, trace_.requests[request].prompt);
    hit_tokens_ += begin;
    ASSERT_TRUE(begin == 0 || !trace_.requests[request].blocks.empty());
    for (int32_t earlier = 0; earlier < request; ++earlier) {
      ASSERT_GT(done_[earlier], 0) << "request " << request << " overtook " << earlier;
    }
  }
  int32_t page(const pm_batch& batch, int b, int64_t key) const {
    return batch.page_table[int64_t{batch.row_index[b]} * batch.pages_per_seq + key / options_.page_size];
  }
  int64_t& slot(const pm_batch& batch, int b, int64_t key) {
    return holds_.at(int64_t{page(batch, b, key)} * options_.page_size + key % options_.page_size);
  }
  // Stands for the keys and values of a token: the same for equal blocks alone.
  int64_t value(int32_t request, int64_t key) const {
    const Request& r = trace_.requests[request];
    const int64_t block = key / kTraceBlock;
    const bool whole = !r.blocks.empty() && (block + 1) * kTraceBlock <= r.prompt;
    const int64_t owner = whole ? -1 - r.blocks[block] : request;
    return owner * (int64_t{1} << 32) + key;
  }

  const Trace& trace_;
  ScheduleOptions options_;
  std::vector<int64_t> done_;   // [requests] tokens in the cache
  std::vector<int64_t> holds_;  // [pages, P]
  int64_t hit_tokens_ = 0;
};

struct Outcome {
  int64_t steps = 0, hit_tokens = 0, peak_pages = 0;
};

Outcome follow(const Trace& trace, const ScheduleOptions& options) {
  Schedule schedule(trace, options);
  Follower follower(trace, options);
  Outcome outcome;
  while (schedule.next()) {
    ++outcome.steps;
    follower.check(schedule);
    if (testing::Test::HasFatalFailure()) return outcome;
  }
  follower.check_end(schedule);
  EXPECT_LE(schedule.peak_pages(), options.pages);
  EXPECT_FALSE(schedule.next());
  return {outcome.steps, schedule.hit_tokens(), schedule.peak_pages()};
}

TEST(ScheduleTest, InvariantsOverRandomTracesAndOptions) {
  for (uint32_t seed = 0; seed < 60; ++seed) {
    SCOPED_TRACE(seed);
    std::mt19937 bits(seed);
    const int page_sizes[] = {1, 16, 24, 32, 512, 1024};
    const int page_size = page_sizes[bits() % 6];
    const int32_t longest = 4100 / page_size + 1;
    const ScheduleOptions options{page_size, static_cast<int32_t>(longest + bits() % (6 * longest)),
                                  static_cast<int>(1 + bits() % 12), static_cast<int32_t>(1 + bits() % 3000)};
    follow(random_trace(seed, 40), options);
    if (HasFatalFailure()) return;
  }
}

TEST(ScheduleTest, SharesWholeBlocksOfEqualId) {
  const Trace trace = make_trace({{1200, 5, {1, 2, 3}, 0}, {1200, 5, {1, 2, 4}, 0}, {1024, 5, {1, 2}, 0}});
  // The second finds both whole blocks in the step that fills them; the third computes its last block again.
  EXPECT_EQ(follow(trace, {16, 1000, 8, 4096}).hit_tokens, 1024 + 512);
  EXPECT_EQ(follow(trace, {512, 1000, 8, 4096}).hit_tokens, 1024 + 512);
  EXPECT_EQ(follow(trace, {24, 1000, 8, 4096}).hit_tokens, 0);  // 512 is no multiple of 24
  const Trace other = make_trace({{1200, 5, {1, 2, 3}, 0}, {1200, 5, {9, 2, 3}, 0}});
  EXPECT_EQ(follow(other, {16, 1000, 8, 4096}).hit_tokens, 0);  // only prefixes count
}

TEST(ScheduleTest, KeepsBlocksUntilTheirPagesAreNeeded) {
  const Request a{513, 1, {1, 2}, 0}, b{513, 1, {3, 4}, 0};
  // One at a time on three pages of 512: two are taken by a request, one block of an earlier one can stay.
  EXPECT_EQ(follow(make_trace({a, b, a}), {512, 4, 1, 2048}).hit_tokens, 512);
  EXPECT_EQ(follow(make_trace({a, b, a}), {512, 3, 1, 2048}).hit_tokens, 512);
  EXPECT_EQ(follow(make_trace({a, b, a}), {512, 2, 1, 2048}).hit_tokens, 0);
  // Least recently used first: of a, b, c the oldest goes.
  const Request c{513, 1, {5, 6}, 0};
  EXPECT_EQ(follow(make_trace({a, b, a, c, b}), {512, 4, 1, 2048}).hit_tokens, 512 + 512);
  EXPECT_EQ(follow(make_trace({a, b, a, c, a}), {512, 3, 1, 2048}).hit_tokens, 512 + 512);
}

TEST(ScheduleTest, ChunksPromptsAndMixesThemWithDecodes) {
  const Trace trace = make_trace({{10, 4, {}, 0}, {25, 2, {}, 0}});
  Schedule schedule(trace, {16, 100, 8, 16});
  std::vector<std::vector<int32_t>> starts, lengths;
  while (schedule.next()) {
    starts.push_back(schedule.step().query_start);
    lengths.push_back(schedule.step().kv_len);
  }
  using V = std::vector<std::vector<int32_t>>;
  EXPECT_EQ(starts, (V{{0, 10, 16}, {0, 1, 16}, {0, 1, 5}, {0, 1, 2}}));
  EXPECT_EQ(lengths, (V{{10, 6}, {11, 21}, {12, 25}, {13, 26}}));
  EXPECT_EQ(schedule.peak_pages(), 1 + 2);
}

TEST(ScheduleTest, TheLastGeneratedTokenIsNotFedBack) {
  const Outcome outcome = follow(make_trace({{7, 1, {}, 0}}), {8, 1, 1, 100});
  EXPECT_EQ(outcome.steps, 1);
  EXPECT_EQ(follow(make_trace({{7, 2, {}, 0}}), {8, 1, 1, 100}).steps, 2);
}

TEST(ScheduleTest, RequestLargerThanTheCacheNamesItsLine) {
  const Trace trace = make_trace({{10, 1, {}, 0}, {30, 4, {}, 0}});
  try {
    Schedule(trace, {16, 2, 8, 16});
    FAIL();
  } catch (const std::runtime_error& error) {
    EXPECT_THAT(error.what(),
                HasSubstr("t.jsonl:2: a request of 33 tokens needs 3 pages of 16 tokens, the cache has 2"));
  }
}

TEST(ScheduleTest, SameStepsEveryTime) {
  const Trace trace = random_trace(7, 60);
  const ScheduleOptions options{16, 900, 10, 700};
  Schedule one(trace, options), two(trace, options);
  while (one.next()) {
    ASSERT_TRUE(two.next());
    ASSERT_EQ(one.step().query_start, two.step().query_start);
    ASSERT_EQ(one.step().kv_len, two.step().kv_len);
    const Batch a = one.batch(), b = two.batch();
    for (int s = 0; s < a.num_seqs; ++s) {
      const auto pages = [&](const Batch& batch) {
        const int32_t* row = batch.page_table + int64_t{batch.row_index[s]} * batch.pages_per_seq;
        return std::vector<int32_t>(row, row + (batch.kv_len[s] + 15) / 16);
      };
      ASSERT_EQ(pages(a), pages(b));
    }
  }
  EXPECT_FALSE(two.next());
}

}  // namespace
}  // namespace pagemill
