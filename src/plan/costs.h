// The cost models of the machine's ISAs: as `pagemill tune` stored them, else defaults.
#pragma once

#include <array>
#include <iterator>
#include <string>
#include <string_view>

#include "dispatch/select.h"
#include "plan/cost.h"

namespace pagemill {

struct Costs {
  std::array<CostModel, std::size(kCostKinds)> of{};  // by Mma
  double threads = 1;                                 // of the machine, that CostModel::shared_byte is of
  double error = 0;  // median relative error on shapes that were not fitted; 0 if not tuned
  bool tuned = false;
  std::string path;     // where the file is looked for, "" = nowhere
  std::string problem;  // why a file that is there is not used

  // With CostModel::byte as it is while `n` threads read: each gets its share of the machine's bandwidth, but
  // no more than it could read alone.
  CostModel model(Mma mma, int32_t n) const;
};

// The model of the ISA's kernels without measurement; of an ISA without a row, that of the one it includes.
Costs default_costs(const Isa& isa);

// Reads what `pagemill tune` wrote for the ISA into `costs`: lines of `key value`, of which none may be
// missing.
// "", or what is wrong; `costs` is then unchanged.
std::string parse_costs(std::string_view text, const Isa& isa, Costs& costs);

// Read once in the life of the process.
const Costs& costs_of(const Isa& isa);

}  // namespace pagemill
