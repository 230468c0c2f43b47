// The counts behind MBU, MFU and roofline against brute force, and the pieces of the measurement.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <random>
#include <set>
#include <utility>
#include <vector>

#include "bench_step.h"
#include "cpu_caches.h"
#include "memory.h"
#include "models.h"
#include "peaks.h"
#include "workload.h"

namespace pagemill {
namespace {

struct Step {
  Config config;
  Batch batch;
  std::vector<int32_t> query_start, kv_len, page_table, row_index, first_position;
  std::vector<uint8_t> causal;
};

int pick(std::mt19937& random, int low, int high) {
  return std::uniform_int_distribution<int>(low, high)(random);
}

// Few pages, so that sequences share them; every optional field is there about every other time.
Step random_step(uint32_t seed) {
  std::mt19937 random(seed);
  Step s;
  s.config.num_kv_heads = pick(random, 1, 3);
  s.config.num_heads = s.config.num_kv_heads * pick(random, 1, 4);
  s.config.head_dim = 8 * pick(random, 2, 8);
  s.config.dtype = pm_dtype(pick(random, 0, 2));
  s.config.cache_dtype = pm_dtype(pick(random, 0, 2));
  s.config.layout = pick(random, 0, 3) ? PM_ROWS : PM_NO_CACHE;
  s.config.page_size = pick(random, 1, 20);
  s.config.window_left = pick(random, -1, 12);
  s.config.window_right = pick(random, -1, 6);
  s.config.causal = pick(random, 0, 1);
  const int sequences = pick(random, 0, 5);
  s.query_start = {0};
  for (int b = 0; b < sequences; ++b) {
    const int queries = pick(random, 0, 30);
    s.query_start.push_back(s.query_start.back() + queries);
    s.kv_len.push_back(s.config.layout == PM_NO_CACHE ? queries : pick(random, 0, 60));
    s.row_index.push_back(sequences - 1 - b);
    s.first_position.push_back(pick(random, 0, 40));
    s.causal.push_back(uint8_t(pick(random, 0, 1)));
  }
  const int pages_per_seq = 60 / s.config.page_size + 1, stride = pages_per_seq + pick(random, 0, 2);
  for (int i = 0; i < sequences * stride; ++i) s.page_table.push_back(pick(random, 0, 9));
  s.config.num_pages = 10;
  s.batch.num_seqs = sequences;
  s.batch.num_tokens = s.query_start.back();
  s.batch.query_start = s.query_start.data();
  s.batch.kv_len = s.kv_len.data();
  s.batch.page_table = s.page_table.data();
  s.batch.pages_per_seq = pages_per_seq;
  s.batch.page_table_stride = stride;
  if (pick(random, 0, 1)) s.batch.row_index = s.row_index.data();
  if (pick(random, 0, 1)) s.batch.first_position = s.first_position.data();
  if (pick(random, 0, 1)) s.batch.causal = s.causal.data();
  return s;
}

// Straight from the text of pagemill.h.
bool sees(const Step& s, int b, int query, int key) {
  const int queries = s.query_start[b + 1] - s.query_start[b];
  const int position = (s.batch.first_position ? s.first_position[b] : s.kv_len[b] - queries) + query;
  if ((s.batch.causal ? s.causal[b] : s.config.causal) && key > position) return false;
  if (s.config.window_left >= 0 && key < position - s.config.window_left) return false;
  return s.config.window_right < 0 || key <= position + s.config.window_right;
}

Work brute_force(const Step& s, int first, int last) {
  std::set<std::pair<int, int>> slots;  // (page, slot), or (sequence, key) without a cache
  double pairs = 0;
  const int size = s.config.page_size;
  for (int b = first; b < last; ++b) {
    const int64_t row = s.batch.row_index ? s.row_index[b] : b;
    for (int query = 0; query < s.query_start[b + 1] - s.query_start[b]; ++query) {
      for (int key = 0; key < s.kv_len[b]; ++key) {
        if (!sees(s, b, query, key)) continue;
        ++pairs;
        if (s.config.layout == PM_NO_CACHE) {
          slots.emplace(b, key);
        } else {
          slots.emplace(s.page_table[row * s.batch.page_table_stride + key / size], key % size);
        }
      }
    }
  }
  const pm_dtype dtype = s.config.layout == PM_NO_CACHE ? s.config.dtype : s.config.cache_dtype;
  const double slot_bytes = 2.0 * s.config.num_kv_heads * s.config.head_dim * (dtype == PM_F32 ? 4 : 2);
  return {double(slots.size()) * slot_bytes, 4.0 * s.config.head_dim * s.config.num_heads * pairs};
}

// The pages of one sequence as its own: a page that comes twice in one row counts twice in sequence_work.
bool repeats_pages(const Step& s, int b) {
  const int64_t row = s.batch.row_index ? s.row_index[b] : b;
  const auto begin = s.page_table.begin() + row * s.batch.page_table_stride;
  const std::set<int32_t> pages(begin, begin + s.batch.pages_per_seq);
  return int(pages.size()) < s.batch.pages_per_seq;
}

TEST(Workload, StepCountsAgreeWithBruteForce) {
  for (uint32_t seed = 0; seed < 500; ++seed) {
    const Step s = random_step(seed);
    const Work expected = brute_force(s, 0, s.batch.num_seqs), got = step_work(s.config, s.batch);
    ASSERT_EQ(got.bytes, expected.bytes) << "seed " << seed;
    ASSERT_EQ(got.flops, expected.flops) << "seed " << seed;
  }
}

TEST(Workload, RooflineSumsTheSequencesSlowerSides) {
  int compared = 0;
  for (uint32_t seed = 0; seed < 500; ++seed) {
    const Step s = random_step(seed);
    const PeakRates peak{3e9, 40e9};
    double expected = 0;
    bool comparable = true;
    for (int b = 0; b < s.batch.num_seqs; ++b) {
      const Work work = brute_force(s, b, b + 1);
      expected += std::max(work.bytes / peak.read, work.flops / peak.flops);
      comparable &= s.config.layout == PM_NO_CACHE || !repeats_pages(s, b);
    }
    if (!comparable) continue;
    ++compared;
    ASSERT_NEAR(roofline_seconds(s.config, s.batch, peak), expected, 1e-12 * expected) << "seed " << seed;
  }
  EXPECT_GT(compared, 100);
}

// Llama 3 8B, one decode of 4096 keys: 2 x 8 x 128 x 2 bytes a key, 4 x 32 x 128 flops a key.
TEST(Workload, DecodeByHand) {
  Step s;
  s.config.num_heads = 32;
  s.config.num_kv_heads = 8;
  s.config.head_dim = 128;
  s.config.page_size = 4096;
  s.query_start = {0, 1};
  s.kv_len = {4096};
  s.page_table = {0};
  s.batch.num_seqs = 1;
  s.batch.query_start = s.query_start.data();
  s.batch.kv_len = s.kv_len.data();
  s.batch.page_table = s.page_table.data();
  s.batch.pages_per_seq = 1;
  EXPECT_EQ(step_work(s.config, s.batch).bytes, 16777216);
  EXPECT_EQ(step_work(s.config, s.batch).flops, 67108864);
}

TEST(ReadKernels, ReadEveryByteOnce) {
  const HugeBuffer buffer(1 << 16);
  uint64_t expected = 0;
  std::mt19937_64 random(1);
  for (size_t i = 0; i < buffer.bytes() / 8; ++i) expected ^= buffer.data<uint64_t>()[i] = random();
  for (const ReadKernel& kernel : read_kernels()) {
    if (kernel.supported()) {
      EXPECT_EQ(kernel.run(buffer.data(), buffer.bytes()), expected) << kernel.name;
    }
  }
}

// Every lane of every sum starts at 0 and grows by the product of ones, by two of them for bf16 pairs.
TEST(MultiplyKernels, CountTheirFlops) {
  struct Lanes {
    std::string_view isa;
    int f32, bf16;
  };
  const std::vector<Lanes> lanes = {
      {"scalar", 4, 4}, {"avx2", 8, 8}, {"avx512", 16, 16}, {"avx512bf16", 16, 16}, {"amx", 16, 256}};
  for (int i = 0; i < pm_isa_count(); ++i) {
    pm_isa_info isa{};
    isa.struct_size = sizeof isa;
    check(pm_isa_get(i, &isa));
    if (!isa.available) continue;
    for (const pm_dtype dtype : {PM_F32, PM_BF16}) {
      const auto row = std::ranges::find(lanes, std::string_view(isa.name), &Lanes::isa);
      const int of_sum = row == lanes.end() ? 4 : dtype == PM_BF16 ? row->bf16 : row->f32;
      const MultiplyKernel& kernel = best_multiply(isa.name, dtype, dtype);
      const double products = double(kernel.run(11)) - double(kernel.run(1));  // of ten iterations, one lane
      EXPECT_EQ(10 * kernel.flops_per_iteration, 2 * products * of_sum) << isa.name << " " << kernel.name;
    }
  }
}

TEST(HugeBuffer, IsZeroedAlignedAndMovable) {
  HugeBuffer buffer((2 << 20) + 1);
  EXPECT_EQ(buffer.bytes(), size_t{4} << 20);
  EXPECT_EQ(reinterpret_cast<uintptr_t>(buffer.data()) % (2 << 20), 0u);
  EXPECT_EQ(buffer.data<int>()[(1 << 20) - 1], 0);
  std::memset(buffer.data(), 1, buffer.bytes());
  HugeBuffer moved = std::move(buffer);
  EXPECT_EQ(moved.data<char>()[moved.bytes() - 1], 1);
  EXPECT_EQ(HugeBuffer().data(), nullptr);
}

TEST(CpuCaches, LastLevelIsTheLargest) {
  for (const CpuCache& cache : cpu_caches()) EXPECT_LE(cache.bytes, last_level_cache_bytes());
  EXPECT_GT(last_level_cache_bytes(), 0u);
}

TEST(Models, GroupEvenly) {
  for (const Model& model : models()) EXPECT_EQ(model.heads % model.kv_heads, 0) << model.name;
}

class BenchSteps : public testing::TestWithParam<const char*> {
 protected:
  static constexpr double kTurnover = 1e7;  // bytes

