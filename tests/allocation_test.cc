// run() allocates nothing: every operator new of the process is counted.
#include <gtest/gtest.h>

#include <atomic>
#include <cstdlib>
#include <new>

#include "expect.h"

namespace {
std::atomic<int> allocations = 0;

void* counted(size_t bytes, size_t alignment) {
  ++allocations;
  void* p = std::aligned_alloc(alignment, (bytes + alignment - 1) / alignment * alignment);
  if (!p) throw std::bad_alloc();
  return p;
}
}  // namespace

void* operator new(size_t bytes) {
  return counted(bytes, alignof(std::max_align_t));
}
void* operator new(size_t bytes, std::align_val_t alignment) {
  return counted(bytes, size_t(alignment));
}
void* operator new(size_t bytes, const std::nothrow_t&) noexcept {
  return counted(bytes, alignof(std::max_align_t));
}
void operator delete(void* p) noexcept {
  std::free(p);
}
void operator delete(void* p, size_t) noexcept {
  std::free(p);
}
void operator delete(void* p, std::align_val_t) noexcept {
  std::free(p);
}
void operator delete(void* p, size_t, std::align_val_t) noexcept {
  std::free(p);
}

namespace pagemill {
namespace {

TEST(Allocation, RunHasNone) {
  for (uint64_t seed = 0; seed < 30; ++seed) {
    Spec spec = random_spec(seed, Limits{.multiplies = 3e5});
    for (const char* isa : available_isas()) {
      spec.isa = isa;
      Case c(spec);
      Plan plan(c.config, c.batch);
      Workspace workspace(plan);
      plan.run(c.args, workspace);  // starts the pool
      int before = allocations;
      plan.run(c.args, workspace);
      EXPECT_EQ(allocations - before, 0) << describe(spec);
    }
  }
}

// The second build of the same batch finds all its storage there.
TEST(Allocation, BuildingAgainReusesStorage) {
  for (uint64_t seed = 0; seed < 30; ++seed) {
    Case c(random_spec(seed, Limits{.multiplies = 3e5}));
    Plan plan(c.config, c.batch);
    plan.build(c.config, c.batch);
    int before = allocations;
    plan.build(c.config, c.batch);
    EXPECT_EQ(allocations - before, 0) << describe(c.spec);
  }
}

}  // namespace
}  // namespace pagemill
