#include "scheduler.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <random>

#include "expect.h"
#include "random_requests.h"

namespace pagemill::engine {
namespace {

constexpr Limits kLimits = {
    .page_size = 4, .pages = 8, .token_budget = 8, .max_seqs = 4, .logit_rows = 8, .prefix_cache = true};

std::vector<int32_t> count_from(int32_t first, int n) {
  std::vector<int32_t> tokens(n);
  for (int i = 0; i < n; ++i) tokens[i] = first + i;
  return tokens;
}

TEST(Scheduler, ChunksPromptsBesideDecodes) {
  Scheduler scheduler(kLimits);
  scheduler.add(0, {1}, 0);
  EXPECT_EQ(scheduler.next().tokens, (std::vector<int32_t>{1}));
  scheduler.append(0, 2);
  scheduler.add(1, count_from(10, 12), 11);
  const Step& step = scheduler.next();
  ASSERT_EQ(step.pieces.size(), 2u);
  EXPECT_EQ(step.pieces[0].count, 1);
  EXPECT_EQ(step.pieces[1].count, 7);
  EXPECT_EQ(step.kv_len, (std::vector<int32_t>{2, 7}));
  EXPECT_EQ(step.logit_rows, (std::vector<int32_t>{0}));
}

TEST(Scheduler, SharesPagesWithinAStep) {
  Scheduler scheduler(kLimits);
  scheduler.add(0, count_from(0, 5), 4);
  scheduler.add(1, count_from(0, 6), 5);
  const Step& step = scheduler.next();
  ASSERT_EQ(step.pieces.size(), 2u);
  EXPECT_EQ(step.pieces[1].first, 4);
  EXPECT_EQ(step.page_table[0], step.page_table[step.pages_per_seq]);
  EXPECT_EQ(scheduler.hit_tokens(), 4);
}

TEST(Scheduler, TheLastTokenIsAlwaysComputed) {
  Scheduler scheduler(kLimits);
  scheduler.add(0, count_from(0, 8), 7);
  scheduler.next();
  scheduler.remove(0);
  scheduler.add(1, count_from(0, 8), 7);
  EXPECT_EQ(scheduler.next().pieces[0].first, 4);
}

TEST(Scheduler, WhoWantsLogitsOfAPrefixComputesThem) {
  Scheduler scheduler(kLimits);
  scheduler.add(0, count_from(0, 8), 7);
  scheduler.next();
  scheduler.remove(0);
  scheduler.add(1, count_from(0, 8), 3);
  const Step& step = scheduler.next();
  EXPECT_EQ(step.pieces[0].first, 0);
  EXPECT_EQ(step.pieces[0].logits_first, 3);
  EXPECT_EQ(step.pieces[0].logits, 5);
}

TEST(Scheduler, PreemptsTheLastAndComputesItAgain) {
  Limits limits = kLimits;
  limits.pages = 3;
  Scheduler scheduler(limits);
  scheduler.add(0, count_from(0, 4), 3);
  scheduler.add(1, count_from(10, 4), 3);
  scheduler.next();
  scheduler.append(0, 4);
  scheduler.append(1, 14);
  const Step& first = scheduler.next();  // one page is free, two are needed
  ASSERT_EQ(first.pieces.size(), 1u);
  EXPECT_EQ(first.pieces[0].id, 0);
  EXPECT_EQ(scheduler.preemptions(), 1);
  scheduler.remove(0);
  const Step& second = scheduler.next();
  ASSERT_EQ(second.pieces.size(), 1u);
  EXPECT_EQ(second.pieces[0].id, 1);
  EXPECT_EQ(second.kv_len[0], 5);
}

TEST(Scheduler, NoPrefixCacheSharesNothing) {
  Limits limits = kLimits;
  limits.prefix_cache = false;
  Scheduler scheduler(limits);
  for (int id = 0; id < 2; ++id) {
    scheduler.add(id, count_from(0, 8), 7);
    EXPECT_EQ(scheduler.next().pieces[0].count, 8);
    scheduler.remove(id);
  }
  EXPECT_EQ(scheduler.hit_tokens(), 0);
}

TEST(PagePool, ForgetsTheLeastRecentlyReleased) {
  PagePool pool(2);
  const std::vector<int32_t> a = {1, 2}, b = {3, 4};
  const int32_t first = *pool.take(), second = *pool.take();
  pool.publish(first, kNoBlock, a);
  pool.publish(second, kNoBlock, b);
  EXPECT_EQ(pool.take(), std::nullopt);
  pool.release(second);
  pool.release(first);
  EXPECT_EQ(pool.take(), second);
  EXPECT_FALSE(pool.look(kNoBlock, b));
  ASSERT_TRUE(pool.look(kNoBlock, a));
  EXPECT_EQ(pool.share(kNoBlock, a)->page, first);
  EXPECT_EQ(pool.take(), std::nullopt);
}

TEST(PagePool, TheSameTokensAfterAnotherPrefixAreAnotherBlock) {
  PagePool pool(2);
  const std::vector<int32_t> tokens = {1, 2};
  const BlockId block = pool.publish(*pool.take(), kNoBlock, tokens);
  EXPECT_FALSE(pool.look(block, tokens));
  EXPECT_TRUE(pool.look(kNoBlock, tokens));
}

TEST(Scheduler, RandomRequestsKeepTheInvariants) {
  int64_t preemptions = 0, hits = 0;
  for (int seed = 0; seed < scaled(300); ++seed) {
    SCOPED_TRACE(seed);
    std::mt19937 random(seed);
    const auto choose = [&random](uint32_t n) { return static_cast<uint32_t>(random() % n); };
    const int32_t budget = 1 + int32_t(choose(40)), seqs = 1 + int32_t(choose(std::min(budget, 8)));
    const Limits limits = {.page_size = 1 + int32_t(choose(5)),
                           .pages = 1 + int32_t(choose(12)),
                           .token_budget = budget,
                           .max_seqs = seqs,
                           .logit_rows = seqs + int32_t(choose(4)),
                           .prefix_cache = choose(4) != 0};
    RequestDriver driver(limits, choose);
    try {
      for (int i = 0; i < 200; ++i) driver.act();
      driver.drain();
    } catch (const std::exception& error) {
      FAIL() << error.what();
    }
    preemptions += driver.scheduler().preemptions();
    hits += driver.scheduler().hit_tokens();
  }
  EXPECT_GT(preemptions, 0);
  EXPECT_GT(hits, 0);
}

}  // namespace
}  // namespace pagemill::engine
