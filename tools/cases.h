// Test cases: a step described by a Spec, built in guarded memory, run and held against the fp64 reference.
// Used by `pagemill check` and by the tests.
#ifndef PAGEMILL_TOOLS_CASES_H_
#define PAGEMILL_TOOLS_CASES_H_

#include <pagemill/pagemill.hpp>

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "guarded.h"

namespace pagemill {

enum class TokenForm { kContiguous, kFused, kPadded };  // kFused: q, k_new, v_new in one [T, H + 2K, D]

// rows: kHeadMajor [pages, K, P, D], kInterleaved [pages, P, 2K, D] with K and V heads alternating,
// kPaired [pages, K, P, 2D]. tiles: kHeadMajor and kPadded keep K and V in two buffers, others are
// contiguous.
enum class CacheForm { kContiguous, kHeadMajor, kPadded, kInterleaved, kPaired };

struct SequenceSpec {
  int id;  // its data depend on the seed and this: they follow it when sequences are reordered
  int q_len, kv_len;
  std::optional<int> first_position;
  std::optional<bool> causal;
  int parent = -1;       // id of a sequence whose first pages it shares, or -1
  int shared_pages = 0;  // how many
};

struct Spec {
  uint64_t seed = 1;
  int num_heads = 1, num_kv_heads = 1, head_dim = 64;
  pm_dtype dtype = PM_F32, out_dtype = PM_F32, cache_dtype = PM_F32;
  pm_layout layout = PM_ROWS;
  int page_size = 16;
  bool causal = true;
  int window_left = -1, window_right = -1;
  bool write_cache = true, batch_invariant = false;
  int threads = 2;
  const char* isa = nullptr;

  std::vector<SequenceSpec> seqs;
  int padding_tokens = 0;  // rows of q and out past the last sequence
  bool row_index = false;
  int table_padding = 0;  // entries between rows of the page table
  int spare_pages = 3;
  uint64_t page_seed = 1;  // order of the pages in the cache

  TokenForm tokens = TokenForm::kContiguous;
  CacheForm cache = CacheForm::kContiguous;
  bool out_padded = false;
  Edge edge = Edge::kEnd;

  bool lse = true, sinks = false, alibi = false;
  float scale = 0, soft_cap = 0, q_scale = 1, k_scale = 1, v_scale = 1;
  float amplitude = 1;  // of q
};

struct Limits {
  double multiplies = 4e6;          // of q.k in a case, about
  int64_t page_elements = 1 << 16;  // of K in a page, at most
};

Spec random_spec(uint64_t seed, const Limits& limits);
std::string describe(const Spec& spec);

// A call, and the guarded buffers that config, batch and args point into.
struct GuardedCall {
  pm_config config = PM_CONFIG_INIT;
  pm_batch batch = PM_BATCH_INIT;
  pm_args args = PM_ARGS_INIT;

  void save();     // what restore() and verify() compare with
  void restore();  // what a run writes, as it was saved
  int q_len(int seq) const { return batch.query_start[seq + 1] - batch.query_start[seq]; }
  const std::byte* out_row(int seq, int query, int head) const;
  float lse(int seq, int query, int head) const;
  std::vector<std::byte> outputs() const;  // out and lse with what surrounds them

  std::vector<GuardedBuffer> metadata;  // which the plan copies
  std::vector<GuardedBuffer> inputs;
  std::vector<GuardedBuffer> cache;  // one buffer, or those of K and V; none without a cache
  std::vector<GuardedBuffer> out;    // out, lse
};

// The step of a Spec. Whatever no query may see, and whatever lies between strides, is NaN; table entries
// that no query needs are out of range.
class Case : public GuardedCall {
 public:
  explicit Case(const Spec& spec);

  Spec spec;

 private:
  void add_tokens();
  void add_outputs();
  void add_sequences();
  void add_pages();
  void add_cache(int64_t num_pages);
  void fill_cache(const std::vector<std::vector<int>>& pages);
  void add_scalars();
};

// Builds a plan and calls, with guarded workspace, inputs read-only and metadata out of reach. Throws as
// pagemill::check does.
using Call = std::function<pm_status(const pm_plan*, const pm_args*, void* workspace, size_t bytes)>;
void run(Case& c, const Call& call);
void run(Case& c, const pm_executor* executor = nullptr);

struct Verdict {
  double worst_out = 0, worst_lse = 0;  // in units of the bound
  int64_t rows = 0;                     // compared
  std::string problem;                  // "" if all is right
};

// After a run or a store: "" if the cache holds what the reference stores, and what it held elsewhere.
std::string verify_cache(const GuardedCall& c);
// After a run: the cache is right, nothing else was written, and rows are within the
// bound: all, or about as many as `multiplies` allow, the first and last of every sequence among them.
Verdict verify(const GuardedCall& c, double multiplies = 2e7);

// The ISAs that this machine can run, best first.
std::vector<const char*> available_isas();

}  // namespace pagemill

#endif  // PAGEMILL_TOOLS_CASES_H_
