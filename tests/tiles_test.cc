// The matrix verbs on emulated tiles, below the attention call: bits, copies, and the shapes that the
// hardware refuses.
#include <gtest/gtest.h>

#include <cstring>
#include <random>
#include <vector>

#include "isa/amx_emulated/tiles.h"
#include "isa/float16.h"
#include "isa/tile_mma.h"

namespace pagemill {
namespace {

using amx_emulated::Tiles;
using Verbs = TileMma<Tiles>;

constexpr int kMostRows = 32;

// A block of keys and values in PM_TILES and rows to multiply them with.
struct Operands {
  explicit Operands(int head_dim)
      : dim(head_dim),
        q((kMostRows + kSpareRows) * size_t(dim)),
        k(kBlockKeys * size_t(dim)),
        v(k.size()),
        p((kMostRows + kSpareRows) * kBlockKeys),
        stage(kBlockKeys * size_t(padded_dim(dim))) {
    std::mt19937 random(7);
    std::normal_distribution<float> normal;
    for (auto* values : {&q, &k, &v, &p}) {
      for (uint16_t& x : *values) x = f32_to_bf16(normal(random));
    }
    for (int g = 0; g < kBlockGroups; ++g) {
      k_groups.push_back(reinterpret_cast<const std::byte*>(&k[size_t(g) * kGroupKeys * dim]));
      v_groups.push_back(reinterpret_cast<const std::byte*>(&v[size_t(g) * kGroupKeys * dim]));
    }
  }

  float key(int group, int t, int d) const {
    return bf16_to_f32(k[size_t(group) * kGroupKeys * dim + size_t(d / 2 * kGroupKeys + t) * 2 + d % 2]);
  }
  float value(int group, int t, int d) const {
    return bf16_to_f32(v[size_t(group) * kGroupKeys * dim + size_t(t / 2 * dim + d) * 2 + t % 2]);
  }

  // Rows [first, first + rows) of an item of `item_rows`.
  std::vector<float> scores(int item_rows, int first, int rows) const {
    std::vector<float> s(kMaxTileRows * kBlockKeys, -1);
    const Verbs verbs(item_rows, dim, true);
    verbs.scores<0>(reinterpret_cast<const std::byte*>(&q[size_t(first) * dim]), dim * 2, rows,
                    k_groups.data(), kBlockGroups, dim, s.data(), nullptr);
    s.resize(size_t(rows) * kBlockKeys);
    return s;
  }
  // Groups [begin, end), with what pair_values() makes of them; the rows past the last keep their -1.
  std::vector<float> sums(int item_rows, int rows, int begin, int end, bool invariant = true) {
    auto ks = k_groups, vs = v_groups;
    std::vector<float> o((kMostRows + kSpareRows) * size_t(padded_dim(dim)), 0);
    std::fill(o.begin() + rows * padded_dim(dim), o.end(), -1.0f);
    const Verbs verbs(item_rows, dim, invariant);
    verbs.pair_keys(ks.data(), begin, end);
    verbs.pair_values(vs.data(), begin, end, dim, reinterpret_cast<std::byte*>(stage.data()));
    const int unit = verbs.unit_groups();
    const int first = begin / unit * unit, groups = (end + unit - 1) / unit * unit - first;
    verbs.accumulate<0>(reinterpret_cast<const std::byte*>(&p[size_t(first) * kGroupKeys]), rows,
                        vs.data() + first, groups, dim, o.data(), nullptr);
    return o;
  }

