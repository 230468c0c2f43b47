// What the work of a plan takes on one thread, in nanoseconds, as a formula over numbers that `pagemill tune`
// measures. It needs nothing else of the library: the tool that fits the numbers includes it too.
#pragma once

#include <algorithm>
#include <cstdint>

namespace pagemill {

// One item and KV head of a given shape.
struct UnitCost {
  double item;        // ns
  double row;         // ns per query row
  double key_memory;  // ns per key, to read it from memory
  double key_pass;    // ns per key, to pack and load it
  double product;     // ns per row and key

  // Memory is read ahead while the thread computes: the longer of the two is what it takes.
  double operator()(int64_t rows, int64_t keys) const {
    const auto r = static_cast<double>(rows), k = static_cast<double>(keys);
    return item + row * r + k * std::max(key_memory, key_pass + product * r);
  }
};

// Of one kind of products on one ISA.
struct CostModel {
  double item;         // ns per item and KV head
  double row;          // ns per element of its queries: converted, normalised, written
  double byte;         // ns per byte of keys and values, while one thread reads
  double shared_byte;  // the same while all threads of the machine read
  double gather;       // ns per element of keys and values, packed from rows
  double pass;         // ns per element of keys and values, loaded for however many rows
  double score;        // ns per row and key
  double product;      // ns per row, key and dim
  double merge;        // ns per float of a partial result, written and folded
  double store;        // ns per element of new keys and values
  double widen;        // ns per element of keys and values of fp8

  // rows: keys and values are packed before they are multiplied.
  UnitCost unit(int head_dim, int64_t element_bytes, bool rows) const {
    const double elements = 2.0 * head_dim;
    return {item, row * head_dim, byte * elements * static_cast<double>(element_bytes),
            (pass + (rows ? gather : 0) + (element_bytes == 1 ? widen : 0)) * elements,
            score + product * head_dim};
  }
};

struct CostField {
  const char* name;
  double CostModel::* value;
};
inline constexpr CostField kCostFields[] = {
    {"item", &CostModel::item},     {"row", &CostModel::row},
    {"byte", &CostModel::byte},     {"shared_byte", &CostModel::shared_byte},
    {"gather", &CostModel::gather}, {"pass", &CostModel::pass},
    {"score", &CostModel::score},   {"product", &CostModel::product},
    {"merge", &CostModel::merge},   {"store", &CostModel::store},
    {"widen", &CostModel::widen},
};
inline constexpr const char* kCostKinds[] = {"bf16", "f32bf16", "f32f16",
                                             "f32"};  // of products, in the order of Mma

}  // namespace pagemill
