#include "isa/amx/tiles.h"
#include "isa/avx512bf16/vec.h"
#include "isa/instantiate.h"
#include "isa/tile_stream.h"

namespace pagemill {

struct Amx : Avx512Bf16 {
  static constexpr int kTileRows = 32;  // two tile registers
};

#define PM_ISA Amx
#define PM_VERBS(mma) TileMma<AmxTiles>
#define PM_KERNEL_amx PM_DEFINE_KERNEL
#define PM_KERNEL_avx512bf16 PM_NO_KERNEL
#define PM_KERNEL_avx512 PM_NO_KERNEL
#define PM_KERNEL_avx2 PM_NO_KERNEL
#define PM_KERNEL_amx_emulated PM_NO_KERNEL
#define PM_KERNEL_scalar PM_NO_KERNEL
#include "dispatch/kernels.inc"

}  // namespace pagemill
