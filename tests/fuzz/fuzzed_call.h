// A call of the library from fuzzed bytes: a right one, spoilt in a few places.
#ifndef PAGEMILL_TESTS_FUZZ_FUZZED_CALL_H_
#define PAGEMILL_TESTS_FUZZ_FUZZED_CALL_H_

#include <pagemill/pagemill.hpp>

#include <algorithm>
#include <cstring>
#include <functional>
#include <vector>

#include "bytes.h"
#include "cases.h"

namespace pagemill {

// The caller's struct as far as its struct_size reaches.
template <class T>
T as_read(const T& passed, T defaults) {
  const size_t known = std::min(passed.struct_size, sizeof(T));
  std::memcpy(&defaults, &passed, known);
  defaults.struct_size = sizeof(T);
  return defaults;
}

// `config`, `batch` and `args` of the base are what the library makes of `passed`, whose struct_size may cut
// fields off: what the reference is to compute.
class FuzzedCall : public GuardedCall {
 public:
  explicit FuzzedCall(Bytes& bytes);

  struct {
    pm_config config = PM_CONFIG_INIT;
    pm_batch batch = PM_BATCH_INIT;
    pm_args args = PM_ARGS_INIT;
  } passed;

  bool right() const { return mistakes_ == 0; }
  // Of a batch that the library accepted: false if it is too large to be tried.
  bool add_tensors(Bytes& bytes);
  // False where the reference would not know either: caches that overlap themselves, scales beyond all
  // bounds.
  bool comparable() const { return !cache_strides_spoilt_ && moderate(); }

 private:
  void choose_config(Bytes& bytes);
  void choose_sequences(Bytes& bytes);
  void choose_pages(Bytes& bytes);
  void choose_strides(Bytes& bytes);
  void choose_scalars(Bytes& bytes);

  void spoil(Bytes& bytes);
  void spoil_config(Bytes& bytes);
  void spoil_batch(Bytes& bytes);
  void spoil_entry(Bytes& bytes);
  void spoil_stride(Bytes& bytes);
  void spoil_scalar(Bytes& bytes);
  void spoil_metadata_pointer(Bytes& bytes);
  void spoil_tensor_pointer(Bytes& bytes);

  void claim_no_more_than_there_is();
  void add_metadata();
  bool fits() const;
  void fill(Bytes& bytes);
  void fill_key(int seq, int64_t j, const std::function<double()>& next);
  bool moderate() const;

  int mistakes_ = 0;
  bool cache_strides_spoilt_ = false;
  Edge edge_ = Edge::kEnd;
  std::vector<int32_t> query_start_{0}, kv_len_, table_, row_index_, first_position_;
  std::vector<uint8_t> causal_;
};

}  // namespace pagemill

#endif  // PAGEMILL_TESTS_FUZZ_FUZZED_CALL_H_
