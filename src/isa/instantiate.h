// Defines the rows of THE list that belong to one ISA. Its unit first defines PM_ISA (the type with the
// vector layer), PM_VERBS(mma) (its matrix verbs) and, for each ISA of the list, PM_KERNEL_<isa> as
// PM_DEFINE_KERNEL or PM_NO_KERNEL.
#pragma once

#include "attention/attend.h"
#include "dispatch/isa_entry.h"

#define PM_DEFINE_KERNEL(mma, dim, isa)                                                           \
  const Item* attend_##mma##_d##dim##_##isa(const Step& step, const Item& item, ItemQueue& queue, \
                                            std::byte* scratch, int32_t scratch_rows) {           \
    return Attend<PM_ISA, PM_VERBS(kMma_##mma), kMma_##mma, dim>::run(step, item, queue, scratch, \
                                                                      scratch_rows);              \
  }
#define PM_DEFINE_STORE(isa)                                                                           \
  void store_##isa(const Step& step, const Sequence& seq, int32_t kv_head, int32_t begin, int32_t end, \
                   std::byte* raw) {                                                                   \
    store_tokens<PM_ISA>(step, seq, kv_head, begin, end, raw);                                         \
  }
#define PM_NO_KERNEL(mma, dim, isa)
#define PM_KERNEL(mma, dim, isa) PM_KERNEL_##isa(mma, dim, isa)
