"""Attention for HuggingFace transformers, over the caches of its models."""

import math
from typing import Any

import torch


def _slots(key: torch.Tensor, value: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """[B, K, S, D] as token slots [slots, 1, K, D] over the same memory, and the slots [B, S] of the tokens."""
    if key.stride() != value.stride() or key.stride(3) != 1:
        key, value = key.contiguous(), value.contiguous()
    batch, heads, length, dim = key.shape
    of_seq, of_head, of_token, _ = key.stride()
    slot = math.gcd(of_seq, of_token)
    table = (torch.arange(batch)[:, None] * of_seq + torch.arange(length) * of_token) // slot
    count = ((batch - 1) * of_seq + (length - 1) * of_token) // slot + 1
    rows = [x.as_strided((count, 1, heads, dim), (slot, slot, of_head, 1)) for x in (key, value)]
    return rows[0], rows[1], table.to(torch.int32)


def transformers_attention(
    module: torch.nn.Module,
    query: torch.Tensor,  # [B, H, T, D]
    key: torch.Tensor,  # [B, K, S, D], the new tokens included
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,  # [B, S], nonzero where there is a token; None: everywhere
    dropout: float = 0.0,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    is_causal: bool | None = None,
    s_aux: torch.Tensor | None = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """Attention as transformers' models call it, over their own cache, read in place. Returns ([B, T, H, D], None)."""
    if dropout:
        raise NotImplementedError(f"dropout = {dropout}: expected 0, there is no gradient")
    batch, heads, new, dim = query.shape
    length = key.shape[2]
    k_cache, v_cache, slots = _slots(key.detach(), value.detach())
    kept = torch.ones(batch, length, dtype=torch.bool) if attention_mask is None else attention_mask[:, -length:].bool()
    kv_len, q_kept = kept.sum(1), kept[:, length - new :]
    order = kept.int().argsort(dim=1, descending=True, stable=True)  # slots of tokens first, in their order
    table = slots.gather(1, order)
    starts = torch.cat([torch.zeros(1, dtype=torch.int64), q_kept.sum(1).cumsum(0)])
    out, _ = torch.ops.pagemill.attention(
        query.detach().transpose(1, 2)[q_kept],
        None,
        None,
        k_cache,
        v_cache,
        starts.to(torch.int32),
        kv_len.to(torch.int32),
        table,
        causal=getattr(module, "is_causal", True) if is_causal is None else is_causal,
        window_left=-1 if sliding_window is None else sliding_window - 1,
        write_cache=False,
        scale=scaling,
        soft_cap=softcap or 0.0,
        sinks=None if s_aux is None else s_aux.detach().float(),
    )
    result = out.new_zeros(batch, new, heads, dim)
    result[q_kept] = out
    return result, None


def register_transformers() -> None:
    """Makes `attn_implementation="pagemill"` known to transformers."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import flash_attention_mask

    AttentionInterface.register("pagemill", transformers_attention)
    AttentionMaskInterface.register("pagemill", flash_attention_mask)
