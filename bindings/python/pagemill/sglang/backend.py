"""SGLang's attention backend "pagemill": a layer stores the new keys and values and attends in one call of Pagemill."""

import logging
from typing import Any

import torch
from sglang.srt.layers.attention.base_attn_backend import AttentionBackend
from sglang.srt.layers.attention.torch_native_backend import TorchNativeAttnBackend
from sglang.srt.layers.radix_attention import AttentionType, RadixAttention
from sglang.srt.mem_cache.base_swa_memory_pool import BaseSWAKVPool
from sglang.srt.mem_cache.memory_pool import KVWriteLoc
from sglang.srt.mem_cache.swa_memory_pool import SWAKVPool
from sglang.srt.model_executor.forward_batch_info import ForwardBatch

from .. import planning
from .._core import version
from ..machine import info
from . import NAME
from .pools import Pools
from .steps import Options, Step

logger = logging.getLogger(__name__)


class Backend(AttentionBackend):
    """What SGLang asks of a backend, over its token slots where they lie.

    A layer that Pagemill cannot serve goes to SGLang's torch_native, which is said once; one that torch_native would
    get wrong is refused when the model is loaded.

    Args:
      runner: SGLang's ModelRunner, its model loaded.

    Raises NotImplementedError, naming option or layer, for what neither can serve.
    """

    def __init__(self, runner: Any) -> None:
        super().__init__()
        _refuse_options(runner)
        self._pool, self._pools = runner.token_to_kv_pool, Pools(runner)
        self._dtype = planning.dtype_name(runner.dtype)
        self._torch_native = TorchNativeAttnBackend(runner)
        self._served: dict[RadixAttention, bool] = {}
        for layer in runner.model.modules():
            if isinstance(layer, RadixAttention):
                self._serves(layer)
        alone = all(self._served.values()) and not _others_read_pools(runner)
        layout = "tiles" if alone and self._pools.pack() else "rows"
        logger.info("Attention by Pagemill %s (%s), KV cache in layout %s.", version(), info()["isa"], layout)

    def support_triton(self) -> bool:
        return False

    def init_forward_metadata(self, forward_batch: ForwardBatch) -> None:
        batch, mode = forward_batch, forward_batch.forward_mode
        if mode.is_target_verify() or mode.is_draft_extend_v2() or mode.is_dllm_extend():
            raise NotImplementedError(f"forward_mode = {mode.name}: expected EXTEND or DECODE")
        self.forward_metadata = Step(
            self._pools.slots(),
            batch.req_pool_indices,
            batch.seq_lens,
            None if mode.is_decode_or_idle() else batch.extend_seq_lens,
            batch.encoder_lens,
            batch.out_cache_loc,
        )
        if not all(self._served.values()):
            self._torch_native.init_forward_metadata(forward_batch)

    def forward_decode(
        self,
        q: torch.Tensor,
        k: torch.Tensor | None,
        v: torch.Tensor | None,
        layer: RadixAttention,
        forward_batch: ForwardBatch,
        save_kv_cache: bool = True,
        sinks: torch.Tensor | None = None,
        **unknown: Any,
    ) -> torch.Tensor:
        """As `forward_extend`, with one query a request."""
        _refuse_arguments(unknown)
        if not self._serves(layer):
            _refuse_sinks(layer, sinks)
            return self._torch_native.forward_decode(q, k, v, layer, forward_batch, save_kv_cache)
        return self._attend(q, k, v, layer, forward_batch, save_kv_cache, sinks)

    def forward_extend(
        self,
        q: torch.Tensor,  # [T, H * D] or [T, H, D]
        k: torch.Tensor | None,  # [T, K, D]; None: the layer reads what another has stored
        v: torch.Tensor | None,
        layer: RadixAttention,
        forward_batch: ForwardBatch,
        save_kv_cache: bool = True,
        sinks: torch.Tensor | None = None,  # [H]
        **unknown: Any,
    ) -> torch.Tensor:
        """Stores k and v in the layer's pool if save_kv_cache, and attends to it: [T, H * D], 0 in rows of padding.

        Raises NotImplementedError for arguments of other backends.
        """
        _refuse_arguments(unknown)
        if not self._serves(layer):
            _refuse_sinks(layer, sinks)
            return self._torch_native.forward_extend(q, k, v, layer, forward_batch, save_kv_cache)
        return self._attend(q, k, v, layer, forward_batch, save_kv_cache, sinks)

    def _attend(
        self,
        q: torch.Tensor,
        k: torch.Tensor | None,
        v: torch.Tensor | None,
        layer: RadixAttention,
        batch: ForwardBatch,
        save: bool,
        sinks: torch.Tensor | None,
    ) -> torch.Tensor:
        step, cache = self.forward_metadata, self._pools.cache(layer)
        assert isinstance(step, Step)
        q = q.reshape(-1, layer.tp_q_head_num, layer.qk_head_dim)
        fused = False
        if save and k is not None and v is not None:
            keys = self._pools.keys(layer)
            in_order = keys != "encoder" and len(k) == len(q) and step.stores_in_order(keys, cache.page_size)
            fused = in_order and self._pools.is_plain(keys)
            if fused:
                k, v = k.to(q.dtype), v.to(q.dtype)
            else:
                window_slots = step.window_slots(batch.out_cache_loc) if keys == "window" else None
                self._pool.set_kv_buffer(layer, KVWriteLoc.for_layer(batch, layer, swa_loc=window_slots), k, v)
        options = self._options(layer, planning.dtype_name(q.dtype), fused)
        out = torch.empty_like(q, memory_format=torch.contiguous_format)
        step.plan(options, cache).run(
            q,
            k,
            v,
            cache,
            out=out,
            scale=layer.scaling,
            soft_cap=layer.logit_cap or 0.0,
            sinks=None if sinks is None else sinks.detach().float(),
        )
        out[step.num_queries :] = 0
        return out.view(-1, layer.tp_q_head_num * layer.v_head_dim)

    def _options(self, layer: RadixAttention, dtype: str, fused: bool) -> Options:
        bidirectional = layer.attn_type in (AttentionType.ENCODER_ONLY, AttentionType.DECODER_BIDIRECTIONAL)
        window = -1 if layer.is_cross_attention else layer.sliding_window_size
        return Options(
            keys=self._pools.keys(layer),
            num_heads=layer.tp_q_head_num,
            dtype=dtype,
            causal=not (layer.is_cross_attention or bidirectional),
            window=-1 if window is None else window,
            write_cache=fused,
        )

    def _serves(self, layer: RadixAttention) -> bool:
        """Whether Pagemill serves the layer, decided and said once."""
        if layer not in self._served:
            reason = self._what_fails(layer)
            self._served[layer] = reason is None
            if reason is not None:
                self._refuse_wrong(layer, reason)
                logger.warning("Layer %d keeps SGLang's torch_native attention: %s.", layer.layer_id, reason)
        return self._served[layer]

    def _what_fails(self, layer: RadixAttention) -> str | None:
        """The library's own words on a step without requests of this layer's shape; None if it can."""
        if layer.qk_head_dim != layer.v_head_dim:
            return f"v_head_dim = {layer.v_head_dim}: expected {layer.qk_head_dim}, that of keys"
        if layer.logit_cap and layer.logit_capping_method != "tanh":
            return f"logit_capping_method = {layer.logit_capping_method}: expected tanh"
        if layer.xai_temperature_len > 0:
            return f"xai_temperature_len = {layer.xai_temperature_len}: expected none"
        none = torch.zeros(0, dtype=torch.int64)
        encoder = none if layer.is_cross_attention else None
        try:
            step = Step(self._pools.slots(), none, none, None, encoder, None)
            step.plan(self._options(layer, self._dtype, fused=False), self._pools.cache(layer))
        except (ValueError, TypeError, NotImplementedError) as error:
            return str(error)
        return None

    def _refuse_wrong(self, layer: RadixAttention, reason: str) -> None:
        """torch_native takes no notice of some options, and looks for tokens of one pool at their slots in another."""
        if (
            layer.logit_cap
            or layer.xai_temperature_len > 0
            or layer.attn_type == AttentionType.DECODER_BIDIRECTIONAL
            or self._pools.keys(layer) == "window"
        ):
            raise NotImplementedError(
                f"layer {layer.layer_id}: {reason}; SGLang's torch_native cannot serve the layer in its place"
            )


