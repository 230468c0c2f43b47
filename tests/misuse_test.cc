// Mistakes in single calls: run, run_part, store, merge, convert, and a plan after a failed build.
#include <gtest/gtest.h>

#include <limits>
#include <string>
#include <vector>

#include "expect.h"
#include "mistakes.h"

namespace pagemill {
namespace {

class Run : public testing::Test {
 protected:
  pm_status run(void* memory, size_t bytes, const pm_executor* executor = nullptr) {
    return pm_run(plan.get(), &c.args, memory, bytes, executor);
  }
  Case c{good()};
  Plan plan{c.config, c.batch};
  Workspace workspace{plan};
};

TEST_F(Run, WorkspaceTooSmall) {
  EXPECT_EQ(run(workspace.data(), workspace.bytes() - 1), PM_INVALID_ARGUMENT);
  expect_message(
      {"workspace_bytes = " + std::to_string(workspace.bytes() - 1), std::to_string(workspace.bytes())});
  expect_untouched(c);
}

TEST_F(Run, WorkspaceNull) {
  EXPECT_EQ(run(nullptr, workspace.bytes()), PM_INVALID_ARGUMENT);
  expect_message({"workspace = NULL"});
  expect_untouched(c);
}

TEST_F(Run, WorkspaceMisaligned) {
  Workspace larger(workspace.bytes() + 64);
  EXPECT_EQ(run(static_cast<std::byte*>(larger.data()) + 32, workspace.bytes()), PM_INVALID_ARGUMENT);
  expect_message({"workspace = 0x", "64"});
  expect_untouched(c);
}

TEST_F(Run, ExecutorWithoutFunction) {
  Executor executor;
  EXPECT_EQ(run(workspace.data(), workspace.bytes(), &executor), PM_INVALID_ARGUMENT);
  expect_message({"parallel_for = NULL"});
  expect_untouched(c);
}

TEST_F(Run, PhaseAndPart) {
  auto part = [&](int phase, int index, int parts) {
    return pm_run_part(plan.get(), &c.args, workspace.data(), workspace.bytes(), phase, index, parts);
  };
  EXPECT_EQ(part(2, 0, 1), PM_INVALID_ARGUMENT);
  expect_message({"phase = 2"});
  EXPECT_EQ(part(0, 1, 1), PM_INVALID_ARGUMENT);
  expect_message({"part = 1"});
  EXPECT_EQ(part(0, -1, 1), PM_INVALID_ARGUMENT);
  expect_message({"part = -1"});
  EXPECT_EQ(part(0, 0, 0), PM_INVALID_ARGUMENT);
  expect_message({"parts = 0"});
  EXPECT_EQ(part(0, 0, 3), PM_INVALID_ARGUMENT);  // planned for 2
  expect_message({"parts = 3"});
  expect_untouched(c);
}

TEST_F(Run, NullStructs) {
  EXPECT_EQ(pm_plan_build(plan.get(), nullptr, &c.batch), PM_INVALID_ARGUMENT);
  expect_message({"config = NULL"});
  EXPECT_EQ(pm_plan_build(plan.get(), &c.config, nullptr), PM_INVALID_ARGUMENT);
  expect_message({"batch = NULL"});
  EXPECT_EQ(pm_plan_build(nullptr, &c.config, &c.batch), PM_INVALID_ARGUMENT);
  expect_message({"plan = NULL"});
  EXPECT_EQ(pm_run(plan.get(), nullptr, workspace.data(), workspace.bytes(), nullptr), PM_INVALID_ARGUMENT);
  expect_message({"args = NULL"});
  EXPECT_EQ(pm_run(nullptr, &c.args, workspace.data(), workspace.bytes(), nullptr), PM_INVALID_ARGUMENT);
  EXPECT_EQ(pm_plan_create(nullptr), PM_INVALID_ARGUMENT);
  EXPECT_EQ(pm_plan_get_stats(plan.get(), nullptr), PM_INVALID_ARGUMENT);
  EXPECT_EQ(pm_pool_create(-1, nullptr), PM_INVALID_ARGUMENT);
  expect_untouched(c);
}

TEST_F(Run, StoreOfAPlanThatDoesNotWrite) {
  Case reader(read_only(true));
  Plan reading(reader.config, reader.batch);
  Workspace memory(reading);
  EXPECT_EQ(pm_store(reading.get(), &reader.args, memory.data(), memory.bytes(), nullptr),
            PM_INVALID_ARGUMENT);
  expect_message({"write_cache = 0"});
  expect_untouched(reader);
}

TEST_F(Run, FailedBuildLeavesThePlan) {
  pm_config bad = c.config;
  bad.head_dim = 12;
  EXPECT_EQ(pm_plan_build(plan.get(), &bad, &c.batch), PM_UNSUPPORTED);
  *entry(c, 1, 1) = -5;
  EXPECT_EQ(pm_plan_build(plan.get(), &c.config, &c.batch), PM_INVALID_ARGUMENT);
  c.metadata.clear();  // the plan has its own copy
  EXPECT_EQ(run(workspace.data(), workspace.bytes()), PM_OK);
  Case fresh{good()};
  pagemill::run(fresh);
  EXPECT_EQ(fresh.outputs(), c.outputs());
}

TEST(Merge, Mistakes) {
  float a[64] = {}, lse = 0;
  EXPECT_EQ(pm_merge(PM_F32, -1, 64, a, &lse, a, &lse, a, &lse), PM_INVALID_ARGUMENT);
  expect_message({"rows = -1"});
  EXPECT_EQ(pm_merge(PM_F32, 1, 0, a, &lse, a, &lse, a, &lse), PM_INVALID_ARGUMENT);
  expect_message({"head_dim = 0"});
  EXPECT_EQ(pm_merge(pm_dtype(3), 1, 64, a, &lse, a, &lse, a, &lse), PM_INVALID_ARGUMENT);
  expect_message({"dtype = 3"});
  EXPECT_EQ(pm_merge(PM_F32, 1, 64, a, nullptr, a, &lse, a, &lse), PM_INVALID_ARGUMENT);
  expect_message({"lse_a = NULL"});
  EXPECT_EQ(pm_merge(PM_F32, 1, 64, a, &lse, nullptr, &lse, a, &lse), PM_INVALID_ARGUMENT);
  expect_message({"b = NULL"});
  EXPECT_EQ(pm_merge(PM_F32, 1, 64, a, &lse, a, &lse, nullptr, &lse), PM_INVALID_ARGUMENT);
  expect_message({"out = NULL"});
}

TEST(Convert, Mistakes) {
  GuardedBuffer memory(1 << 16, Edge::kEnd, 64);
  Cache rows, tiles;
  rows.layout = PM_ROWS;
  for (Cache* cache : {&rows, &tiles}) {
    cache->num_kv_heads = 1, cache->head_dim = 64, cache->page_size = 16, cache->num_pages = 2;
    cache->k = memory.data() + (cache == &rows ? 0 : 1 << 15);
    cache->v = static_cast<std::byte*>(cache->k) + (cache == &rows ? 1 << 12 : 1 << 11);
  }
  memory.save();
  auto expect_mistake = [&](Cache from, Cache to, std::vector<int32_t> from_pages,
                            std::vector<int32_t> to_pages, const char* message) {
    EXPECT_EQ(pm_convert(&from, from_pages.data(), &to, to_pages.data(), int64_t(from_pages.size())),
              PM_INVALID_ARGUMENT);
    expect_message({message});
    EXPECT_TRUE(std::equal(memory.saved().begin(), memory.saved().end(), memory.data()));
  };
  expect_mistake(rows, tiles, {0, 2}, {0, 1}, "src_pages[1] = 2");
  expect_mistake(rows, tiles, {0, 1}, {0, -1}, "dst_pages[1] = -1");
  Cache other = tiles;
  other.head_dim = 32;
  expect_mistake(rows, other, {0}, {0}, "head_dim = 32");
  other = tiles;
  other.num_kv_heads = 2;
  expect_mistake(rows, other, {0}, {0}, "num_kv_heads = 2");
  other = tiles;
  other.page_size = 32;
  expect_mistake(rows, other, {0}, {0}, "page_size = 32");
  other = tiles;
  other.k = nullptr;
  expect_mistake(rows, other, {0}, {0}, "k");
  EXPECT_EQ(pm_convert(&rows, nullptr, &tiles, nullptr, 3), PM_INVALID_ARGUMENT);
  expect_message({"n = 3"});
}

TEST(Isa, EveryUnavailableOneIsUnsupported) {
  for (const pm_isa_info& info : all_isas()) {
    if (info.available) continue;
    Case c(good());
    c.config.isa = info.name;
    EXPECT_EQ(pm_attention(&c.config, &c.batch, &c.args, nullptr), PM_UNSUPPORTED);
    expect_message({std::string("isa = ") + info.name});
    expect_untouched(c);
  }
}

TEST(Status, Names) {
  EXPECT_STREQ(pm_status_name(PM_OK), "ok");
  EXPECT_STREQ(pm_status_name(PM_INVALID_ARGUMENT), "invalid_argument");
  EXPECT_STREQ(pm_status_name(PM_UNSUPPORTED), "unsupported");
  EXPECT_STREQ(pm_status_name(PM_OUT_OF_MEMORY), "out_of_memory");
}

TEST(Status, WrapperThrows) {
  Case c(good());
  c.args.scale = std::numeric_limits<float>::quiet_NaN();
  EXPECT_THROW(attention(c.config, c.batch, c.args), InvalidArgument);
  c.config.head_dim = 12;
  EXPECT_THROW(attention(c.config, c.batch, c.args), Unsupported);
}

}  // namespace
}  // namespace pagemill
