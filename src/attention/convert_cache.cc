#include "attention/convert_cache.h"

#include <cmath>
#include <limits>

#include "isa/float16.h"
#include "isa/float8.h"

namespace pagemill {
namespace {

float load_element(const std::byte* p, pm_dtype dtype) {
  const auto byte = static_cast<uint8_t>(*p);
  switch (dtype) {
    case PM_F32: return *reinterpret_cast<const float*>(p);
    case PM_BF16: return bf16_to_f32(*reinterpret_cast<const uint16_t*>(p));
    case PM_F16: return f16_to_f32(*reinterpret_cast<const uint16_t*>(p));
    case PM_F8E4M3: return bf16_to_f32(f8_to_bf16<PM_F8E4M3>(byte));
    case PM_F8E5M2: return bf16_to_f32(f8_to_bf16<PM_F8E5M2>(byte));
  }
  return 0;
}

void store_element(std::byte* p, pm_dtype dtype, float x) {
  switch (dtype) {
    case PM_F32: *reinterpret_cast<float*>(p) = x; return;
    case PM_BF16: *reinterpret_cast<uint16_t*>(p) = f32_to_bf16(x); return;
    case PM_F16: *reinterpret_cast<uint16_t*>(p) = f32_to_f16(x); return;
    case PM_F8E4M3: *p = std::byte{f32_to_f8<PM_F8E4M3>(x)}; return;
    case PM_F8E5M2: *p = std::byte{f32_to_f8<PM_F8E5M2>(x)}; return;
  }
}

// Elements from the start of a (page, head) to dim d of a slot.
struct Places {
  explicit Places(const CacheView& c, int32_t head_dim)
      : tiles(c.layout == PM_TILES),
        dim(head_dim),
        pack(static_cast<int32_t>(4 / dtype_bytes(c.dtype))),
        cache(c) {}

  int64_t k(int32_t slot, int32_t d) const {
    if (!tiles) return slot * cache.k_token + d;
    const int64_t group = int64_t{slot / kGroupKeys} * kGroupKeys * dim;
    return group + int64_t{d / pack} * kGroupKeys * pack + slot % kGroupKeys * pack + d % pack;
  }
  int64_t v(int32_t slot, int32_t d) const {
    if (!tiles) return slot * cache.v_token + d;
    return int64_t{slot / pack} * dim * pack + int64_t{d} * pack + slot % pack;
  }

  const bool tiles;
  const int32_t dim, pack;
  const CacheView& cache;
};

}  // namespace

void convert_page(const CacheView& src, int32_t from, const CacheView& dst, int32_t to, int32_t num_kv_heads,
                  int32_t head_dim) {
  const Places in(src, head_dim), out(dst, head_dim);
  const int64_t in_bytes = dtype_bytes(src.dtype), out_bytes = dtype_bytes(dst.dtype);
  const auto copy = [&](const std::byte* x, int64_t i, std::byte* y, int64_t j) {
    store_element(y + j * out_bytes, dst.dtype, load_element(x + i * in_bytes, src.dtype));
  };
  for (int32_t head = 0; head < num_kv_heads; ++head) {
    const std::byte* k = src.k + (from * src.k_page + head * src.k_head) * in_bytes;
    const std::byte* v = src.v + (from * src.v_page + head * src.v_head) * in_bytes;
    std::byte* k_out = dst.k + (to * dst.k_page + head * dst.k_head) * out_bytes;
    std::byte* v_out = dst.v + (to * dst.v_page + head * dst.v_head) * out_bytes;
    for (int32_t slot = 0; slot < src.page_size; ++slot) {
      for (int32_t d = 0; d < head_dim; ++d) {
        copy(k, in.k(slot, d), k_out, out.k(slot, d));
        copy(v, in.v(slot, d), v_out, out.v(slot, d));
      }
    }
  }
}

float merge_row(pm_dtype dtype, int32_t head_dim, const std::byte* a, float lse_a, const std::byte* b,
                float lse_b, std::byte* out) {
  constexpr float kNone = -std::numeric_limits<float>::infinity();
  const bool empty = lse_a == kNone && lse_b == kNone;
  const float m = lse_a > lse_b ? lse_a : lse_b;
  float weight_a = 0, weight_b = 0, lse = kNone;
  if (!empty) {
    const float x = std::exp(lse_a - m), y = std::exp(lse_b - m);
    lse = m + std::log(x + y);
    weight_a = x / (x + y);
    weight_b = y / (x + y);
  }
  const int64_t bytes = dtype_bytes(dtype);
  for (int32_t d = 0; d < head_dim; ++d) {
    // A side of weight zero holds nothing that counts, whatever its bits are.
    const float from_a = weight_a == 0 ? 0 : weight_a * load_element(a + d * bytes, dtype);
    const float from_b = weight_b == 0 ? 0 : weight_b * load_element(b + d * bytes, dtype);
    store_element(out + d * bytes, dtype, from_a + from_b);
  }
  return lse;
}

}  // namespace pagemill
