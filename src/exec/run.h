// A planned step on an executor.
#pragma once

#include "api/validate.h"

namespace pagemill {

// All on one executor. `step` comes from validate_args; executor null = the process's pool.
pm_status run_step(const PlanData& plan, Step& step, Parts parts, std::byte* workspace,
                   const pm_executor* executor);

// One thread's share of a phase (0: store and prepare, 1: attend), for hosts with threads of their own.
void run_phase(const PlanData& plan, Step& step, std::byte* workspace, int32_t phase, int32_t part,
               int32_t parts);

}  // namespace pagemill
