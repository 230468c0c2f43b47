// The attention call over fuzzed metadata: what is refused leaves every byte as it was, what is accepted
// touches only what it may, and comes to what the reference says.
#include <algorithm>
#include <cstring>
#include <string>
#include <vector>

#include "fuzzed_call.h"

namespace pagemill {
namespace {

// How the calls of a run of the fuzzer went, for whoever tunes it.
struct Tally {
  int64_t built = 0, refused = 0, run = 0, compared = 0;
  ~Tally() {
    fmt::print(stderr, "batches: {} accepted, {} refused; calls: {} run, {} compared\n", built, refused, run,
               compared);
  }
} tally;

void expect_reason(pm_status status) {
  const std::string message = pm_last_error();
  demand(status == PM_INVALID_ARGUMENT || status == PM_UNSUPPORTED, "refused with the status",
         pm_status_name(status));
  demand(message.find(" = ") != std::string::npos, "refused without argument and value:", message);
}

void expect_untouched(const GuardedCall& call) {
  for (const auto* group : {&call.metadata, &call.inputs, &call.cache, &call.out}) {
    for (const GuardedBuffer& buffer : *group) {
      demand(std::equal(buffer.saved().begin(), buffer.saved().end(), buffer.data()),
             "a refused call has written, and said:", pm_last_error());
    }
  }
}

void allow(std::vector<GuardedBuffer>& buffers, GuardedBuffer::Access access) {
  for (GuardedBuffer& buffer : buffers) buffer.allow(access);
}

// Tasks on this thread, so that a finding comes back: in order or against it.
Executor serial(bool backwards) {
  Executor executor;
  const auto forth = [](void*, int32_t n, void (*task)(void*, int32_t), void* arg) {
    for (int32_t i = 0; i < n; ++i) task(arg, i);
  };
  const auto back = [](void*, int32_t n, void (*task)(void*, int32_t), void* arg) {
    while (n > 0) task(arg, --n);
  };
  if (backwards) {
    executor.parallel_for = back;
  } else {
    executor.parallel_for = forth;
  }
  return executor;
}

pm_status run_parts(const pm_plan* plan, const pm_args& args, const GuardedBuffer& workspace, int parts) {
  pm_status status = PM_OK;
  for (int phase = 0; phase < PM_PHASES && status == PM_OK; ++phase) {
    for (int part = 0; part < parts && status == PM_OK; ++part) {
      status = pm_run_part(plan, &args, workspace.data(), workspace.size(), phase, part, parts);
    }
  }
  return status;
}

pm_status run_halves(const pm_plan* plan, const pm_args& args, const GuardedBuffer& workspace,
                     const pm_executor& executor) {
  const pm_status status = pm_store(plan, &args, workspace.data(), workspace.size(), &executor);
  if (status != PM_OK) return status;
  return pm_attend(plan, &args, workspace.data(), workspace.size(), &executor);
}

// In one of the ways that the library offers.
pm_status run(Bytes& bytes, const Plan& plan, const FuzzedCall& call) {
  const GuardedBuffer workspace(plan.stats().workspace_bytes, Edge::kEnd, 64);
  const Executor executor = serial(bytes.any<bool>());
  const pm_args& args = call.passed.args;
  const bool writes = call.config.write_cache && call.config.layout != PM_NO_CACHE;
  if (workspace.size() > 0) {
    const pm_status status = pm_run(plan.get(), &args, workspace.data(), workspace.size() - 1, &executor);
    demand(status != PM_OK, "accepts a workspace one byte short");
    expect_untouched(call);
  }
  switch (bytes.between(0, 3)) {
    case 0: return run_parts(plan.get(), args, workspace, bytes.between(1, std::max(1, call.config.threads)));
    case 1: return pm_attention(&call.passed.config, &call.passed.batch, &args, &executor);
    case 2:
      if (writes && call.right()) return run_halves(plan.get(), args, workspace, executor);
      [[fallthrough]];
    default: return pm_run(plan.get(), &args, workspace.data(), workspace.size(), &executor);
  }
}

void try_call(Bytes& bytes, Plan& plan) {
  FuzzedCall call(bytes);
  pm_status status = pm_plan_build(plan.get(), &call.passed.config, &call.passed.batch);
  if (status != PM_OK) {
    ++tally.refused;
    demand(!call.right(), "a right batch is refused:", pm_last_error());
    expect_reason(status);
    return;
  }
  ++tally.built;
  if (!call.add_tensors(bytes)) return;
  allow(call.inputs, GuardedBuffer::Access::kRead);
  if (!call.config.write_cache) allow(call.cache, GuardedBuffer::Access::kRead);
  status = run(bytes, plan, call);
  allow(call.inputs, GuardedBuffer::Access::kWrite);
  allow(call.cache, GuardedBuffer::Access::kWrite);
  if (status != PM_OK) {
    ++tally.refused;
    demand(!call.right(), "a right call is refused:", pm_last_error());
    expect_reason(status);
    expect_untouched(call);
    return;
  }
  ++tally.run;
  if (!call.comparable()) return;
  ++tally.compared;
  const Verdict verdict = verify(call, 1e5);
  demand(verdict.problem.empty(), "not what the reference says:", verdict.problem);
}

}  // namespace
}  // namespace pagemill

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  pagemill::Bytes bytes(data, size);
  pagemill::Plan plan;  // for several steps, as an engine's
  for (int step = 0; step < 3 && bytes.left(); ++step) pagemill::try_call(bytes, plan);
  return 0;
}
