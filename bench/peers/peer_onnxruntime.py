"""ONNX Runtime's GroupQueryAttention operator, as the only one of a model. It knows no bf16."""

from itertools import cycle

import numpy as np
import onnxruntime as ort
from onnx import TensorProto, helper

from step import DTYPES, Array, D, H, K, Step, huge


def make_model() -> bytes:
    f32, i32 = TensorProto.FLOAT, TensorProto.INT32
    kv, cache = ["B", "S", K * D], ["B", K, "M", D]
    names = ["query", "key", "value", "past_key", "past_value", "seqlens_k", "total_sequence_length"]
    shapes = [["B", "S", H * D], kv, kv, cache, cache, ["B"], []]
    kinds = [f32] * 5 + [i32] * 2
    results = {"output": ["B", "S", H * D], "present_key": cache, "present_value": cache}
    node = helper.make_node(
        "GroupQueryAttention", names, list(results), domain="com.microsoft", num_heads=H, kv_num_heads=K
    )
    graph = helper.make_graph(
        [node],
        "attention",
        [helper.make_tensor_value_info(*given) for given in zip(names, kinds, shapes, strict=True)],
        [helper.make_tensor_value_info(name, f32, shape) for name, shape in results.items()],
    )
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10).SerializeToString()


class Peer:
    name = "ONNX Runtime GroupQueryAttention"
    dtype = "f32"
    version = ort.__version__
    ran = "all f32 (it has no bf16, and f16 is slower); contiguous cache that it stores the new tokens to"
    settings = "IOBinding, `session.force_spinning_stop`"

    def __init__(self, step: Step, threads: int) -> None:
        shape = step.shape
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.add_session_config_entry("session.force_spinning_stop", "1")
        self.session = ort.InferenceSession(make_model(), options, providers=["CPUExecutionProvider"])
        self.step = step
        self.out = huge(step.q.shape, DTYPES["f32"])
        past = (step.k_past, step.v_past)
        self.caches = [[make_cache(x, shape.keys) for x in past] for _ in range(step.copies)]
        self.last_key = np.full(shape.batch, shape.keys - 1, np.int32)
        self.keys = np.array(shape.keys, np.int32)
        self.next_binding = cycle([self.bind(*cache) for cache in self.caches])

    def bind(self, keys: Array, values: Array) -> ort.IOBinding:
        shape, binding = self.step.shape, self.session.io_binding()
        flat = (shape.batch, shape.queries, -1)
        for name, array in {
            "query": self.step.q.reshape(flat),
            "key": self.step.k_new.reshape(flat),
            "value": self.step.v_new.reshape(flat),
            "past_key": keys,
            "past_value": values,
            "seqlens_k": self.last_key,
            "total_sequence_length": self.keys,
        }.items():
            binding.bind_input(name, "cpu", 0, array.dtype, array.shape, array.ctypes.data)
        for name, array in {"output": self.out.reshape(flat), "present_key": keys, "present_value": values}.items():
            binding.bind_output(name, "cpu", 0, array.dtype, array.shape, array.ctypes.data)
        return binding

    def run(self) -> None:
        self.session.run_with_iobinding(next(self.next_binding))

    def output(self) -> Array:
        return self.out


def make_cache(past: Array, keys: int) -> Array:
    """[B, K, keys, D]"""
    cache = huge((len(past), K, keys, D), past.dtype)
    cache[:, :, : past.shape[1]] = past.swapaxes(1, 2)
    return cache
