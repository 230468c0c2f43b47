#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <random>

#include "cases.h"
#include "workload.h"

namespace pagemill {
namespace {

class Random {
 public:
  explicit Random(uint64_t seed) : engine_(seed) {}
  int between(int low, int high) { return int(low + engine_() % uint64_t(high - low + 1)); }
  bool chance(int percent) { return between(1, 100) <= percent; }
  template <class T>
  T pick(std::initializer_list<T> values) {
    return values.begin()[between(0, int(values.size()) - 1)];
  }

 private:
  std::mt19937_64 engine_;
};

void choose_shape(Random& random, const Limits& limits, Spec& s) {
  s.head_dim = random.chance(65) ? random.pick({64, 128, 128, 256, 32, 80, 96, 112})
                                 : 8 * random.between(2, random.chance(30) ? 64 : 16);
  s.num_kv_heads = random.chance(70) ? random.pick({1, 2, 3, 4}) : random.between(1, 8);
  int G = random.chance(80) ? random.pick({1, 2, 3, 4, 5, 7, 8, 16}) : random.between(1, 128);
  s.num_heads = G * s.num_kv_heads;
  auto dtype = [&] { return random.pick({PM_BF16, PM_BF16, PM_F32, PM_F16}); };
  s.dtype = dtype();
  s.out_dtype = random.chance(30) ? PM_F32 : s.dtype;
  s.cache_dtype = random.chance(40)   ? s.dtype
                  : random.chance(50) ? dtype()
                                      : random.pick({PM_F8E4M3, PM_F8E5M2});
  s.layout = random.pick({PM_TILES, PM_TILES, PM_TILES, PM_ROWS, PM_ROWS, PM_ROWS, PM_NO_CACHE});
  int64_t largest = std::clamp<int64_t>(limits.page_elements / (s.head_dim * s.num_kv_heads), 1, 1024);
  if (s.layout == PM_TILES)
    s.page_size = 16 * random.between(1, random.chance(80) ? 4 : std::max(1, int(largest / 16)));
  else
    s.page_size =
        random.chance(60) ? random.pick({1, 2, 8, 16, 16, 32, 64}) : random.between(1, int(largest));
}

void choose_memory(Random& random, Spec& s) {
  s.row_index = random.chance(30);
  s.table_padding = random.chance(30) ? random.between(1, 5) : 0;
  s.spare_pages = random.between(1, 4);
  s.page_seed = uint64_t(random.between(1, 1 << 30));
  s.tokens = random.pick({TokenForm::kContiguous, TokenForm::kFused, TokenForm::kPadded});
  s.cache = random.pick({CacheForm::kContiguous, CacheForm::kHeadMajor, CacheForm::kPadded,
                         CacheForm::kInterleaved, CacheForm::kPaired});
  s.out_padded = random.chance(30);
  s.edge = random.chance(75) ? Edge::kEnd : Edge::kStart;
  s.padding_tokens = random.chance(40) ? random.between(1, 4) : 0;
}

void choose_features(Random& random, Spec& s) {
  s.causal = random.chance(75);
  if (random.chance(35)) s.window_left = random.chance(80) ? random.between(0, 90) : 1 << 20;
  if (random.chance(15)) s.window_right = random.between(0, 40);
  s.write_cache = random.chance(75);
  s.batch_invariant = random.chance(20);
  s.threads = random.pick({1, 2, 2, 3, 4, 7, 16});
  s.lse = random.chance(60);
  s.sinks = random.chance(20);
  s.alibi = random.chance(20);
  if (random.chance(20)) s.scale = float(random.between(1, 40)) / 100;
  if (random.chance(20)) s.soft_cap = float(random.between(2, 50)) / 2;
  auto factor = [&] { return random.pick({0.5f, 2.0f, 0.7f, 1.3f}); };
  if (random.chance(20)) s.q_scale = factor();
  if (random.chance(20)) s.k_scale = factor();
  if (random.chance(20)) s.v_scale = factor();
  if (random.chance(15)) s.amplitude = random.pick({0.0f, 4.0f, 12.0f});
}

// q_len and kv_len of one sequence from about `pairs` query-key pairs.
void choose_lengths(Random& random, const Spec& s, double pairs, bool decode, SequenceSpec& q) {
  const int longest = int(std::clamp(pairs, 1.0, 1500.0));
  if (random.chance(5)) {
    q.q_len = 0;
    q.kv_len = random.between(0, longest);
  } else if (decode) {
    q.q_len = random.chance(85) ? 1 : random.between(2, 5);
    q.kv_len = q.q_len + random.between(0, longest / q.q_len);
  } else {
    q.q_len = random.between(1, std::clamp(int(std::sqrt(pairs)), 1, 300));
    q.kv_len = q.q_len + (random.chance(50) ? 0 : random.between(0, longest / q.q_len));
  }
  if (s.layout == PM_NO_CACHE) q.kv_len = q.q_len = std::min(q.kv_len, 300);
  bool causal = q.causal.value_or(s.causal);
  bool cross = !causal && !s.write_cache && s.layout != PM_NO_CACHE;
  if (cross && random.chance(50)) q.kv_len = random.between(0, q.q_len);
}

// Pages that `parent` has whole and that the sequence does not write. They may hold new tokens of the parent.
int shareable_pages(const Spec& s, const SequenceSpec& parent, const SequenceSpec& child) {
  return std::min(parent.kv_len, child.kv_len - child.q_len) / s.page_size;
}

void choose_sequences(Random& random, const Limits& limits, Spec& s) {
  const int B = random.chance(3) ? 0 : random.between(1, random.chance(30) ? 24 : 6);
  const double work = limits.multiplies * std::ldexp(1.0, -random.between(0, 6));
  const double pairs = work / (double(s.num_heads) * s.head_dim * std::max(B, 1));
  const int decode_percent = random.pick({0, 0, 50, 90, 100, 100});
  const bool positions = random.chance(10), causal_flags = random.chance(15), sharing = random.chance(40);
  for (int b = 0; b < B; ++b) {
    SequenceSpec q{b, 0, 0, {}, {}, -1, 0};
    if (causal_flags) q.causal = random.chance(50);
    choose_lengths(random, s, pairs, random.chance(decode_percent), q);
    if (positions) q.first_position = random.between(0, q.kv_len + 3);
    if (sharing && b > 0 && s.layout != PM_NO_CACHE) {
      const SequenceSpec& parent = s.seqs[random.between(0, b - 1)];
      int pages = shareable_pages(s, parent, q);
      if (pages > 0) q.parent = parent.id, q.shared_pages = random.between(1, pages);
    }
    s.seqs.push_back(q);
  }
}

}  // namespace

Spec random_spec(uint64_t seed, const Limits& limits) {
  Random random(seed);
  Spec s;
  s.seed = seed;
  choose_shape(random, limits, s);
  choose_memory(random, s);
  choose_features(random, s);
  choose_sequences(random, limits, s);
  return s;
}

std::string describe(const Spec& s) {
  static constexpr const char* kLayouts[] = {"tiles", "rows", "no cache"};
  static constexpr const char* kCaches[] = {"contiguous", "head-major", "padded", "interleaved", "paired"};
  static constexpr const char* kTokens[] = {"contiguous", "fused", "padded"};
  std::string text = fmt::format(
      "seed {} isa {} H {} K {} D {} {}x{}->{} {} P {} (cache {}, tokens {}, out {}) threads {}", s.seed,
      s.isa ? s.isa : "default", s.num_heads, s.num_kv_heads, s.head_dim, dtype_name(s.dtype),
      dtype_name(s.cache_dtype), dtype_name(s.out_dtype), kLayouts[s.layout], s.page_size,
      kCaches[int(s.cache)], kTokens[int(s.tokens)], s.out_padded ? "padded" : "contiguous", s.threads);
  text += s.causal ? " causal" : " not causal";
  if (s.window_left >= 0 || s.window_right >= 0)
    text += fmt::format(" window {},{}", s.window_left, s.window_right);
  if (!s.write_cache) text += " read-only";
  if (s.batch_invariant) text += " batch-invariant";
  if (s.sinks) text += " sinks";
  if (s.alibi) text += " alibi";
  if (s.soft_cap > 0) text += fmt::format(" soft_cap {}", s.soft_cap);
  text += fmt::format(" scale {} q/k/v_scale {},{},{} amplitude {}; sequences (q_len/kv_len):", s.scale,
                      s.q_scale, s.k_scale, s.v_scale, s.amplitude);
  for (const SequenceSpec& q : s.seqs) {
    text += fmt::format(" {}/{}", q.q_len, q.kv_len);
    if (q.first_position) text += fmt::format("@{}", *q.first_position);
    if (q.causal) text += *q.causal ? "c" : "n";
    if (q.parent >= 0) text += fmt::format("({} pages of {})", q.shared_pages, q.parent);
  }
  return text;
}

}  // namespace pagemill
