#pragma once

namespace pagemill {

// What this CPU and OS offer, of what our ISAs ask for.
struct CpuFeatures {
  bool avx2_fma_f16c;
  bool avx512;  // F, BW, VL, DQ
  bool avx512_bf16;
};
const CpuFeatures& cpu_features();

}  // namespace pagemill
