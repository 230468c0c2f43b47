#pragma once

#include <string>

namespace pagemill {

// What this CPU and OS offer, of what our ISAs ask for.
struct CpuFeatures {
  bool avx2_fma_f16c;
  bool avx512;  // F, BW, VL, DQ
  bool avx512_bf16, avx512_vbmi;
  bool amx_bf16;       // AMX-TILE and AMX-BF16, and AVX512_BF16 for what is not a product
  bool amx_permitted;  // the OS saves tiles, and lets this process use them
  bool many_streams;   // the stream prefetcher follows many pages of memory at once: Intel's
};
const CpuFeatures& cpu_features();

// Vendor, family and model, such as AuthenticAMD-25-17; the name of the architecture where there is no CPUID.
std::string cpu_model();

}  // namespace pagemill
