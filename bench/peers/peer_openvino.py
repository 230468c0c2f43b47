"""OpenVINO's PagedAttention operator, as the only one of a model."""

from itertools import cycle

import numpy as np
import openvino as ov
from openvino import opset13 as ops
from openvino.op import _PagedAttentionExtension

from step import DTYPES, Array, D, H, K, Step, huge

BLOCK = 32  # tokens: fixed by the CPU plugin


def make_model() -> ov.Model:
    def given(name: str, kind: ov.Type, shape: list[int]) -> ov.Node:
        node = ops.parameter(ov.PartialShape(shape), dtype=kind, name=name)
        node.output(0).set_names({name})
        return node

    def none(kind: type, rank: int = 1) -> ov.Node:
        return ops.constant(np.zeros([0] * rank, kind))

    def constant(kind: type, value: float) -> ov.Node:
        return ops.constant(kind(value))

    i32, f32, u8 = np.int32, np.float32, np.uint8
    tensors = [
        given("query", ov.Type.bf16, [-1, H * D]),
        given("key", ov.Type.bf16, [-1, K * D]),
        given("value", ov.Type.bf16, [-1, K * D]),
        given("key_cache.0", ov.Type.dynamic, [-1] * 4),  # shape and dtype are the plugin's choice
        given("value_cache.0", ov.Type.dynamic, [-1] * 4),
        given("past_lens", ov.Type.i32, [-1]),
        given("subsequence_begins", ov.Type.i32, [-1]),
        given("block_indices", ov.Type.i32, [-1]),
        given("block_indices_begins", ov.Type.i32, [-1]),
    ]
    max_context_len = given("max_context_len", ov.Type.i32, [])
    inputs = [
        *tensors,
        constant(f32, D**-0.5),
        constant(i32, 0),  # sliding window
        none(f32),  # ALiBi
        max_context_len,
        none(i32),  # aggregation of scores
        *(none(i32), none(i32, 2), none(f32, 2)),  # rotation of cached keys
        *(none(f32), constant(i32, 0), constant(i32, 0)),  # sparse prefill
        none(f32),  # sinks
        *(constant(i32, 0), none(i32), none(i32), none(i32)),  # eviction
        *(none(i32), none(u8), none(i32)),  # token types, masks of its own
    ]
    attention = _PagedAttentionExtension([node.output(0) for node in inputs])
    for name, value in {"num_k_heads": K, "k_head_size": D, "num_v_heads": K, "v_head_size": D}.items():
        attention.get_rt_info()[name] = value
    return ov.Model([ops.result(attention.output(0))], [*tensors, max_context_len], "attention")


class Peer:
    name = "OpenVINO PagedAttention"
    dtype = "bf16"
    version = ov.__version__.split("-")[0]
    ran = f"blocks of {BLOCK} tokens (fixed) in random order, stores the new tokens"
    settings = "`KV_CACHE_PRECISION` and `INFERENCE_PRECISION_HINT` bf16, latency hint, one stream, not pinned"

    def __init__(self, step: Step, threads: int) -> None:
        shape = step.shape
        compiled = ov.Core().compile_model(
            make_model(),
            "CPU",
            {
                "PERFORMANCE_HINT": "LATENCY",
                "INFERENCE_NUM_THREADS": threads,
                "NUM_STREAMS": 1,
                "ENABLE_CPU_PINNING": False,
                "KV_CACHE_PRECISION": "bf16",
                "INFERENCE_PRECISION_HINT": "bf16",
            },
        )
        expected = [K, BLOCK, D]
        for name in ("key_cache.0", "value_cache.0"):
            cache = compiled.input(name)
            got = [dim.get_length() for dim in list(cache.partial_shape)[1:]]
            if got != expected or cache.element_type != ov.Type.bf16:
                raise RuntimeError(f"{name}: {cache.element_type} {got}: expected bf16 {expected}")

        pages = step.shuffled_pages(BLOCK)
        self.step = step
        self.request = compiled.create_infer_request()
        self.caches = [(make_cache(step.k_past, pages), make_cache(step.v_past, pages)) for _ in range(step.copies)]
        self.next_caches = cycle([(tensor(k), tensor(v)) for k, v in self.caches])
        self.out = huge((step.q.size // (H * D), H * D), DTYPES["bf16"])
        set_tensor = self.request.set_tensor
        set_tensor("query", tensor(step.q.reshape(-1, H * D)))
        set_tensor("key", tensor(step.k_new.reshape(-1, K * D)))
        set_tensor("value", tensor(step.v_new.reshape(-1, K * D)))
        self.request.set_output_tensor(tensor(self.out))
        starts = np.arange(shape.batch + 1, dtype=np.int32)
        for name, values in {
            "past_lens": np.full(shape.batch, shape.past, np.int32),
            "subsequence_begins": starts * np.int32(shape.queries),
            "block_indices": pages.ravel(),
            "block_indices_begins": starts * np.int32(pages.shape[1]),
            "max_context_len": np.array(shape.keys, np.int32),
        }.items():
            set_tensor(name, ov.Tensor(values))

    def run(self) -> None:
        keys, values = next(self.next_caches)
        self.request.set_tensor("key_cache.0", keys)
        self.request.set_tensor("value_cache.0", values)
        self.request.infer(share_outputs=True)

    def output(self) -> Array:
        return self.out.reshape(self.step.q.shape)


def tensor(array: Array) -> ov.Tensor:
    """Shares the array's memory."""
    return ov.Tensor(array.view(np.uint16), ov.Shape(array.shape), ov.Type.bf16)


def make_cache(past: Array, pages: Array) -> Array:
    """[pages, K, BLOCK, D], as the plugin lays it out."""
    cache = huge((pages.size, K, BLOCK, D), past.dtype)
    for sequence, own in zip(past, pages, strict=True):
        for begin in range(0, len(sequence), BLOCK):
            rows = sequence[begin : begin + BLOCK]
            cache[own[begin // BLOCK], :, : len(rows)] = rows.swapaxes(0, 1)
    return cache