def _refuse_options(runner: Any) -> None:
    args, pool = runner.server_args, runner.token_to_kv_pool
    refused = {
        f"device = {runner.device}: expected cpu": runner.device != "cpu",
        "model with MLA: expected another, or --attention-backend torch_native": runner.use_mla_backend,
        f"speculative_algorithm = {args.speculative_algorithm}: expected none": args.speculative_algorithm is not None,
        f"dllm_algorithm = {args.dllm_algorithm}: expected none": args.dllm_algorithm is not None,
        "enable_torch_compile: expected off, there are no CPU graphs": args.enable_torch_compile,
        f"dcp_size = {args.dcp_size}: expected 1": args.dcp_size > 1,
        f"attn_cp_size = {args.attn_cp_size}: expected 1": args.attn_cp_size > 1,
        f"KV pool {type(pool).__name__}: expected SWAKVPool for windows": isinstance(pool, BaseSWAKVPool)
        and not isinstance(pool, SWAKVPool),
    }
    for reason, holds in refused.items():
        if holds:
            raise NotImplementedError(f"--attention-backend pagemill: {reason}")


def _others_read_pools(runner: Any) -> bool:
    """Whether others than this backend's layers read keys, write them or copy them token by token."""
    args = runner.server_args
    backends = {runner.prefill_attention_backend_str, runner.decode_attention_backend_str}
    return (
        backends != {NAME}
        or args.disaggregation_mode != "null"
        or args.enable_hierarchical_cache
        or runner.model_config.is_encoder_decoder
    )


def _refuse_arguments(unknown: dict[str, Any]) -> None:
    for name, value in unknown.items():
        if value is not None and value is not False:
            raise NotImplementedError(f"{name}: expected None, --attention-backend pagemill has no such argument")


def _refuse_sinks(layer: RadixAttention, sinks: torch.Tensor | None) -> None:
    if sinks is not None:
        raise NotImplementedError(f"layer {layer.layer_id}: sinks: expected None, torch_native has none")
