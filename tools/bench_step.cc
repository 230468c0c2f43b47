#include "bench_step.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <map>
#include <numeric>
#include <random>
#include <utility>

#include "reference.h"

namespace pagemill {
namespace {

constexpr size_t kDraws = 1048583;

// That many of N(0, 1), made once.
const std::vector<std::byte>& normal_draws(pm_dtype dtype, uint32_t seed) {
  static std::map<std::pair<pm_dtype, uint32_t>, std::vector<std::byte>> made;
  std::vector<std::byte>& draws = made[{dtype, seed}];
  if (!draws.empty()) return draws;
  draws.resize(kDraws * element_size(dtype));
  std::mt19937 random(seed);
  std::normal_distribution<float> normal;
  for (size_t i = 0; i < kDraws; ++i) reference::put(dtype, draws.data(), int64_t(i), normal(random));
  return draws;
}

// Fills a buffer with N(0, 1) by repeating some a million of them. Their number is prime, so that no two
// rows of a cache are alike.
void fill_normal(const HugeBuffer& buffer, pm_dtype dtype, uint32_t seed) {
  const std::vector<std::byte>& draws = normal_draws(dtype, seed);
  for (size_t at = 0; at < buffer.bytes(); at += draws.size()) {
    std::memcpy(buffer.data() + at, draws.data(), std::min(draws.size(), buffer.bytes() - at));
  }
}

}  // namespace

BenchStep::BenchStep(const BenchSpec& spec, double turnover) {
  config_.num_heads = spec.model.heads;
  config_.num_kv_heads = spec.model.kv_heads;
  config_.head_dim = spec.model.head_dim;
  config_.dtype = config_.out_dtype = spec.dtype;
  config_.cache_dtype = spec.cache_dtype;
  config_.layout = spec.layout;
  config_.page_size = spec.page_size;
  config_.window_left = spec.window - 1;
  config_.batch_invariant = spec.invariant;
  config_.threads = spec.threads;
  config_.isa = spec.isa.empty() ? nullptr : spec.isa.c_str();
  lay_out_batch(spec);
  plan_.build(config_, batch_);
  config_.isa = plan_.stats().isa;  // outlives spec
  workspace_.reserve(plan_.stats().workspace_bytes);
  make_inputs();
  make_caches(turnover);
}

void BenchStep::lay_out_batch(const BenchSpec& spec) {
  const bool mixed = spec.name == "mixed";
  kv_len_.assign(spec.batch, spec.context);
  std::vector<int32_t> q_len(spec.batch, mixed ? 1 : spec.q_len);
  if (mixed) {
    kv_len_.push_back(std::max(spec.q_len, spec.context / 2));
    q_len.push_back(spec.q_len);
  }
  query_start_.assign(1, 0);
  for (int32_t n : q_len) query_start_.push_back(query_start_.back() + n);

  lay_out_pages(spec);

  batch_.num_seqs = int(kv_len_.size());
  batch_.num_tokens = query_start_.back();
  batch_.query_start = query_start_.data();
  batch_.kv_len = kv_len_.data();
  batch_.page_table = page_table_.data();
}

// Pages that lie before every query's window have none: they are neither read nor checked.
void BenchStep::lay_out_pages(const BenchSpec& spec) {
  const int size = spec.page_size;
  batch_.pages_per_seq = (*std::ranges::max_element(kv_len_) + size - 1) / size;
  page_table_.assign(kv_len_.size() * batch_.pages_per_seq, -1);
  std::vector<int32_t*> used;
  for (size_t b = 0; b < kv_len_.size(); ++b) {
    const int first_query = kv_len_[b] - (query_start_[b + 1] - query_start_[b]);
    const int first_key = spec.window ? std::max(0, first_query - spec.window + 1) : 0;
    for (int page = first_key / size; page * size < kv_len_[b]; ++page) {
      used.push_back(&page_table_[b * batch_.pages_per_seq + page]);
    }
  }
  std::ranges::shuffle(used, std::mt19937(1));
  config_.num_pages = int64_t(used.size());
  for (size_t i = 0; i < used.size(); ++i) *used[i] = int32_t(i);
}

void BenchStep::make_inputs() {
  const size_t size = element_size(config_.dtype);
  const size_t q_bytes = size * batch_.num_tokens * config_.num_heads * config_.head_dim;
  const size_t new_bytes = size * batch_.num_tokens * config_.num_kv_heads * config_.head_dim;
  q_ = HugeBuffer(q_bytes);
  k_new_ = HugeBuffer(new_bytes);
  v_new_ = HugeBuffer(new_bytes);
  out_ = HugeBuffer(q_bytes);
  uint32_t seed = 2;
  for (const HugeBuffer* buffer : {&q_, &k_new_, &v_new_}) fill_normal(*buffer, config_.dtype, seed++);
  args_.q = q_.data();
  args_.k_new = k_new_.data();
  args_.v_new = v_new_.data();
  args_.out = out_.data();
}

void BenchStep::make_caches(double turnover) {
  const size_t plane = size_t(config_.page_size) * config_.head_dim * element_size(config_.cache_dtype);
  copy_bytes_ = 2 * plane * config_.num_kv_heads * config_.num_pages;
  copies_ = std::max(1, int(std::ceil(turnover / step_work(config_, batch_).bytes)));
  caches_ = HugeBuffer(copy_bytes_ * copies_);
  fill_normal(caches_, config_.cache_dtype, 7);
}

void BenchStep::next_copy() {
  const size_t plane = size_t(config_.page_size) * config_.head_dim * element_size(config_.cache_dtype);
  std::byte* copy = caches_.data() + copy_bytes_ * next_copy_;
  args_.k_cache = copy;
  args_.v_cache = copy + (config_.layout == PM_TILES ? plane : copy_bytes_ / 2);
  next_copy_ = (next_copy_ + 1) % copies_;
}

void BenchStep::run(const pm_executor& executor) {
  next_copy();
  plan_.run(args_, workspace_, &executor);
}

void BenchStep::store(const pm_executor& executor) {
  next_copy();
  plan_.store(args_, workspace_, &executor);
}

double BenchStep::worst_error(int rows) {
  reference::store(config_, batch_, args_);
  std::mt19937 random(3);
  double worst = 0;
  for (int i = 0; i < rows; ++i) {
    const int b = int(random() % batch_.num_seqs);
    const int query = int(random() % (query_start_[b + 1] - query_start_[b]));
    const int head = int(random() % config_.num_heads);
    const double error = reference::error_in_bounds(config_, batch_, args_, b, query, head);
    if (!(error <= worst)) worst = error;
    if (std::isnan(worst)) break;
  }
  return worst;
}

}  // namespace pagemill
