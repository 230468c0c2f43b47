// Docstrings of pagemill.Plan.
#pragma once

namespace pagemill::python {

constexpr const char* kPlanDoc =
    R"(What a step needs besides its tensors: made by `plan`, once a step, and run for every layer.

It copied all metadata and never changes: any number of threads may run one plan at the same time, on different
outputs and caches.)";

constexpr const char* kRunDoc = R"(Stores the step's new keys and values in the cache, and attends to it.

q: [T, H, D] of the plan's dtype; T is at least the plan's number of tokens, and rows past it are padding.
k_new, v_new: [T, K, D] of the same dtype; ignored (None will do) if the plan does not write.
cache: a Cache of the geometry that the plan was made for; None if it was made without one.
out: [T, H, D] of the plan's out_dtype to write to; None for a new NumPy array. Padding rows of a new array are 0,
    those of a given one are left alone. Shares no memory with any input or the cache.
lse: False, True, or an f32 array [T, H] to write to: the natural logarithm of the softmax denominator, the sink
    included; -inf where nothing is visible and there is no sink.
scale: of the scores; None for 1 / sqrt(D).
soft_cap: c in c * tanh(score / c); 0 for none.
q_scale, k_scale, v_scale: the true q is q_scale * q; the cache holds k_new / k_scale and v_new / v_scale, and scores
    and output multiply the scales back.
sinks: f32 [H], logits that join the denominators; alibi_slopes: f32 [H]. None for none.

Strides of tokens and heads are free, D is contiguous. Every array is read or written in place.

Returns out, or (out, lse) if lse is not False.

Raises TypeError for what is no array or has another dtype, ValueError for any other argument that does not fit (the
message names argument, value and what was expected). A call that raises has written nothing.

Releases the GIL. Calls on different caches, or that only read one, may run at the same time; the threads of the
library serve them one after the other.)";

constexpr const char* kStoreDoc =
    R"(The cache update of `run` alone: k_new, v_new, cache, k_scale and v_scale as there.

Raises as `run`, and ValueError if the plan does not write.)";

constexpr const char* kAttendDoc =
    R"(The attention of `run` alone, to a cache in which `store` put the new keys and values.

Arguments, result and errors as of `run`.)";

constexpr const char* kStatsDoc =
    R"(What the plan will do: kernel, isa, workspace_bytes, parts (tasks of a run), items, split_items, merges,
stored_tokens and fused_tokens (stored before attention, or by the items that attend to them), and estimated_ns by the
cost model.)";

}  // namespace pagemill::python
