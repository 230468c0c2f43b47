"""Attention by its formula, in float64, over SGLang's pools."""

from typing import Any

import torch
from sglang.srt.layers.attention.base_attn_backend import AttentionBackend
from sglang.srt.layers.radix_attention import AttentionType, RadixAttention
from sglang.srt.mem_cache.memory_pool import KVWriteLoc
from sglang.srt.mem_cache.swa_memory_pool import SWAKVPool
from sglang.srt.model_executor.forward_batch_info import ForwardBatch


def attend(
    q: torch.Tensor,  # [n, H, D]
    k: torch.Tensor,  # [S, K, D]
    v: torch.Tensor,
    *,
    first: int,  # position of the first query
    scale: float,
    causal: bool = True,
    window: int = -1,  # keys before a query, and after it if not causal, that it sees
    soft_cap: float = 0.0,
    sinks: torch.Tensor | None = None,  # [H]
) -> torch.Tensor:
    group = q.shape[1] // k.shape[1]
    keys, values = (x.double().repeat_interleave(group, dim=1) for x in (k, v))
    scores = torch.einsum("nhd,shd->hns", q.double(), keys) * scale
    if soft_cap:
        scores = soft_cap * torch.tanh(scores / soft_cap)
    distance = first + torch.arange(len(q))[:, None] - torch.arange(len(k))[None]
    hidden = torch.zeros_like(distance, dtype=torch.bool)
    if causal:
        hidden |= distance < 0
    if window >= 0:
        hidden |= distance.abs() > window if not causal else distance > window
    scores = scores.masked_fill(hidden, -torch.inf)
    if sinks is not None:
        scores = torch.cat([scores, sinks.double()[:, None, None].expand(-1, len(q), 1)], dim=2)
    weights = torch.softmax(scores, dim=2)[:, :, : len(k)]
    return torch.einsum("hns,shd->nhd", weights, values)


class FormulaBackend(AttentionBackend):
    """An attention backend of SGLang for what its torch_native gets wrong: soft cap, sinks, pools of windows."""

    def __init__(self, runner: Any) -> None:
        super().__init__()
        self.requests, self.pool = runner.req_to_token_pool, runner.token_to_kv_pool

    def support_triton(self) -> bool:
        return False

    def init_forward_metadata(self, forward_batch: ForwardBatch) -> None:
        pass

    def forward_decode(self, *arguments: Any, **options: Any) -> torch.Tensor:
        return self.forward_extend(*arguments, **options)

    def forward_extend(
        self,
        q: torch.Tensor,
        k: torch.Tensor | None,
        v: torch.Tensor | None,
        layer: RadixAttention,
        forward_batch: ForwardBatch,
        save_kv_cache: bool = True,
        sinks: torch.Tensor | None = None,
    ) -> torch.Tensor:
        batch, pool = forward_batch, self.pool
        windows = isinstance(pool, SWAKVPool) and pool.layers_mapping[layer.layer_id][1]
        if save_kv_cache and k is not None:
            other = pool.translate_loc_from_full_to_swa(batch.out_cache_loc) if windows else None
            pool.set_kv_buffer(layer, KVWriteLoc.for_layer(batch, layer, swa_loc=other), k, v)
        keys, values = pool.get_key_buffer(layer.layer_id), pool.get_value_buffer(layer.layer_id)
        q = q.reshape(-1, layer.tp_q_head_num, layer.qk_head_dim)
        out = torch.zeros(len(q), layer.tp_q_head_num, layer.v_head_dim, dtype=q.dtype)
        counts = [1] * batch.batch_size if batch.forward_mode.is_decode() else batch.extend_seq_lens.tolist()
        begin = 0
        for i, count in enumerate(counts):
            total = int(batch.seq_lens[i])
            encoder = 0 if batch.encoder_lens is None else int(batch.encoder_lens[i])
            row = self.requests.req_to_token[batch.req_pool_indices[i]].long()
            row = row[:encoder] if layer.is_cross_attention else row[encoder : encoder + total]
            if windows:
                row = pool.translate_loc_from_full_to_swa(row)
            out[begin : begin + count] = attend(
                q[begin : begin + count],
                keys[row],
                values[row],
                first=total - count,
                scale=layer.scaling,
                causal=not layer.is_cross_attention and layer.attn_type == AttentionType.DECODER,
                window=-1 if layer.is_cross_attention else layer.sliding_window_size,
                soft_cap=layer.logit_cap,
                sinks=sinks,
            ).to(q.dtype)
            begin += count
        return out.view(len(q), -1)
