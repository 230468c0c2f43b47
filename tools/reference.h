// The attention step in fp64, from the formulas of pagemill.h alone: shares no code with the library.
// Trusts its arguments: they are those of a call that the library accepted.
#ifndef PAGEMILL_TOOLS_REFERENCE_H_
#define PAGEMILL_TOOLS_REFERENCE_H_

#include <pagemill/pagemill.h>

#include <cstddef>
#include <cstdint>
#include <vector>

namespace pagemill::reference {

size_t size_of(pm_dtype dtype);  // bytes of an element
double get(pm_dtype dtype, const void* base, int64_t index);
// Rounds to nearest, ties to even, straight from fp64; overflow gives inf, of fp8 the largest number; NaN
// stays NaN.
void put(pm_dtype dtype, void* base, int64_t index, double value);

// dtype of the keys and values that queries meet: the cache's, or without a cache that of k_new.
pm_dtype kv_dtype(const pm_config& config);

// args with every stride of 0 replaced by the contiguous one.
pm_args with_strides(const pm_config& config, const pm_args& args);

// Element index, from args.k_cache and args.v_cache, of dim d of a cached key and value.
// args: from with_strides.
int64_t key_index(const pm_config& config, const pm_args& args, int64_t page, int slot, int head, int d);
int64_t value_index(const pm_config& config, const pm_args& args, int64_t page, int slot, int head, int d);

// Page that holds key j of sequence seq.
int32_t page_of(const pm_config& config, const pm_batch& batch, int seq, int64_t j);

// Keys [begin, end) that query i of seq sees.
struct Range {
  int64_t begin, end;
};
Range visible(const pm_config& config, const pm_batch& batch, int seq, int query);

struct Row {
  std::vector<double> out;     // [D]
  std::vector<double> abs_pv;  // [D] v_scale * sum_j p_j |v_j|
  double lse;
  // Largest size of a visible key's score, 0 if none: |score| before or after soft cap and ALiBi, and twice
  // scale * sqrt(sum_d (q_d k_d)^2), because a score that is small by cancellation keeps the rounding errors
  // of its large terms.
  double max_score;
  int64_t keys;  // visible ones
};

// Query `query` of sequence seq and query head `head`, against the cache as it now lies (after the step's
// writes), or against k_new and v_new for PM_NO_CACHE.
Row attend_row(const pm_config& config, const pm_batch& batch, const pm_args& args, int seq, int query,
               int head);

// The step's writes: k_new / k_scale and v_new / v_scale, rounded once. Nothing if the plan does not write.
void store(const pm_config& config, const pm_batch& batch, const pm_args& args);

// |out - row.out| and |lse - row.lse| in units of the bound: at most 1 is right, NaN never is.
//   out: eps_out |ref| + c sum p|v|, eps_out half an ulp of out_dtype, c = 2^-8 where q is bf16 and keys are
//   bf16 or
//        fp8, else 2^-16, times max_score / 32 where that is above 1
//   lse: c as above (the error of a score shifts lse by as much) + 2^-22 |lse| (f32 logarithms in base 2)
// Where nothing is visible both must be exact.
double out_error(const pm_config& config, const Row& row, const void* out);  // out: [D] out_dtype
double lse_error(const pm_config& config, const Row& row, float lse);

// The worse of both for one row of args.out and args.lse (if not NULL) after a call.
double error_in_bounds(const pm_config& config, const pm_batch& batch, const pm_args& args, int seq,
                       int query, int head);

}  // namespace pagemill::reference

#endif  // PAGEMILL_TOOLS_REFERENCE_H_
