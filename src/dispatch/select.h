// From dtypes, head dim, machine and the caller's wish to an attention kernel.
#pragma once

#include "attention/step.h"
#include "isa/mma_kind.h"

namespace pagemill {

struct Isa {
  const char* name;
  const Isa* includes;  // ISA whose kernels serve what this one has no row for; null at the end
  const char* missing;  // why this machine cannot run it, null if it can
  bool by_name_only;
  StoreFn store;
  int32_t item_rows = kItemRows;  // query rows of an item with D up to 128, where there are many items
  int32_t many_rows = kManyRows;  // query rows of a KV head from which products bind, not memory
};

struct Kernel {
  const char* name;
  const Isa* isa;
  Mma mma;
  int32_t head_dim;  // 0 = any
  AttendFn attend;
};

struct Selection {
  const Kernel* kernel;
  StoreFn store;
};

int32_t isa_count();
const Isa& isa_at(int32_t index);  // best first
int32_t kernel_count();
const Kernel& kernel_at(int32_t index);

// The ISA that `name` (null: PAGEMILL_ISA, else the best) asks for.
pm_status find_isa(const char* name, const Isa*& isa);
pm_status select_kernel(const Isa& isa, pm_dtype dtype, pm_dtype kv_dtype, int32_t head_dim, Selection& out);

}  // namespace pagemill
