"""One layer of Pagemill's backend, called as vLLM calls it, over a step of tests/python/steps.py."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from steps import Step
from vllm.config import VllmConfig, set_current_vllm_config
from vllm.v1.attention.backend import CommonAttentionMetadata
from vllm.v1.kv_cache_interface import AttentionSpec, FullAttentionSpec

from pagemill.vllm.attention import Attention
from pagemill.vllm.backend import Backend

SCALES = SimpleNamespace(_k_scale_float=1.0, _v_scale_float=1.0)


def tensor(x: Any) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(x))


def spec_of(step: Step, kind: type[AttentionSpec] = FullAttentionSpec) -> AttentionSpec:
    _, heads, dim = step.keys[0].shape
    return kind(block_size=step.page_size, num_kv_heads=heads, head_size=dim, dtype=torch.float32)


def slots(step: Step, *, past: bool = False) -> np.ndarray:
    """Of the step's new keys, or of those before it."""
    of_all = []
    for b, keys in enumerate(step.keys):
        first = len(keys) - step.q_len[b]
        j = np.arange(first) if past else np.arange(first, len(keys))
        of_all.append(step.page_table[b, j // step.page_size].astype(np.int64) * step.page_size + j % step.page_size)
    return np.concatenate(of_all)


def metadata(step: Step, **changes: Any) -> CommonAttentionMetadata:
    starts, lengths = tensor(step.query_start), tensor(step.kv_len)
    values: dict[str, Any] = {
        "query_start_loc": starts,
        "query_start_loc_cpu": starts,
        "seq_lens": lengths,
        "seq_lens_cpu_upper_bound": lengths,
        "num_reqs": len(lengths),
        "num_actual_tokens": int(starts[-1]),
        "max_query_len": max(step.q_len),
        "max_seq_len": int(lengths.max()),
        "block_table_tensor": tensor(step.page_table),
        "slot_mapping": tensor(slots(step)),
        "causal": step.options.causal if isinstance(step.options.causal, bool) else torch.tensor(step.options.causal),
    }
    return CommonAttentionMetadata(**(values | changes))


class Layer:
    """Impl, builder and cache of one layer; dtype float32."""

    def __init__(
        self, step: Step, backend: type[Backend] = Backend, spec: AttentionSpec | None = None, **options: Any
    ) -> None:
        self.spec = spec or spec_of(step)
        heads, dim = self.spec.num_kv_heads, self.spec.head_size
        config = VllmConfig()
        torch.set_default_dtype(torch.float32)
        with set_current_vllm_config(config):
            self.impl: Attention = backend.get_impl_cls()(
                step.q.shape[1], dim, step.options.scale or dim**-0.5, heads, kv_cache_dtype="float32", **options
            )
            self.builder = backend.get_builder_cls()(self.spec, [], config, torch.device("cpu"))
        self.cache = torch.zeros(step.num_pages, heads, step.page_size, 2 * dim)

    def forward(
        self, q: Any, k: Any, v: Any, common: CommonAttentionMetadata, out: torch.Tensor | None = None
    ) -> np.ndarray:
        """[T, H, D]: NaN where the layer writes nothing."""
        out = torch.full(q.shape, torch.nan) if out is None else out
        k, v = (None if x is None else tensor(x) for x in (k, v))
        self.impl.forward(SCALES, tensor(q), k, v, self.cache, self.builder.build(0, common), out)
        return out.numpy()

    def fill(self, step: Step) -> None:
        """Puts the keys before the step into the cache."""
        past = [(x[: len(x) - n]) for x, n in zip(step.keys, step.q_len, strict=True)]
        values = [(x[: len(x) - n]) for x, n in zip(step.values, step.q_len, strict=True)]
        k, v = np.concatenate(past), np.concatenate(values)
        built = self.builder.build(0, metadata(step, slot_mapping=tensor(slots(step, past=True))))
        built.store(tensor(k), tensor(v), self.impl._cache(self.cache), 1.0, 1.0)

    def run(self, step: Step, **changes: Any) -> np.ndarray:
        return self.forward(step.q, step.k_new, step.v_new, metadata(step, **changes))
