"""vLLM's attention backend CPU_ATTN, by Pagemill."""

from typing import Any

import torch
from vllm.config import VllmConfig, get_layers_from_vllm_config
from vllm.model_executor.layers.attention_layer_base import AttentionLayerBase
from vllm.v1.attention.backend import AttentionMetadataBuilder, CommonAttentionMetadata
from vllm.v1.attention.backends.cpu_attn import CPUAttentionBackend, CPUAttentionMetadataBuilder
from vllm.v1.kv_cache_interface import AttentionSpec, CrossAttentionSpec

from .attention import Attention
from .steps import Step

LARGEST_PAGE = 1024  # tokens


class Backend(CPUAttentionBackend):
    """What vLLM asks of a backend. A block of the cache is a page of layout `tiles`, K and V planes side by side."""

    forward_includes_kv_cache_update = True

    @staticmethod
    def get_supported_kernel_block_sizes(kv_cache_spec: Any = None) -> list[int]:
        return list(range(16, LARGEST_PAGE + 1, 16))

    @classmethod
    def get_supported_head_sizes(cls) -> list[int]:
        return []  # any: Attention takes what Pagemill cannot serve to the built-in backend

    @classmethod
    def supports_sink(cls) -> bool:
        return True

    @staticmethod
    def get_impl_cls() -> type[Attention]:
        return Attention

    @staticmethod
    def get_builder_cls() -> "type[StepBuilder]":
        return StepBuilder


class StepBuilder(AttentionMetadataBuilder[Step]):
    """Makes the `Step` of a KV-cache group, once a step for all its layers."""

    def __init__(
        self, kv_cache_spec: AttentionSpec, layer_names: list[str], vllm_config: VllmConfig, device: torch.device
    ) -> None:
        super().__init__(kv_cache_spec, layer_names, vllm_config, device)
        layers = get_layers_from_vllm_config(vllm_config, AttentionLayerBase, layer_names)
        self.built_in = None
        if any(getattr(layer.impl, "built_in", None) for layer in layers.values()):
            self.built_in = CPUAttentionMetadataBuilder(kv_cache_spec, layer_names, vllm_config, device)

    def build(
        self, common_prefix_len: int, common_attn_metadata: CommonAttentionMetadata, fast_build: bool = False
    ) -> Step:
        common = common_attn_metadata
        return Step(
            num_actual_tokens=common.num_actual_tokens,
            query_start_loc=common.query_start_loc,
            seq_lens=common.seq_lens,
            block_table=common.block_table_tensor,
            slot_mapping=common.slot_mapping,
            causal=False if isinstance(self.kv_cache_spec, CrossAttentionSpec) else common.causal,
            built_in=self.built_in and self.built_in.build(common_prefix_len, common, fast_build),
        )
