// What holds around a call: reuse of plans, sizes, concurrency, fork, versions of structs, stats.
#include <gmock/gmock.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <cmath>
#include <cstddef>
#include <cstring>
#include <limits>
#include <thread>
#include <vector>

#include "expect.h"
#include "reference.h"

namespace pagemill {
namespace {

constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();

Spec small(pm_layout layout = PM_TILES) {
  Spec spec;
  spec.num_heads = 4, spec.num_kv_heads = 2;
  spec.dtype = spec.out_dtype = spec.cache_dtype = PM_BF16;
  spec.layout = layout;
  spec.seqs = {{0, 3, 20, {}, {}}, {1, 1, 333, {}, {}}, {2, 70, 70, {}, {}}};
  return spec;
}

TEST(Plan, BuildsAgainAndAgain) {
  Plan plan;
  for (uint64_t seed = 0; seed < 40; ++seed) {
    Case c(random_spec(seed, Limits{.multiplies = 1e6}));
    plan.build(c.config, c.batch);
    for (int layer = 0; layer < 2; ++layer) {
      c.restore();
      plan.run(c.args, Workspace(plan));
      EXPECT_EQ(verify(c).problem, "") << describe(c.spec);
    }
  }
}

TEST(Plan, OfNothing) {
  for (int padding : {0, 5}) {
    Spec spec = small();
    spec.seqs.clear();
    spec.padding_tokens = padding;
    EXPECT_TRUE(right(spec));
  }
  Plan plan(Case(small()).config, Batch());
  EXPECT_EQ(plan.stats().items, 0);
  plan.run(Args(), Workspace());
}

TEST(Sizes, FourThousandSequences) {
  for (pm_layout layout : {PM_TILES, PM_ROWS}) {
    Spec spec = small(layout);
    spec.num_heads = 2, spec.num_kv_heads = 1, spec.head_dim = 16;
    spec.seqs.clear();
    for (int b = 0; b < 4096; ++b) spec.seqs.push_back({b, b % 97 == 0 ? 20 : 1, 20 + b % 41, {}, {}});
    EXPECT_TRUE(right(spec));
  }
}

TEST(Sizes, AMillionTokens) {
  Spec spec = small(PM_ROWS);
  spec.num_heads = spec.num_kv_heads = 1, spec.head_dim = 16;
  spec.page_size = 1000;
  spec.window_left = 5;
  spec.seqs = {{0, 1 << 19, 1 << 19, {}, {}}, {1, (1 << 19) + 77, 600'000, {}, {}}, {2, 1, 9, {}, {}}};
  EXPECT_TRUE(right(spec));
}

// The pages of c, moved so far up that element offsets pass 2^31, in memory of which only they are touched.
class HugeCache {
 public:
  HugeCache(Case& c, int64_t page_elements, int64_t shift) {
    const size_t bytes = reference::size_of(c.config.cache_dtype);
    const int64_t pages = c.config.num_pages + shift;
    for (GuardedBuffer& buffer : c.cache) {
      size_t size = size_t(pages * page_elements) * bytes;
      void* map =
          mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
      if (map == MAP_FAILED) return;
      maps_.push_back({map, size});
      std::byte* moved = static_cast<std::byte*>(map) + shift * page_elements * bytes;
      std::memcpy(moved, buffer.data(), buffer.size());
      for (void** cache : {&c.args.k_cache, &c.args.v_cache})
        if (buffer.holds(*cache))
          *cache = static_cast<std::byte*>(map) + (static_cast<std::byte*>(*cache) - buffer.data());
    }
    auto* table = const_cast<int32_t*>(c.batch.page_table);
    for (int64_t i = 0; i < int64_t{c.batch.num_seqs} * c.batch.pages_per_seq; ++i)
      if (table[i] >= 0 && table[i] < c.config.num_pages) table[i] += int32_t(shift);
    c.config.num_pages = pages;
    ready_ = true;
  }
  ~HugeCache() {
    for (auto [map, size] : maps_) munmap(map, size);
  }
  bool ready() const { return ready_; }

 private:
  std::vector<std::pair<void*, size_t>> maps_;
  bool ready_ = false;
};

TEST(Sizes, CacheOfMoreThanTwoBillionElements) {
  for (const char* isa : available_isas())
    for (pm_layout layout : {PM_TILES, PM_ROWS}) {
      Spec spec = small(layout);
      spec.isa = isa;
      spec.page_size = 64;
      Case near(spec), far(spec);
      const int64_t page = int64_t{64} * 64 * 2 * (layout == PM_TILES ? 2 : 1);
      HugeCache cache(far, page, (int64_t{1} << 31) / page + 10);
      if (!cache.ready()) GTEST_SKIP() << "no address space for a sparse cache";
      run(near);
      attention(far.config, far.batch, far.args);
      EXPECT_EQ(near.outputs(), far.outputs()) << isa;
      for (int head : {0, 3})
        EXPECT_LE(reference::error_in_bounds(far.config, far.batch, far.args, 2, 69, head), 1);
    }
}

TEST(Concurrency, TwoThreadsRunOnePlan) {
  Spec spec = small();
  Case first(spec);
  spec.seed = 2;  // another layer: same pages, other tensors
  Case second(spec);
  const Plan plan(first.config, first.batch);
  auto layers = [&plan](Case& c) {
    Workspace workspace(plan);
    for (int i = 0; i < scaled(200); ++i) plan.run(c.args, workspace);
  };
  std::thread other(layers, std::ref(second));
  layers(first);
  other.join();
  EXPECT_EQ(verify(first).problem, "");
  EXPECT_EQ(verify(second).problem, "");
}

TEST(Concurrency, ManyThreadsShareAPool) {
  const Pool pool(2);
  const Executor executor = pool.executor();
  std::vector<std::thread> threads;
  std::vector<std::string> problems(6);
  for (size_t i = 0; i < problems.size(); ++i)
    threads.emplace_back([&, i] {
      Spec spec = small();
      spec.seed = i;
      Case c(spec);
      for (int n = 0; n < scaled(20); ++n) run(c, &executor);
      problems[i] = verify(c).problem;
    });
  for (std::thread& thread : threads) thread.join();
  for (const std::string& problem : problems) EXPECT_EQ(problem, "");
}

TEST(Concurrency, APoolRunsEachOfManyTasksOnce) {
  const Pool pool(3);
  const Executor executor = pool.executor();
  std::vector<int> runs(200'000);
  executor.parallel_for(
      executor.context, int32_t(runs.size()),
      [](void* arg, int32_t i) { ++(*static_cast<std::vector<int>*>(arg))[i]; }, &runs);
  EXPECT_EQ(runs, std::vector<int>(runs.size(), 1));
}

TEST(Fork, ChildHasAWorkingPool) {
  const Pool pool(3);
  const Executor executor = pool.executor();
  Case c(small());
  run(c);
  run(c, &executor);
  pid_t child = fork();
  if (child == 0) {
    alarm(60);
    c.restore();
    run(c);
    bool good = verify(c).problem.empty();
    c.restore();
    run(c, &executor);
    _exit(good && verify(c).problem.empty() ? 0 : 1);
  }
  int status = -1;
  ASSERT_EQ(waitpid(child, &status, 0), child);
  EXPECT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == 0) << "status " << status;
  c.restore();
  run(c, &executor);  // and so has the parent, still
  EXPECT_EQ(verify(c).problem, "");
}

// Two tasks that wait for each other end only on two threads.
TEST(Fork, ChildsPoolHasThreads) {
  const Pool pool(2);
  const Executor executor = pool.executor();
  pid_t child = fork();
  if (child == 0) {
    alarm(20);
    std::atomic<int> arrived = 0;
    executor.parallel_for(
        executor.context, 2,
        [](void* arg, int32_t) {
          auto& count = *static_cast<std::atomic<int>*>(arg);
          ++count;
          while (count < 2) std::this_thread::yield();
        },
        &arrived);
    _exit(0);
  }
  int status = -1;
  ASSERT_EQ(waitpid(child, &status, 0), child);
  EXPECT_TRUE(WIFEXITED(status)) << "status " << status;
}

TEST(Versions, FieldsPastTheCallersStructTakeDefaults) {
  Case c(small());
  c.config.struct_size = offsetof(pm_config, threads);
  c.config.threads = -77;
  c.config.isa = "none";
  c.batch.struct_size = offsetof(pm_batch, first_position);
  c.batch.first_position = reinterpret_cast<const int32_t*>(1);
  c.batch.causal = reinterpret_cast<const uint8_t*>(1);
  c.args.struct_size = offsetof(pm_args, scale);
  c.args.scale = c.args.q_scale = kNaN;
  c.args.sinks = reinterpret_cast<const float*>(2);
  attention(c.config, c.batch, c.args);
  c.batch.first_position = nullptr, c.batch.causal = nullptr;
  c.args.sinks = nullptr, c.args.scale = 0, c.args.q_scale = 1;
  EXPECT_EQ(verify(c).problem, "");
}

TEST(Versions, LargerStructsOfNewerCallersAreRead) {
  struct {
    Config config;
    int64_t unknown = -1;
  } newer;
  Case c(small());
  static_cast<pm_config&>(newer.config) = c.config;
  newer.config.struct_size = sizeof newer;
  attention(newer.config, c.batch, c.args);
  EXPECT_EQ(verify(c).problem, "");
}

TEST(Versions, StatsAreCutToTheCallersStruct) {
  Case c(small());
  Plan plan(c.config, c.batch);
  pm_plan_stats stats;
  std::memset(&stats, 0x55, sizeof stats);
  stats.struct_size = offsetof(pm_plan_stats, items);
  check(pm_plan_get_stats(plan.get(), &stats));
  EXPECT_EQ(stats.struct_size, offsetof(pm_plan_stats, items));
  EXPECT_EQ(stats.workspace_bytes, plan.stats().workspace_bytes);
  EXPECT_EQ(stats.items, 0x5555555555555555);
}

TEST(Versions, EstimatesAreCutToTheCallersStruct) {
  Case c(small());
  Plan plan(c.config, c.batch);
  pm_estimate estimate;
  std::memset(&estimate, 0x55, sizeof estimate);
  const double before = estimate.run_ns;
  estimate.struct_size = offsetof(pm_estimate, run_ns);
  check(pm_plan_estimate(plan.get(), &estimate));
  EXPECT_EQ(estimate.unsplit_ns, plan.estimate().unsplit_ns);
  EXPECT_EQ(std::memcmp(&estimate.run_ns, &before, sizeof before), 0);
}

TEST(Estimate, IsTheWorkOnOneThread) {
  Case c(small());
  c.config.threads = 1;
  const pm_estimate one = Plan(c.config, c.batch).estimate();
  EXPECT_GT(one.unsplit_ns, 0);
  EXPECT_NEAR(one.run_ns, one.unsplit_ns, 1e-3 * one.unsplit_ns);
  c.batch.num_seqs -= 1;
  EXPECT_LT(Plan(c.config, c.batch).estimate().unsplit_ns, one.unsplit_ns);
  EXPECT_EQ(Plan().estimate().run_ns, 0) << "before the first build";
}

TEST(Estimate, NamesWhatIsMissing) {
  pm_estimate estimate = {};
  estimate.struct_size = sizeof estimate;
  EXPECT_EQ(pm_plan_estimate(nullptr, &estimate), PM_INVALID_ARGUMENT);
  EXPECT_THAT(pm_last_error(), testing::HasSubstr("plan = NULL"));
  EXPECT_EQ(pm_plan_estimate(Plan().get(), nullptr), PM_INVALID_ARGUMENT);
  EXPECT_THAT(pm_last_error(), testing::HasSubstr("estimate = NULL"));
}

TEST(TuneInfo, TellsWhereCostsComeFrom) {
  for (const pm_isa_info& isa : all_isas()) {
    if (!isa.available) continue;
    pm_tune_info info = {};
    info.struct_size = sizeof info;
    ASSERT_EQ(pm_tune_get(isa.name, &info), PM_OK);
    EXPECT_STREQ(info.isa, isa.name);
    EXPECT_NE(info.path, nullptr);
    EXPECT_TRUE(!info.tuned || std::string(info.problem).empty());
  }
  pm_tune_info info = {};
  info.struct_size = sizeof info;
  EXPECT_EQ(pm_tune_get("abacus", &info), PM_INVALID_ARGUMENT);
  EXPECT_EQ(pm_tune_get(nullptr, nullptr), PM_INVALID_ARGUMENT);
}

TEST(Stats, CountTheBatch) {
  Case c(small());
  Plan plan(c.config, c.batch);
  pm_plan_stats stats = plan.stats();
  EXPECT_GE(stats.items, 3 * 2);
  EXPECT_LE(stats.split_items, stats.items);
  EXPECT_LE(stats.parts, c.config.threads);
  EXPECT_EQ(stats.stored_tokens + stats.fused_tokens, 74);
  EXPECT_THAT(stats.kernel, testing::StartsWith("attend_"));
  for (const pm_isa_info& info : all_isas()) {
    if (!info.selected) continue;
    EXPECT_STREQ(stats.isa, info.name);
  }
}

TEST(Stats, DecodeFusesAllItsStores) {
  Spec spec = small();
  spec.seqs = {{0, 1, 20, {}, {}}, {1, 1, 333, {}, {}}, {2, 1, 1, {}, {}}};
  Case c(spec);
  EXPECT_EQ(Plan(c.config, c.batch).stats().fused_tokens, 3);
  EXPECT_EQ(Plan(c.config, c.batch).stats().stored_tokens, 0);
  spec.seqs.push_back({3, 1, 340, {}, {}, 1, 20});  // another sequence, but no page that is written
  Case prefix(spec);
  EXPECT_EQ(Plan(prefix.config, prefix.batch).stats().fused_tokens, 4);
  spec.seqs[3].shared_pages = 21;
  spec.seqs[1].kv_len = 336;  // now it reads the page in which sequence 1 stores
  Case shared(spec);
  EXPECT_EQ(Plan(shared.config, shared.batch).stats().stored_tokens, 1);
  spec.write_cache = false;
  Case reader(spec);
  EXPECT_EQ(Plan(reader.config, reader.batch).stats().fused_tokens, 0);
  EXPECT_EQ(Plan(reader.config, reader.batch).stats().stored_tokens, 0);
}

TEST(Stats, PrefillOfManyTilesStoresFirst) {
  Spec spec = small();
  spec.seqs = {{0, 1000, 1000, {}, {}}, {1, 1, 20, {}, {}}};
  Case c(spec);
  EXPECT_EQ(Plan(c.config, c.batch).stats().stored_tokens, 1000);
  EXPECT_EQ(Plan(c.config, c.batch).stats().fused_tokens, 1);
}

TEST(Stats, OneLongSequenceIsSplit) {
  Spec spec = small();
  spec.num_kv_heads = 1, spec.threads = 8;
  spec.seqs = {{0, 1, 8000, {}, {}}};
  Case c(spec);
  pm_plan_stats stats = Plan(c.config, c.batch).stats();
  EXPECT_GE(stats.split_items, 2);
  EXPECT_GE(stats.merges, 1);
  EXPECT_TRUE(right(spec));
}

TEST(Stats, ASmallStepRunsInline) {
  Spec spec = small();
  spec.seqs = {{0, 1, 16, {}, {}}};
  Case c(spec);
  Plan plan(c.config, c.batch);
  EXPECT_EQ(plan.stats().parts, 1);
  Executor executor;
  executor.parallel_for = [](void*, int32_t n, void (*task)(void*, int32_t), void* arg) {
    ADD_FAILURE() << "executor called for " << n << " tasks";
    for (int32_t i = 0; i < n; ++i) task(arg, i);
  };
  plan.run(c.args, Workspace(plan), &executor);
  EXPECT_EQ(verify(c).problem, "");
}

TEST(Environment, ForcesAnIsa) {
  Case c(small());
  setenv("PAGEMILL_ISA", "scalar", 1);
  EXPECT_STREQ(Plan(c.config, c.batch).stats().isa, "scalar");
  setenv("PAGEMILL_ISA", "mmx", 1);
  EXPECT_THROW(Plan(c.config, c.batch), InvalidArgument);
  EXPECT_NE(std::string(pm_last_error()).find("PAGEMILL_ISA = mmx"), std::string::npos);
  unsetenv("PAGEMILL_ISA");
}

}  // namespace
}  // namespace pagemill
