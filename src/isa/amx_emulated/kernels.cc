#include "isa/amx_emulated/tiles.h"
#include "isa/instantiate.h"
#include "isa/scalar/vec.h"
#include "isa/tile_stream.h"

namespace pagemill {

struct AmxEmulated;  // names this unit
struct AmxEmulatedIsa : ScalarVec<AmxEmulated> {
  static constexpr int kTileRows = 32;  // two tile registers
};

#define PM_ISA AmxEmulatedIsa
#define PM_VERBS(mma) TileMma<amx_emulated::Tiles>
#define PM_KERNEL_amx PM_NO_KERNEL
#define PM_KERNEL_avx512bf16 PM_NO_KERNEL
#define PM_KERNEL_avx512 PM_NO_KERNEL
#define PM_KERNEL_avx2 PM_NO_KERNEL
#define PM_KERNEL_amx_emulated PM_DEFINE_KERNEL
#define PM_KERNEL_scalar PM_NO_KERNEL
#include "dispatch/kernels.inc"

}  // namespace pagemill
