// pm_merge: its formula in every dtype, empty parts, aliasing.
#include <gtest/gtest.h>

#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

#include "expect.h"
#include "reference.h"

namespace pagemill {
namespace {

constexpr float kInf = std::numeric_limits<float>::infinity();
constexpr int kRows = 5, kDim = 24;

struct Part {
  explicit Part(pm_dtype dtype, double first, std::vector<float> logs)
      : out(kRows * kDim * reference::size_of(dtype)), lse(std::move(logs)) {
    for (int i = 0; i < kRows * kDim; ++i) reference::put(dtype, out.data(), i, first + std::sin(i));
  }
  std::vector<std::byte> out;  // [rows, D]
  std::vector<float> lse;      // [rows]
};

TEST(Merge, IsTheFormula) {
  for (pm_dtype dtype : {PM_F32, PM_BF16, PM_F16}) {
    const Part a(dtype, 3, {0, 5, -40, 90, -3}), b(dtype, -2, {0, -5, 41, 89.5f, -700});
    Part c = a;
    merge(dtype, kRows, kDim, a.out.data(), a.lse.data(), b.out.data(), b.lse.data(), c.out.data(),
          c.lse.data());
    const double ulp = dtype == PM_BF16 ? 0x1p-8 : dtype == PM_F16 ? 0x1p-11 : 0x1p-22;
    for (int row = 0; row < kRows; ++row) {
      double top = std::max(a.lse[row], b.lse[row]);
      double lse = top + std::log(std::exp(a.lse[row] - top) + std::exp(b.lse[row] - top));
      EXPECT_NEAR(c.lse[row], lse, 2e-6 + 2e-7 * std::fabs(lse));
      for (int i = row * kDim; i < (row + 1) * kDim; ++i) {
        double want = std::exp(a.lse[row] - lse) * reference::get(dtype, a.out.data(), i) +
                      std::exp(b.lse[row] - lse) * reference::get(dtype, b.out.data(), i);
        EXPECT_NEAR(reference::get(dtype, c.out.data(), i), want, 1.01 * ulp * std::fabs(want) + 2e-5);
      }
    }
  }
}

TEST(Merge, EmptyParts) {
  Part a(PM_F32, 1, {1, -kInf, -kInf, 2, -kInf}), b(PM_F32, 2, {-kInf, 1, -kInf, -kInf, -kInf});
  for (int i = 4 * kDim; i < 5 * kDim; ++i) reference::put(PM_F32, a.out.data(), i, NAN);
  Part c = a;
  merge(PM_F32, kRows, kDim, a.out.data(), a.lse.data(), b.out.data(), b.lse.data(), c.out.data(),
        c.lse.data());
  for (int i = 0; i < kRows * kDim; ++i) {
    int row = i / kDim;
    double want = row == 0 || row == 3 ? reference::get(PM_F32, a.out.data(), i)
                  : row == 1           ? reference::get(PM_F32, b.out.data(), i)
                                       : 0;
    EXPECT_EQ(reference::get(PM_F32, c.out.data(), i), want) << i;
  }
  EXPECT_EQ(c.lse, (std::vector<float>{1, 1, -kInf, 2, -kInf}));
}

TEST(Merge, InPlaceAndWithoutLse) {
  for (pm_dtype dtype : {PM_F32, PM_BF16, PM_F16}) {
    const Part a(dtype, 3, {0, 5, -40, 90, -3}), b(dtype, -2, {0, -5, 41, 89.5f, -700});
    Part apart = a, on_a = a, on_b = b;
    merge(dtype, kRows, kDim, a.out.data(), a.lse.data(), b.out.data(), b.lse.data(), apart.out.data(),
          apart.lse.data());
    merge(dtype, kRows, kDim, on_a.out.data(), on_a.lse.data(), b.out.data(), b.lse.data(), on_a.out.data(),
          on_a.lse.data());
    merge(dtype, kRows, kDim, a.out.data(), a.lse.data(), on_b.out.data(), on_b.lse.data(), on_b.out.data(),
          nullptr);
    EXPECT_EQ(on_a.out, apart.out);
    EXPECT_EQ(on_a.lse, apart.lse);
    EXPECT_EQ(on_b.out, apart.out);
    EXPECT_EQ(on_b.lse, b.lse);
  }
}

TEST(Merge, OfNoRows) {
  merge(PM_F32, 0, 64, nullptr, nullptr, nullptr, nullptr, nullptr, nullptr);
}

}  // namespace
}  // namespace pagemill