  int dim;
  std::vector<uint16_t> q, k, v, p;
  std::vector<float> stage;
  std::vector<const std::byte*> k_groups, v_groups;
};

constexpr int kDims[] = {16, 24, 64, 80, 96, 112, 128, 200, 512};

TEST(TileVerbs, ScoresAreProducts) {
  for (const int dim : kDims) {
    const Operands x(dim);
    const std::vector<float> s = x.scores(kMostRows, 0, kMostRows);
    for (int r = 0; r < kMostRows; ++r)
      for (int key = 0; key < kBlockKeys; ++key) {
        double sum = 0, size = 0;
        for (int d = 0; d < dim; ++d) {
          const double term = double{bf16_to_f32(x.q[size_t(r) * dim + d])} * x.key(key / 16, key % 16, d);
          sum += term, size += std::abs(term);
        }
        ASSERT_NEAR(s[size_t(r) * kBlockKeys + key], sum, 1e-6 * size) << dim << " " << r << " " << key;
      }
  }
}

void expect_products(const Operands& x, const std::vector<float>& o, int rows, int begin, int end) {
  const int ldo = padded_dim(x.dim);
  for (int r = 0; r < kMostRows; ++r)
    for (int d = 0; d < x.dim; ++d) {
      double sum = r < rows ? 0 : -1, size = 0;
      for (int key = begin * kGroupKeys; r < rows && key < end * kGroupKeys; ++key) {
        const double term =
            double{bf16_to_f32(x.p[size_t(r) * kBlockKeys + key])} * x.value(key / 16, key % 16, d);
        sum += term, size += std::abs(term);
      }
      ASSERT_NEAR(o[size_t(r) * ldo + d], sum, 1e-6 * size) << x.dim << " " << rows << " " << r << " " << d;
    }
}

TEST(TileVerbs, SumsAreProductsAndOtherRowsAreLeftAlone) {
  for (const int dim : kDims)
    for (const int rows : {1, 5, 16, 17, 31, 32}) {
      Operands x(dim);
      expect_products(x, x.sums(40, rows, 0, kBlockGroups), rows, 0, kBlockGroups);
    }
}

// Rows of decode, of which some may be at work: groups of values that begin and end anywhere.
TEST(TileVerbs, SumsOfFewRowsAreProducts) {
  for (const int dim : kDims)
    for (const int rows : {1, 5, 16})
      for (const int at_work : {1, rows}) {
        Operands x(dim);
        expect_products(x, x.sums(rows, at_work, 1, 7, false), at_work, 1, 7);
      }
}

TEST(TileVerbs, BitsDoNotDependOnTheRowsOfATile) {
  for (const int dim : kDims) {
    Operands x(dim);
    const std::vector<float> all_scores = x.scores(64, 0, kMostRows), all_sums = x.sums(64, kMostRows, 0, 8);
    for (const int rows : {1, 2, 15, 16, 17, 23, 31}) {
      EXPECT_EQ(std::memcmp(x.scores(rows, 0, rows).data(), all_scores.data(), rows * kBlockKeys * 4), 0)
          << dim;
      EXPECT_EQ(std::memcmp(x.sums(rows, rows, 0, 8).data(), all_sums.data(), rows * padded_dim(dim) * 4), 0)
          << dim;
    }
    const int last = 7;
    EXPECT_EQ(std::memcmp(x.scores(1, last, 1).data(), &all_scores[last * kBlockKeys], kBlockKeys * 4), 0);
  }
}

TEST(TileVerbs, BitsDoNotDependOnWherePagesLie) {
  for (const int dim : kDims) {
    Operands x(dim), scattered(dim);
    scattered.v.resize(x.v.size() * 2);
    for (int g = 0; g < kBlockGroups; ++g) {
      uint16_t* to = &scattered.v[size_t((g * 5 + 3) % 16) * kGroupKeys * dim];
      std::memcpy(to, x.v_groups[size_t(g)], size_t(kGroupKeys) * dim * 2);
      scattered.v_groups[size_t(g)] = reinterpret_cast<const std::byte*>(to);
    }
    EXPECT_EQ(scattered.sums(20, 20, 0, 8), x.sums(20, 20, 0, 8)) << dim;
  }
}

// A pair with one visible group is the pair whose other group has weights and values of zero.
TEST(TileVerbs, LackingGroupsAddNothing) {
  for (const int dim : kDims) {
    Operands part(dim), whole(dim);
    for (const int g : {0, 5, 6, 7}) {
      std::memset(&whole.v[size_t(g) * kGroupKeys * dim], 0, size_t(kGroupKeys) * dim * 2);
      std::memset(&part.v[size_t(g) * kGroupKeys * dim], 0xff, size_t(kGroupKeys) * dim * 2);  // NaN
    }
    EXPECT_EQ(part.sums(6, 6, 1, 5), whole.sums(6, 6, 0, 8)) << dim;
  }
}

TEST(TileVerbs, PutBackTheConfigurationThatTheyFind) {
  TileConfig host, after;
  host.set(0, 3, 16);
  Tiles::configure(host);
  {
    const Verbs verbs(32, 128, true);
  }
  Tiles::save(after);
  EXPECT_EQ(std::memcmp(&after, &host, sizeof host), 0);
  Tiles::release();
  {
    const Verbs verbs(32, 128, true);
  }
  Tiles::save(after);
  EXPECT_EQ(after.palette, 0);
}

TEST(EmulatedTiles, RoundAsTheHardware) {
  TileConfig config;
  for (int tile = 0; tile < 3; ++tile) config.set(tile, tile == 2 ? 2 : 1, tile == 0 ? 4 : tile == 1 ? 8 : 4);
  Tiles::configure(config);
  const auto product = [](float start, std::vector<float> a, std::vector<float> b) {
    uint16_t x[4], y[4];
    for (size_t i = 0; i < 4; ++i) x[i] = f32_to_bf16(a[i]), y[i] = f32_to_bf16(b[i]);
    float sum = start;
    Tiles::load<0>(&sum, 4);
    Tiles::load<1>(x, 8);
    Tiles::load<2>(y, 4);
    Tiles::dpbf16<0, 1, 2>();
    Tiles::store<0>(&sum, 4);
    return sum;
  };
  EXPECT_EQ(product(1, {1, 2, 3, 4}, {5, 6, 7, 8}), 71);
  // Even terms are summed apart from odd ones, and the start comes last.
  EXPECT_EQ(product(0, {0x1p30f, 1, -0x1p30f, 1}, {1, 1, 1, 1}), 2);
  EXPECT_EQ(product(-0x1p30f, {0x1p30f, 1, 0, 0}, {1, 1, 1, 1}), 0);
  // Denormals count as zero, and become it.
  EXPECT_EQ(product(0x1p-130f, {0x1p-130f, 0, 0, 0}, {0x1p100f, 0, 0, 0}), 0);
  EXPECT_EQ(product(0, {0x1p-70f, 0, 0, 0}, {0x1p-70f, 0, 0, 0}), 0);
  Tiles::release();
}

TEST(EmulatedTilesDeathTest, TrapWhatTheHardwareRefuses) {
  EXPECT_DEATH(Tiles::zero<0>(), "");
  const auto configured = [](int sums_rows, int a_bytes, int b_rows) {
    TileConfig config;
    config.set(0, sums_rows, 64);
    config.set(1, 4, a_bytes);
    config.set(2, b_rows, 64);
    Tiles::configure(config);
  };
  configured(4, 32, 8);
  Tiles::dpbf16<0, 1, 2>();
  EXPECT_DEATH((Tiles::dpbf16<0, 1, 1>()), "");
  EXPECT_DEATH((Tiles::dpbf16<0, 1, 3>()), "");
  configured(5, 32, 8);
  EXPECT_DEATH((Tiles::dpbf16<0, 1, 2>()), "");
  configured(4, 64, 8);
  EXPECT_DEATH((Tiles::dpbf16<0, 1, 2>()), "");
  EXPECT_DEATH(configured(4, 68, 8), "");
  EXPECT_DEATH(configured(17, 64, 16), "");
  Tiles::release();
  EXPECT_DEATH(Tiles::zero<0>(), "");
}

}  // namespace
}  // namespace pagemill
