"""A layer's attention as vLLM calls it: stores the new keys and values and attends, in one call of Pagemill."""

from typing import Any

import numpy as np
import torch
from vllm.config import get_current_vllm_config
from vllm.logger import init_logger
from vllm.utils.torch_utils import kv_cache_dtype_str_to_dtype
from vllm.v1.attention.backend import AttentionImpl, AttentionType
from vllm.v1.attention.backends.cpu_attn import CPUAttentionBackendImpl

from .. import planning
from .._core import Cache, version
from ..machine import info
from .steps import Options, Step, cache_of_blocks

logger = init_logger("vllm.pagemill")  # vLLM shows what is logged below its own name

FP8 = {"fp8": "float8_e4m3fn", "fp8_e4m3": "float8_e4m3fn", "fp8_e5m2": "float8_e5m2"}


class Attention(AttentionImpl[Step]):
    """One layer. What Pagemill cannot serve goes to vLLM's own CPU attention, which is said once per reason."""

    def __init__(
        self,
        num_heads: int,
        head_size: int,
        scale: float,
        num_kv_heads: int | None = None,
        alibi_slopes: list[float] | None = None,
        sliding_window: int | None = None,
        kv_cache_dtype: str = "auto",
        logits_soft_cap: float | None = None,
        attn_type: str = AttentionType.DECODER,
        kv_sharing_target_layer_name: str | None = None,
        sinks: torch.Tensor | None = None,
        **unknown: Any,
    ) -> None:
        self.num_heads, self.head_size, self.scale = num_heads, head_size, float(scale)
        self.num_kv_heads = num_heads if num_kv_heads is None else num_kv_heads
        self.alibi_slopes = None if alibi_slopes is None else torch.tensor(alibi_slopes, dtype=torch.float32)
        self.sliding_window = sliding_window
        self.kv_cache_dtype = kv_cache_dtype
        self.soft_cap = logits_soft_cap or 0.0
        self.attn_type = attn_type
        self.kv_sharing_target_layer_name = kv_sharing_target_layer_name
        self.sinks = sinks
        self.has_cache = attn_type not in (AttentionType.ENCODER, AttentionType.ENCODER_ONLY)
        self._built_in_arguments = (
            (num_heads, head_size, scale, self.num_kv_heads, alibi_slopes, sliding_window, kv_cache_dtype),
            {
                "logits_soft_cap": logits_soft_cap,
                "attn_type": attn_type,
                "kv_sharing_target_layer_name": kv_sharing_target_layer_name,
                "sinks": sinks,
                **unknown,
            },
        )
        self.built_in: CPUAttentionBackendImpl | None = None
        self.cache_sharers: list[Attention] = []
        self._bound: tuple[torch.Tensor, Cache] | None = None
        self._choose(unknown)

    def _choose(self, unknown: dict[str, Any]) -> None:
        """Pagemill or the built-in backend; layers that share a cache must read it as it was written."""
        reason = f"unknown arguments {', '.join(unknown)}" if unknown else self._what_fails()
        writer = self._layer_that_writes()
        if writer:
            self.cache_sharers.append(writer)
            writer.cache_sharers.append(self)
        if reason or (writer and writer.built_in):
            self.use_built_in(reason or "a layer that shares its cache does")
        else:
            logger.info_once(
                "Attention by Pagemill %s (%s) instead of the built-in CPU backend; PAGEMILL_VLLM=0 switches it off.",
                version(),
                info()["isa"],
                scope="process",
            )

    def _layer_that_writes(self) -> "Attention | None":
        if self.kv_sharing_target_layer_name is None:
            return None
        layers = get_current_vllm_config().compilation_config.static_forward_context
        layer = layers.get(self.kv_sharing_target_layer_name)
        return layer.impl if layer is not None and isinstance(layer.impl, Attention) else None

    def _what_fails(self) -> str | None:
        """The library's own words on a step without sequences of this layer's shape; None if it can."""
        try:
            self._plan_nothing(None)
            if self.has_cache:
                of_model = get_current_vllm_config().model_config
                dtype = kv_cache_dtype_str_to_dtype(self.kv_cache_dtype, of_model)
                self._plan_nothing(self._cache(torch.zeros(1, self.num_kv_heads, 16, 2 * self.head_size, dtype=dtype)))
        except (ValueError, TypeError, NotImplementedError) as error:
            return str(error)
        return None

    def _plan_nothing(self, cache: Cache | None) -> None:
        planning.plan(
            [0],
            None if cache is None else [],
            None if cache is None else np.zeros((0, 1), np.int32),
            cache,
            num_heads=self.num_heads,
            num_kv_heads=self.num_kv_heads,
            head_dim=self.head_size,
            dtype=torch.get_default_dtype(),
        )

    def use_built_in(self, reason: str) -> None:
        """From now on the layer and all that share its cache are vLLM's own; for before the first step only."""
        if self.built_in:
            return
        logger.warning_once("A layer keeps vLLM's built-in attention: %s.", reason, scope="process")
        arguments, options = self._built_in_arguments
        self.built_in = CPUAttentionBackendImpl(*arguments, **options)
        for other in self.cache_sharers:
            other.use_built_in("a layer that shares its cache does")

    def forward(
        self,
        layer: torch.nn.Module,
        query: torch.Tensor,  # [T, H, D], T >= num_actual_tokens
        key: torch.Tensor | None,  # [T, K, D]; of cross attention [encoder tokens, K, D], or None in later steps
        value: torch.Tensor | None,
        kv_cache: torch.Tensor,  # [blocks, K, P, 2 D]
        attn_metadata: Step | None,  # None: vLLM only measures
        output: torch.Tensor,  # [T, H, D]
        output_scale: torch.Tensor | None = None,
        output_block_scale: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Writes the attention of the step's tokens to output, rows of padding excepted, and returns it.

        Raises NotImplementedError for output scales, which vLLM does not give to CPU backends.
        """
        if output_scale is not None or output_block_scale is not None:
            raise NotImplementedError("output_scale: expected None, there is no fused quantisation of the output")
        step = attn_metadata
        if step is None:
            return output
        if self.built_in:
            return self._forward_built_in(layer, query, key, value, kv_cache, step, output)
        cache = self._cache(kv_cache) if self.has_cache else None
        plan = step.attention(self._options(query, output, self._store(layer, key, value, cache, step)), cache)
        plan.run(
            query,
            key,
            value,
            cache,
            out=output,
            scale=self.scale,
            soft_cap=self.soft_cap,
            k_scale=layer._k_scale_float,
            v_scale=layer._v_scale_float,
            sinks=None if self.sinks is None else self.sinks.detach().float(),
            alibi_slopes=self.alibi_slopes,
        )
        return output

    def _store(
        self,
        layer: torch.nn.Module,
        key: torch.Tensor | None,
        value: torch.Tensor | None,
        cache: Cache | None,
        step: Step,
    ) -> bool:
        """Whether the attention call is to store the new keys; stores those here that lie elsewhere than it assumes."""
        if cache is None or key is None or value is None or self.kv_sharing_target_layer_name is not None:
            return False
        if self.attn_type == AttentionType.DECODER and step.stores_in_order(cache.page_size):
            return True
        step.store(key, value, cache, layer._k_scale_float, layer._v_scale_float)
        return False

    def _options(self, query: torch.Tensor, output: torch.Tensor, write_cache: bool) -> Options:
        return Options(
            num_heads=self.num_heads,
            num_kv_heads=self.num_kv_heads,
            head_dim=self.head_size,
            dtype=planning.dtype_name(query.dtype),
            out_dtype=planning.dtype_name(output.dtype),
            sliding_window=self.sliding_window,
            write_cache=write_cache,
        )

    def _cache(self, blocks: torch.Tensor) -> Cache:
        if self._bound is None or self._bound[0] is not blocks:
            self._bound = blocks, cache_of_blocks(blocks, FP8.get(self.kv_cache_dtype))
        return self._bound[1]

    def _forward_built_in(
        self,
        layer: torch.nn.Module,
        query: torch.Tensor,
        key: torch.Tensor | None,
        value: torch.Tensor | None,
        kv_cache: torch.Tensor,
        step: Step,
        output: torch.Tensor,
    ) -> torch.Tensor:
        if key is not None and value is not None and self.kv_sharing_target_layer_name is None:
            self.built_in.do_kv_cache_update(layer, key, value, kv_cache, step.slot_mapping)
        return self.built_in.forward(layer, query, key, value, kv_cache, step.built_in, output)
