// Four sequences begin with the same system prompt. Two ways to attend to it, with equal results:
//   pages   every page table begins with the prompt's pages (nothing else to do);
//   merge   all queries read the prompt once as one sequence, and their own keys as four; merged by lse.
#include <pagemill/pagemill.hpp>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <random>
#include <vector>

constexpr int B = 4, H = 8, K = 2, D = 64, P = 16;
constexpr int kPrefixPages = 4, kPrefix = kPrefixPages * P, kOwn = 10;  // tokens of the prompt, then of each
constexpr int kPages = kPrefixPages + B;

alignas(64) float cache[kPages][K][2][P * D];
float q[B][H][D], k[B][K][D], v[B][K][D];

struct Result {
  std::vector<float> out = std::vector<float>(B * H * D), lse = std::vector<float>(B * H);
};

// query_start [num_seqs + 1], kv_len [num_seqs], pages [num_seqs, pages_per_seq]
Result attend(bool write_and_causal, const std::vector<int32_t>& query_start,
              const std::vector<int32_t>& kv_len, const std::vector<int32_t>& pages) {
  pagemill::Config config;
  config.num_heads = H, config.num_kv_heads = K, config.head_dim = D;
  config.dtype = config.out_dtype = config.cache_dtype = PM_F32;
  config.page_size = P, config.num_pages = kPages;
  config.causal = config.write_cache = write_and_causal;

  pagemill::Batch batch;
  batch.num_seqs = static_cast<int32_t>(kv_len.size()), batch.num_tokens = B;
  batch.query_start = query_start.data(), batch.kv_len = kv_len.data(), batch.page_table = pages.data();
  batch.pages_per_seq = static_cast<int32_t>(pages.size() / kv_len.size());

  Result result;
  pagemill::Args args;
  args.q = q, args.k_new = k, args.v_new = v;
  args.out = result.out.data(), args.lse = result.lse.data();
  args.k_cache = cache[0][0][0], args.v_cache = cache[0][0][1];
  pagemill::attention(config, batch, args);
  return result;
}

int main() {
  std::mt19937 random(1);
  std::normal_distribution<float> normal;
  std::generate_n(&cache[0][0][0][0], sizeof cache / sizeof(float), [&] { return normal(random); });
  std::generate_n(&q[0][0][0], B * H * D, [&] { return normal(random); });
  std::generate_n(&k[0][0][0], B * K * D, [&] { return normal(random); });
  std::generate_n(&v[0][0][0], B * K * D, [&] { return normal(random); });

  std::vector<int32_t> tables, prompt(kPrefixPages), own(B);
  for (int i = 0; i < kPrefixPages; ++i) prompt[i] = i;
  for (int b = 0; b < B; ++b) {
    own[b] = kPrefixPages + b;
    tables.insert(tables.end(), prompt.begin(), prompt.end());
    tables.push_back(own[b]);
  }
  const std::vector<int32_t> one_each = {0, 1, 2, 3, 4};
  const Result whole = attend(true, one_each, std::vector<int32_t>(B, kPrefix + kOwn), tables);

  Result merged = attend(false, {0, B}, {kPrefix}, prompt);
  const Result rest = attend(false, one_each, std::vector<int32_t>(B, kOwn), own);
  pagemill::merge(PM_F32, B * H, D, merged.out.data(), merged.lse.data(), rest.out.data(), rest.lse.data(),
                  merged.out.data(), merged.lse.data());

  double worst = 0;
  for (size_t i = 0; i < whole.out.size(); ++i)
    worst = std::max(worst, std::abs(double{whole.out[i]} - merged.out[i]));
  std::printf("out[0] = %+.4f by pages, %+.4f by merge; largest difference %.1e\n", whole.out[0],
              merged.out[0], worst);
  return worst < 1e-5 ? 0 : 1;
}