  static BenchSpec spec(int window) {
    const int q_len = GetParam() == std::string("decode") ? 1 : 100;
    return {GetParam(), models()[0], 3, 300, q_len, 16, PM_BF16, PM_BF16, PM_TILES, "", 2, window, false};
  }
};

TEST_P(BenchSteps, AreRightOnEveryCopyOfTheCache) {
  const Pool pool(2);
  const Executor executor = pool.executor();
  for (const int window : {0, 40}) {
    BenchStep step(spec(window), kTurnover);
    EXPECT_GT(step.copies(), 1);
    EXPECT_GE(step.copies() * step_work(step.config(), step.batch()).bytes, kTurnover);
    for (int run = 0; run < step.copies(); ++run) {
      step.run(executor);
      ASSERT_LE(step.worst_error(20), 1) << "window " << window << ", copy " << run;
    }
  }
}

TEST_P(BenchSteps, NoticeWrongResults) {
  Executor idle;
  idle.parallel_for = [](void*, int32_t, void (*)(void*, int32_t), void*) {};
  BenchStep step(spec(0), kTurnover);
  step.run(idle);
  EXPECT_GT(step.worst_error(20), 1);
}

INSTANTIATE_TEST_SUITE_P(Cases, BenchSteps, testing::Values("decode", "prefill", "mixed"));

}  // namespace
}  // namespace pagemill
