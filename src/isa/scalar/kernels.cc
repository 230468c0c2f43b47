#include "isa/instantiate.h"
#include "isa/scalar/vec.h"
#include "isa/vector_mma.h"

namespace pagemill {
struct Scalar;  // names this unit
using ScalarIsa = ScalarVec<Scalar>;

#define PM_ISA ScalarIsa
#define PM_VERBS(mma) VectorMma<PM_ISA, mma>
#define PM_KERNEL_amx PM_NO_KERNEL
#define PM_KERNEL_avx512bf16 PM_NO_KERNEL
#define PM_KERNEL_avx512 PM_NO_KERNEL
#define PM_KERNEL_avx2 PM_NO_KERNEL
#define PM_KERNEL_amx_emulated PM_NO_KERNEL
#define PM_KERNEL_scalar PM_DEFINE_KERNEL
#include "dispatch/kernels.inc"
PM_DEFINE_STORE(scalar)

}  // namespace pagemill
