// A prompt of 40 tokens is prefilled, then ten tokens are decoded one by one, with the cache in layout
// `tiles`; each output is compared with the plain formula.
#include <pagemill/pagemill.hpp>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <random>

constexpr int H = 8, K = 2, D = 64, P = 16, kPages = 8, kPrompt = 40, kTokens = 50;
alignas(64) float cache[kPages][K][2][P * D];  // the K and the V plane of a head side by side
float q[kTokens][H][D], k[kTokens][K][D], v[kTokens][K][D], out[kTokens][H][D];

double dot(const float* a, const float* b) {
  double sum = 0;
  for (int d = 0; d < D; ++d) sum += double{a[d]} * b[d];
  return sum;
}

// out[t, h] = sum over j <= t of softmax_j(q . k_j / sqrt(D)) v_j
double error(int t, int h) {
  const int kv_head = h / (H / K);
  double denominator = 0, expected[D] = {}, worst = 0;
  for (int j = 0; j <= t; ++j) {
    const double weight = std::exp(dot(q[t][h], k[j][kv_head]) / std::sqrt(D));
    denominator += weight;
    for (int d = 0; d < D; ++d) expected[d] += weight * v[j][kv_head][d];
  }
  for (int d = 0; d < D; ++d) worst = std::max(worst, std::abs(expected[d] / denominator - out[t][h][d]));
  return worst;
}

int main() {
  std::mt19937 random(1);
  std::normal_distribution<float> normal;
  std::generate_n(&q[0][0][0], kTokens * H * D, [&] { return normal(random); });
  std::generate_n(&k[0][0][0], kTokens * K * D, [&] { return normal(random); });
  std::generate_n(&v[0][0][0], kTokens * K * D, [&] { return normal(random); });

  pagemill::Config config;
  config.num_heads = H, config.num_kv_heads = K, config.head_dim = D;
  config.dtype = config.out_dtype = config.cache_dtype = PM_F32;
  config.page_size = P, config.num_pages = kPages;

  const int32_t pages[] = {6, 1, 3, 0};  // any pages in any order
  pagemill::Plan plan;
  pagemill::Workspace workspace;
  double worst = 0;
  for (int done = 0, n = kPrompt; done < kTokens; done += n, n = 1) {
    const int32_t query_start[] = {0, n}, kv_len = done + n;
    pagemill::Batch batch;
    batch.num_seqs = 1, batch.num_tokens = n, batch.pages_per_seq = 4;
    batch.query_start = query_start, batch.kv_len = &kv_len, batch.page_table = pages;
    plan.build(config, batch);
    workspace.reserve(plan.stats().workspace_bytes);

    pagemill::Args args;
    args.q = q[done], args.k_new = k[done], args.v_new = v[done], args.out = out[done];
    args.k_cache = cache[0][0][0], args.v_cache = cache[0][0][1];
    plan.run(args, workspace);

    for (int t = done; t < done + n; ++t)
      for (int h = 0; h < H; ++h) worst = std::max(worst, error(t, h));
    std::printf("%2d keys, %2d new: out[0] = %+.4f, largest error so far %.1e\n", kv_len, n, out[done][0][0],
                worst);
  }
  return worst < 1e-4 ? 0 : 1;
}
