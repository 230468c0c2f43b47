// One plan on threads of the caller's own: through a parallel-for, and from inside a parallel region. In
// batch-invariant mode the results agree to the bit with those of the library's pool.
#include <pagemill/pagemill.hpp>

#include <algorithm>
#include <atomic>
#include <barrier>
#include <cstdio>
#include <random>
#include <thread>
#include <vector>

constexpr int B = 6, S = 300, H = 8, K = 2, D = 64, P = 4, kPagesPerSeq = S / P, kThreads = 3;
constexpr int kPages = B * kPagesPerSeq;
float k_cache[kPages][P][K][D], v_cache[kPages][P][K][D], q[B][H][D];

void on_threads(const auto& work) {
  std::vector<std::jthread> threads;
  for (int i = 0; i < kThreads; ++i) threads.emplace_back(work, i);
}

int main() {
  std::mt19937 random(1);
  std::normal_distribution<float> normal;
  std::generate_n(&k_cache[0][0][0][0], kPages * P * K * D, [&] { return normal(random); });
  std::generate_n(&v_cache[0][0][0][0], kPages * P * K * D, [&] { return normal(random); });
  std::generate_n(&q[0][0][0], B * H * D, [&] { return normal(random); });

  pagemill::Config config;
  config.num_heads = H, config.num_kv_heads = K, config.head_dim = D;
  config.dtype = config.out_dtype = config.cache_dtype = PM_F32;
  config.layout = PM_ROWS, config.page_size = P, config.num_pages = kPages;
  config.write_cache = 0, config.batch_invariant = 1, config.threads = kThreads;

  const int32_t query_start[] = {0, 1, 2, 3, 4, 5, 6}, kv_len[] = {300, 17, 1, 4, 250, 300};
  std::vector<int32_t> page_table(kPages);  // [B, kPagesPerSeq]
  for (int i = 0; i < kPages; ++i) page_table[i] = kPages - 1 - i;
  pagemill::Batch batch;
  batch.num_seqs = batch.num_tokens = B, batch.pages_per_seq = kPagesPerSeq;
  batch.query_start = query_start, batch.kv_len = kv_len, batch.page_table = page_table.data();
  const pagemill::Plan plan(config, batch);
  const pagemill::Workspace workspace(plan);

  std::vector<float> pool(B * H * D), host(pool.size()), region(pool.size());
  pagemill::Args args;
  args.q = q, args.k_cache = k_cache, args.v_cache = v_cache;
  args.out = pool.data();
  plan.run(args, workspace);

  auto parallel_for = [](int n, const auto& body) {
    std::atomic<int> next = 0;
    on_threads([&](int) {
      for (int i; (i = next++) < n;) body(i);
    });
  };
  const pagemill::Executor executor = pagemill::host_executor(parallel_for);
  args.out = host.data();
  plan.run(args, workspace, &executor);

  std::barrier barrier(kThreads);
  args.out = region.data();
  on_threads([&](int i) {
    plan.run_part(args, workspace, 0, i, kThreads);
    barrier.arrive_and_wait();
    plan.run_part(args, workspace, 1, i, kThreads);
  });

  const bool equal = host == pool && region == pool;
  std::printf("out[0] = %+.4f; parallel-for and region %s the pool's result\n", pool[0],
              equal ? "equal" : "differ from");
  return equal ? 0 : 1;
}
