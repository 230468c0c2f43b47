#include "dispatch/select.h"

#include <array>
#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>

#include "api/log.h"
#include "api/status.h"
#include "dispatch/cpu.h"
#include "dispatch/isa_entry.h"

namespace pagemill {
namespace {

// Tile kernels gain 8% in prefill over pages of 16 with twice the rows for each copy of a pair of values.
constexpr int32_t kTileItemRows = 384;
constexpr int32_t kTileManyRows =
    kMaxTileRows + 1;  // never: longer blocks were not measured with tile products

struct IsaTable {
  const Isa scalar{"scalar", nullptr, nullptr, false, store_scalar};
  const Isa amx_emulated{"amx_emulated", &scalar, nullptr, true, store_scalar, kTileItemRows, kTileManyRows};
#if defined(PAGEMILL_X86)
  const Isa avx2{"avx2", &scalar, cpu_features().avx2_fma_f16c ? nullptr : "needs AVX2, FMA and F16C", false,
                 store_avx2};
  const Isa avx512{"avx512", &avx2, cpu_features().avx512 ? nullptr : "needs AVX-512 (F, BW, DQ, VL)", false,
                   store_avx512};
  const Isa avx512bf16{"avx512bf16", &avx512,
                       cpu_features().avx512_bf16 ? nullptr : "needs AVX-512 and AVX512_BF16", false,
                       store_avx512};
  const Isa amx{"amx",
                &avx512bf16,
                cpu_features().amx_permitted ? nullptr
                : cpu_features().amx_bf16    ? "the system does not let this process use AMX tiles"
                                             : "needs AMX-TILE, AMX-BF16 and AVX512_BF16",
                false,
                store_avx512,
                kTileItemRows,
                kTileManyRows};
  const std::array<const Isa*, 6> all{&amx, &avx512bf16, &avx512, &avx2, &scalar, &amx_emulated};
#else
  const std::array<const Isa*, 2> all{&scalar, &amx_emulated};
#endif
};

const IsaTable& isas() {
  static const IsaTable table;
  return table;
}

const auto& kernels() {
  static const auto table = std::to_array<Kernel>({
#define PM_KERNEL(mma, dim, isa) \
  {"attend_" #mma "_d" #dim "_" #isa, &isas().isa, kMma_##mma, dim, attend_##mma##_d##dim##_##isa},
#include "dispatch/kernels.inc"
#undef PM_KERNEL
  });
  return table;
}

bool includes(const Isa* isa, const Isa* wanted) {
  for (; isa; isa = isa->includes) {
    if (isa == wanted) return true;
  }
  return false;
}

pm_dtype kv_dtype_of(Mma mma) {
  switch (mma) {
    case Mma::kBf16:
    case Mma::kF32Bf16: return PM_BF16;
    case Mma::kF32F16: return PM_F16;
    case Mma::kF32: return PM_F32;
  }
  return PM_F32;
}

const char* why_not(const Kernel& k, const Isa& isa, pm_dtype dtype, pm_dtype kv_dtype, int32_t head_dim) {
  if (!includes(&isa, k.isa)) return k.isa->missing ? k.isa->missing : "not part of the ISA";
  if (k.mma == Mma::kBf16 && dtype != PM_BF16) return "q is not bf16";
  if (kv_dtype_of(k.mma) != computing_dtype(kv_dtype)) return "other dtype of keys and values";
  if (k.head_dim && k.head_dim != head_dim) return "other head dim";
  return nullptr;
}

// Once for each change of kernel, so that a serving loop does not fill its log.
void log_choice(const Kernel* chosen, const Isa& isa, pm_dtype dtype, pm_dtype kv_dtype, int32_t head_dim) {
  static std::atomic<const Kernel*> last{nullptr};
  if (last.exchange(chosen) == chosen) return;
  for (const Kernel& k : kernels()) {
    const char* reason = why_not(k, isa, dtype, kv_dtype, head_dim);
    std::fprintf(stderr, "pagemill: dispatch: %s: %s\n", k.name,
                 &k == chosen ? "chosen"
                 : reason     ? reason
                              : "later");
    if (&k == chosen) break;
  }
}

}  // namespace

int32_t isa_count() {
  return static_cast<int32_t>(isas().all.size());
}
const Isa& isa_at(int32_t index) {
  return *isas().all[static_cast<size_t>(index)];
}
int32_t kernel_count() {
  return static_cast<int32_t>(kernels().size());
}
const Kernel& kernel_at(int32_t index) {
  return kernels()[static_cast<size_t>(index)];
}

pm_status find_isa(const char* name, const Isa*& isa) {
  const char* argument = "isa";
  if (!name) {
    name = std::getenv("PAGEMILL_ISA");
    argument = "PAGEMILL_ISA";
    if (name && !*name) name = nullptr;
  }
  for (const Isa* candidate : isas().all) {
    if (name ? std::strcmp(name, candidate->name) != 0 : candidate->missing || candidate->by_name_only)
      continue;
    if (candidate->missing) {
      return fail(PM_UNSUPPORTED, "%s = %s: this machine cannot run it: %s", argument, name,
                  candidate->missing);
    }
    isa = candidate;
    return PM_OK;
  }
  std::string known;
  for (const Isa* candidate : isas().all) known += std::string(known.empty() ? "" : ", ") + candidate->name;
  return fail(PM_INVALID_ARGUMENT, "%s = %s: expected one of %s", argument, name, known.c_str());
}

pm_status select_kernel(const Isa& isa, pm_dtype dtype, pm_dtype kv_dtype, int32_t head_dim, Selection& out) {
  for (const Kernel& k : kernels()) {
    if (why_not(k, isa, dtype, kv_dtype, head_dim)) continue;
    out = {&k, isa.store};
    if (logging("dispatch")) log_choice(&k, isa, dtype, kv_dtype, head_dim);
    return PM_OK;
  }
  return fail(PM_UNSUPPORTED, "isa = %s: no kernel for head_dim = %d", isa.name, head_dim);
}

}  // namespace pagemill
