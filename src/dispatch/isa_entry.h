// The entry points of the per-ISA translation units, declared from THE list.
#pragma once

#include "attention/step.h"
#include "isa/mma_kind.h"

namespace pagemill {

inline constexpr Mma kMma_bf16 = Mma::kBf16, kMma_f32bf16 = Mma::kF32Bf16, kMma_f32f16 = Mma::kF32F16,
                     kMma_f32 = Mma::kF32;

#define PM_KERNEL(mma, dim, isa)                                                                      \
  const Item* attend_##mma##_d##dim##_##isa(const Step&, const Item&, ItemQueue&, std::byte* scratch, \
                                            int32_t scratch_rows);
#include "dispatch/kernels.inc"
#undef PM_KERNEL

#define PM_STORE(isa) \
  void store_##isa(const Step&, const Sequence&, int32_t kv_head, int32_t begin, int32_t end, std::byte* raw);
PM_STORE(scalar)
#if defined(PAGEMILL_X86)
PM_STORE(avx2)
PM_STORE(avx512)
#endif
#undef PM_STORE

}  // namespace pagemill
