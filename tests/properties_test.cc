// What may change without changing the result: nothing beyond the bound, and nothing at all, bit for bit, in
// batch-invariant mode or where the plan is the same.
#include <gtest/gtest.h>
#include <rapidcheck/gtest.h>

#include <algorithm>
#include <barrier>
#include <cmath>
#include <cstring>
#include <random>
#include <thread>
#include <vector>

#include "expect.h"
#include "reference.h"

namespace pagemill {
namespace {

// A random case on a random ISA, small enough for some hundred of them.
Spec any_spec() {
  static const std::vector<const char*> isas = available_isas();
  uint64_t seed = *rc::gen::inRange<uint64_t>(0, uint64_t{1} << 40);
  Spec spec = random_spec(seed, Limits{.multiplies = 1e6, .page_elements = 1 << 14});
  spec.isa = isas[seed % isas.size()];
  spec.batch_invariant = seed % 3 != 0;
  label_faults("faulting case: " + describe(spec));
  return spec;
}

int index_of(const Spec& spec, int id) {
  for (size_t b = 0; b < spec.seqs.size(); ++b)
    if (spec.seqs[b].id == id) return int(b);
  return -1;
}

bool same_row(const Case& a, int seq_a, const Case& b, int seq_b, int query, int head) {
  size_t bytes = a.config.head_dim * reference::size_of(a.config.out_dtype);
  if (std::memcmp(a.out_row(seq_a, query, head), b.out_row(seq_b, query, head), bytes) != 0) return false;
  if (!a.args.lse) return true;
  float x = a.lse(seq_a, query, head), y = b.lse(seq_b, query, head);
  return std::memcmp(&x, &y, sizeof x) == 0;
}

void assert_right(const Case& c) {
  Verdict verdict = verify(c);
  if (!verdict.problem.empty()) RC_FAIL(verdict.problem + "\n" + describe(c.spec));
}

// The rows of `changed` have the bits of the same sequences' rows in `original`.
void assert_same_rows(const Case& original, const Case& changed) {
  for (size_t b = 0; b < changed.spec.seqs.size(); ++b) {
    int from = index_of(original.spec, changed.spec.seqs[b].id);
    for (int i = 0; i < changed.q_len(int(b)); ++i)
      for (int h = 0; h < changed.config.num_heads; ++h)
        if (!same_row(original, from, changed, int(b), i, h))
          RC_FAIL("bits differ: sequence " + std::to_string(b) + " query " + std::to_string(i) + "\n" +
                  describe(original.spec) + "\n" + describe(changed.spec));
  }
}

// Runs both; each is within the bound, and in batch-invariant mode they agree bit for bit.
void assert_equivalent(const Spec& original, const Spec& changed) {
  Case a(original), b(changed);
  run(a);
  run(b);
  assert_right(a);
  assert_right(b);
  if (original.batch_invariant) assert_same_rows(a, b);
}

// Calls for queries [begin, end) of one sequence of c alone: the rows and keys up to there.
void run_chunk(Case& c, int seq, int begin, int end) {
  const pm_args full = reference::with_strides(c.config, c.args);
  const SequenceSpec& s = c.spec.seqs[seq];
  const int32_t query_start[] = {0, end - begin}, kv_len[] = {s.kv_len - s.q_len + end};
  const int32_t position[] = {s.first_position.value_or(s.kv_len - s.q_len) + begin};
  const int32_t row[] = {c.batch.row_index ? c.batch.row_index[seq] : seq};
  const uint8_t causal[] = {uint8_t(s.causal.value_or(c.spec.causal))};
  pm_batch batch = c.batch;
  batch.num_seqs = 1;
  batch.num_tokens = end - begin;
  batch.query_start = query_start, batch.kv_len = kv_len;
  if (batch.page_table_rows == 0) batch.page_table_rows = c.batch.num_seqs;
  batch.row_index = row, batch.first_position = position, batch.causal = causal;
  const int64_t token = c.batch.query_start[seq] + begin;
  const size_t bytes = reference::size_of(c.config.dtype);
  pm_args args = full;
  args.q = static_cast<const std::byte*>(full.q) + token * full.q_stride_token * bytes;
  if (args.k_new)
    args.k_new = static_cast<const std::byte*>(full.k_new) + token * full.k_new_stride_token * bytes;
  if (args.v_new)
    args.v_new = static_cast<const std::byte*>(full.v_new) + token * full.v_new_stride_token * bytes;
  args.out = static_cast<std::byte*>(full.out) +
             token * full.out_stride_token * reference::size_of(c.config.out_dtype);
  if (args.lse) args.lse = full.lse + token * full.lse_stride_token;
  attention(c.config, batch, args);
}

RC_GTEST_PROP(Property, PagesMayLieAnywhere, ()) {
  Spec spec = any_spec(), changed = spec;
  changed.page_seed = spec.page_seed + 1;
  changed.spare_pages += 5;
  assert_equivalent(spec, changed);
}

RC_GTEST_PROP(Property, SequencesMayComeInAnyOrder, ()) {
  Spec spec = any_spec(), changed = spec;
  std::shuffle(changed.seqs.begin(), changed.seqs.end(), std::mt19937_64(spec.seed));
  assert_equivalent(spec, changed);
}

RC_GTEST_PROP(Property, NeighboursDoNotMatter, ()) {
  Spec spec = any_spec();
  for (SequenceSpec& s : spec.seqs) s.parent = -1, s.shared_pages = 0;
  RC_PRE(!spec.seqs.empty());
  Spec changed = spec;
  changed.seqs = {spec.seqs[spec.seed % spec.seqs.size()]};
  assert_equivalent(spec, changed);
}

RC_GTEST_PROP(Property, ThreadsAndSplitsDoNotMatter, ()) {
  Spec spec = any_spec(), changed = spec;
  spec.threads = 1;
  changed.threads = *rc::gen::inRange(2, 40);
  assert_equivalent(spec, changed);
}

// Thousands of keys, so that batch-invariant splits end inside.
RC_GTEST_PROP(Property, LongContextsAreInvariant, ()) {
  Spec spec = any_spec();
  RC_PRE(spec.layout != PM_NO_CACHE);
  spec.num_kv_heads = 1, spec.num_heads = 2;
  spec.batch_invariant = true;
  spec.causal = true;
  spec.threads = 1;
  const int kv_len = *rc::gen::inRange(1000, 5000), q_len = *rc::gen::inRange(1, 20);
  spec.seqs = {{0, q_len, kv_len, {}, {}}};
  Spec split = spec, crowded = spec;
  split.threads = *rc::gen::inRange(2, 40);
  crowded.seqs = {{1, 1, 3000, {}, {}}, spec.seqs[0], {2, 30, 40, {}, {}}};
  Case a(spec), b(split), c(crowded), chunked(spec);
  run(a);
  run(b);
  run(c);
  for (int query = 0; query < q_len; ++query) run_chunk(chunked, 0, query, query + 1);
  assert_right(a);
  assert_same_rows(a, b);
  assert_same_rows(a, chunked);
  for (int i = 0; i < q_len; ++i)
    for (int h = 0; h < 2; ++h) RC_ASSERT(same_row(a, 0, c, 1, i, h));
}

RC_GTEST_PROP(Property, MemoryFormsDoNotMatter, ()) {
  Spec spec = any_spec(), changed = spec;
  changed.tokens = TokenForm(*rc::gen::inRange(0, 3));
  changed.cache = CacheForm(*rc::gen::inRange(0, 5));
  changed.out_padded = !spec.out_padded;
  changed.edge = Edge::kStart;
  changed.table_padding = 2;
  changed.row_index = !spec.row_index;
  assert_equivalent(spec, changed);
}

RC_GTEST_PROP(Property, PrefillMayComeInChunks, ()) {
  Spec spec = any_spec();
  RC_PRE(spec.layout != PM_NO_CACHE);
  // A query sees no key that comes in a later chunk.
  spec.causal = true;
  for (SequenceSpec& s : spec.seqs) {
    s.causal.reset(), s.first_position.reset();
    s.kv_len = std::max(s.kv_len, s.q_len);
  }
  Case whole(spec), chunked(spec);
  run(whole);
  std::mt19937_64 random(spec.seed);
  for (size_t b = 0; b < spec.seqs.size(); ++b)  // parents come before their children
    for (int begin = 0, end; begin < spec.seqs[b].q_len; begin = end) {
      end = std::min(spec.seqs[b].q_len, begin + 1 + int(random() % 40));
      run_chunk(chunked, int(b), begin, end);
    }
  assert_right(whole);
  assert_right(chunked);
  if (spec.batch_invariant) assert_same_rows(whole, chunked);
}

// Runs c again in another way: the same plan gives the same bits, whoever executes it.
void assert_same_bits(Case& c, const std::vector<std::byte>& want, const Call& call, const char* how) {
  c.restore();
  run(c, call);
  if (c.outputs() != want) RC_FAIL(std::string(how) + " changes bits\n" + describe(c.spec));
  assert_right(c);
}

Call with_executor(const pm_executor& executor) {
  return [&executor](const pm_plan* plan, const pm_args* args, void* workspace, size_t bytes) {
    return pm_run(plan, args, workspace, bytes, &executor);
  };
}

// parts threads in the host's own parallel region.
Call with_parts(int parts) {
  return [parts](const pm_plan* plan, const pm_args* args, void* workspace, size_t bytes) {
    std::barrier barrier(parts);
    std::vector<pm_status> statuses(parts);
    std::vector<std::thread> threads;
    for (int part = 0; part < parts; ++part)
      threads.emplace_back([&, part] {
        statuses[part] = pm_run_part(plan, args, workspace, bytes, 0, part, parts);
        barrier.arrive_and_wait();
        if (statuses[part] == PM_OK)
          statuses[part] = pm_run_part(plan, args, workspace, bytes, 1, part, parts);
      });
    for (std::thread& thread : threads) thread.join();
    return *std::max_element(statuses.begin(), statuses.end());
  };
}

RC_GTEST_PROP(Property, ExecutorsDoNotMatter, ()) {
  static const Pool two(2), three(3);
  static const Executor pool_of_two = two.executor(), pool_of_three = three.executor();
  auto serial_backwards = [](int32_t n, auto body) {
    while (n > 0) body(--n);
  };
  auto thread_each = [](int32_t n, auto body) {
    std::vector<std::thread> threads;
    for (int32_t i = 0; i < n; ++i) threads.emplace_back([=] { body(i); });
    for (std::thread& thread : threads) thread.join();
  };
  const Executor backwards = host_executor(serial_backwards), threads = host_executor(thread_each);
  Spec spec = any_spec();
  Case c(spec);
  run(c);
  assert_right(c);
  const std::vector<std::byte> want = c.outputs();
  assert_same_bits(c, want, with_executor(pool_of_two), "a pool of 2");
  assert_same_bits(c, want, with_executor(pool_of_three), "a pool of 3");
  assert_same_bits(c, want, with_executor(backwards), "a serial host");
  assert_same_bits(c, want, with_executor(threads), "a host with a thread for each task");
  assert_same_bits(c, want, with_parts(1), "run_part with 1 part");
  assert_same_bits(c, want, with_parts(spec.threads), "run_part with all parts");
}

// Apart from the others: ThreadSanitizer does not see how libgomp's threads wait for each other.
RC_GTEST_PROP(Property, OpenMpDoesNotMatter, ()) {
  const Executor openmp = openmp_executor();
  Spec spec = any_spec();
  Case c(spec);
  run(c);
  assert_right(c);
  const std::vector<std::byte> want = c.outputs();
  assert_same_bits(c, want, with_executor(openmp), "OpenMP");
}

RC_GTEST_PROP(Property, StoreThenAttendIsRun, ()) {
  Spec spec = any_spec();
  RC_PRE(spec.write_cache && spec.layout != PM_NO_CACHE);
  Case c(spec);
  run(c);
  const std::vector<std::byte> want = c.outputs();
  auto halves = [](const pm_plan* plan, const pm_args* args, void* workspace, size_t bytes) {
    pm_args store = *args;
    store.q = nullptr, store.out = nullptr, store.lse = nullptr;
    if (pm_status status = pm_store(plan, &store, workspace, bytes, nullptr)) return status;
    pm_args attend = *args;
    return pm_attend(plan, &attend, workspace, bytes, nullptr);
  };
  assert_same_bits(c, want, halves, "store, then attend,");
}

// Attends to keys [0, cut) and [cut, kv_len) of sequence 0 apart, merges, and compares with the reference.
RC_GTEST_PROP(Property, MergedHalvesAreTheWhole, ()) {
  Spec spec = any_spec();
  RC_PRE(spec.layout != PM_NO_CACHE);
  spec.causal = false, spec.write_cache = false, spec.alibi = false;
  spec.window_left = spec.window_right = -1;
  spec.lse = true, spec.out_padded = false, spec.padding_tokens = 0;
  spec.out_dtype = PM_F32;  // halves rounded to 16 bits lose more than the bound of the whole
  const int kv_len = *rc::gen::inRange(1, 200), rows = *rc::gen::inRange(1, 9);
  spec.seqs = {{0, rows, kv_len, {}, {}}};
  Case c(spec);
  const int page = spec.page_size, cut = kv_len / page / 2 * page;
  const int64_t n = int64_t{rows} * spec.num_heads;
  const size_t row_bytes = spec.head_dim * reference::size_of(spec.out_dtype);
  std::vector<std::byte> halves[2];
  std::vector<float> lses[2];
  for (int half : {0, 1}) {
    halves[half].resize(n * row_bytes);
    lses[half].resize(n);
    pm_batch batch = c.batch;
    pm_args args = c.args;
    const int32_t length = half == 0 ? cut : kv_len - cut;
    const int32_t row_index = 0;
    batch.kv_len = &length;
    batch.page_table +=
        (batch.row_index ? batch.row_index[0] : 0) * (batch.pages_per_seq + spec.table_padding) +
        (half == 0 ? 0 : cut / page);
    batch.pages_per_seq -= half == 0 ? 0 : cut / page;
    batch.row_index = &row_index;
    batch.page_table_rows = 1;
    batch.page_table_stride = 0;
    args.out = halves[half].data(), args.lse = lses[half].data();
    if (half == 1) args.sinks = nullptr;
    attention(c.config, batch, args);
  }
  merge(spec.out_dtype, n, spec.head_dim, halves[0].data(), lses[0].data(), halves[1].data(), lses[1].data(),
        halves[0].data(), lses[0].data());
  for (int64_t row = 0; row < n; ++row) {
    auto want = reference::attend_row(c.config, c.batch, c.args, 0, int(row / spec.num_heads),
                                      int(row % spec.num_heads));
    // Each half is within the bound, and so is the merge's own rounding.
    RC_ASSERT(reference::out_error(c.config, want, halves[0].data() + row * row_bytes) <= 2);
    RC_ASSERT(reference::lse_error(c.config, want, lses[0][row]) <= 2);
  }
}

struct CacheMemory {
  CacheMemory(pm_layout layout, pm_dtype dtype, int kv_heads, int dim, int page, int pages)
      : elements(int64_t{pages} * kv_heads * page * dim),
        memory(2 * elements * reference::size_of(dtype), Edge::kEnd, 64) {
    cache.layout = layout, cache.dtype = dtype;
    cache.num_kv_heads = kv_heads, cache.head_dim = dim, cache.page_size = page, cache.num_pages = pages;
    cache.k = memory.data();
    int64_t v = layout == PM_TILES ? int64_t{page} * dim : elements;
    cache.v = memory.data() + v * reference::size_of(dtype);
  }
  Cache cache;
  int64_t elements;  // of K
  GuardedBuffer memory;
};

RC_GTEST_PROP(Property, ConversionKeepsEveryElement, ()) {
  const int K = *rc::gen::inRange(1, 4), D = 8 * *rc::gen::inRange(2, 30), P = 16 * *rc::gen::inRange(1, 5);
  const pm_dtype from = pm_dtype(*rc::gen::inRange(0, 5)), to = pm_dtype(*rc::gen::inRange(0, 5));
  CacheMemory rows(PM_ROWS, from, K, D, P, 4), tiles(PM_TILES, to, K, D, P, 5), back(PM_ROWS, to, K, D, P, 4);
  std::mt19937_64 random(uint64_t(K * D + P));
  for (int64_t i = 0; i < 2 * rows.elements; ++i)
    reference::put(from, rows.memory.data(), i,
                   std::ldexp(double(random() % 20001) - 10000, int(random() % 20) - 22));
  const int32_t shuffled[] = {4, 0, 3, 1};
  convert(rows.cache, nullptr, tiles.cache, shuffled, 4);
  convert(tiles.cache, shuffled, back.cache, nullptr, 4);
  for (int64_t i = 0; i < 2 * rows.elements; ++i) {
    double want = 0;
    uint32_t rounded = 0;
    reference::put(to, &rounded, 0, reference::get(from, rows.memory.data(), i));
    want = reference::get(to, &rounded, 0);
    RC_ASSERT(reference::get(to, back.memory.data(), i) == want);
  }
  // Page 2 of tiles was no destination.
  const size_t page = 2 * size_t(K) * P * D * reference::size_of(to);
  RC_ASSERT(std::all_of(tiles.memory.data() + 2 * page, tiles.memory.data() + 3 * page,
                        [](std::byte b) { return b == std::byte{0xff}; }));
}

// Of a NaN's bits only low ones may be set, which rounding would lose.
TEST(Conversion, KeepsNaN) {
  constexpr uint32_t kLowNaN = 0x7f800001;
  for (pm_dtype to : {PM_BF16, PM_F16, PM_F8E4M3, PM_F8E5M2}) {
    CacheMemory rows(PM_ROWS, PM_F32, 1, 16, 16, 1), tiles(PM_TILES, to, 1, 16, 16, 1);
    std::memcpy(rows.memory.data(), &kLowNaN, sizeof kLowNaN);
    convert(rows.cache, nullptr, tiles.cache, nullptr, 1);
    EXPECT_TRUE(std::isnan(reference::get(to, tiles.memory.data(), 0)));
  }
}

}  // namespace
}  // namespace pagemill

int main(int argc, char** argv) {
  testing::InitGoogleTest(&argc, argv);
  setenv("RC_PARAMS", ("max_success=" + std::to_string(pagemill::scaled(120))).c_str(), 0);
  return RUN_ALL_TESTS();
}
