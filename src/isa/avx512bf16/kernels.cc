#include "isa/avx512bf16/vec.h"
#include "isa/instantiate.h"
#include "isa/vector_mma.h"

namespace pagemill {

#define PM_ISA Avx512Bf16
#define PM_VERBS(mma) VectorMma<PM_ISA, mma>
#define PM_KERNEL_amx PM_NO_KERNEL
#define PM_KERNEL_avx512bf16 PM_DEFINE_KERNEL
#define PM_KERNEL_avx512 PM_NO_KERNEL
#define PM_KERNEL_avx2 PM_NO_KERNEL
#define PM_KERNEL_amx_emulated PM_NO_KERNEL
#define PM_KERNEL_scalar PM_NO_KERNEL
#include "dispatch/kernels.inc"

}  // namespace pagemill
