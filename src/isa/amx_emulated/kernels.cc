#include "isa/amx_emulated/mma.h"
#include "isa/instantiate.h"
#include "isa/scalar/vec.h"

namespace pagemill {
struct AmxEmulated;  // names this unit
using AmxEmulatedIsa = ScalarVec<AmxEmulated>;

#define PM_ISA AmxEmulatedIsa
#define PM_VERBS(mma) amx_emulated::TileMma
#define PM_KERNEL_avx512bf16 PM_NO_KERNEL
#define PM_KERNEL_avx2 PM_NO_KERNEL
#define PM_KERNEL_amx_emulated PM_DEFINE_KERNEL
#define PM_KERNEL_scalar PM_NO_KERNEL
#include "dispatch/kernels.inc"

}  // namespace pagemill
