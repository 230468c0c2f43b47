"""SGLang's pools with a step in them, without its engine: what a backend is given."""

from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import torch
from sglang.srt.layers.radix_attention import RadixAttention
from sglang.srt.mem_cache.memory_pool import MHATokenToKVPool, ReqToTokenPool
from sglang.srt.mem_cache.swa_memory_pool import SWAKVPool
from sglang.srt.model_executor.forward_batch_info import ForwardBatch, ForwardMode

MIXED = [(1, 40), (5, 5), (24, 70), (1, 1), (17, 90)]  # new tokens and keys of each request


@dataclass
class World:
    """Pools of random keys and one step. The same arguments make the same world.

    windows: a pool of their own for layers with windows (layer 1). encoder: tokens of each request's encoder.
    """

    requests: list[tuple[int, int]] = field(default_factory=lambda: MIXED)
    dtype: torch.dtype = torch.float32
    cache_dtype: torch.dtype | None = None  # None: dtype
    page_size: int = 1
    windows: bool = False
    encoder: list[int] | None = None
    num_kv_heads: int = 2
    head_dim: int = 64
    v_head_dim: int = 64
    layers: int = 2

    def __post_init__(self) -> None:
        self.random = torch.Generator().manual_seed(11)
        lengths = [n + e for (_, n), e in zip(self.requests, self.encoder or [0] * len(self.requests), strict=True)]
        self.table = ReqToTokenPool(len(lengths) + 4, max(lengths) + 4, "cpu", False)
        self.slots = sum(lengths) // self.page_size * self.page_size + (len(lengths) + 4) * self.page_size
        shape = {"page_size": self.page_size, "head_num": self.num_kv_heads, "head_dim": self.head_dim, "device": "cpu"}
        if self.windows:
            self.pool = SWAKVPool(
                size=self.slots,
                size_swa=self.slots,
                dtype=self.cache_dtype or self.dtype,
                swa_attention_layer_ids=[1],
                full_attention_layer_ids=[0],
                **shape,
            )
            mapping = torch.randperm(self.slots + self.page_size, generator=self.random)
            self.pool.register_mapping(torch.cat([mapping, torch.tensor([-1])]))
        else:
            self.pool = MHATokenToKVPool(
                self.slots,
                dtype=self.cache_dtype or self.dtype,
                layer_num=self.layers,
                enable_memory_saver=False,
                v_head_dim=self.v_head_dim,
                **shape,
            )
        for layer in range(self.layers):
            for buffer in (self.pool.get_key_buffer(layer), self.pool.get_value_buffer(layer)):
                buffer.copy_(torch.randn(buffer.shape, generator=self.random))
        self._place()

    def _place(self) -> None:
        """Gives each request a row and slots, by pages in any order."""
        self.rows = torch.randperm(len(self.requests) + 4, generator=self.random)[: len(self.requests)] + 1
        pages = (torch.randperm(self.slots // self.page_size, generator=self.random) + 1).tolist()
        new, of_encoder = [], []
        for i, (row, (q_len, kv_len)) in enumerate(zip(self.rows, self.requests, strict=True)):
            before = self.encoder[i] if self.encoder else 0
            taken = [pages.pop() for _ in range(-(-(before + kv_len) // self.page_size))]
            slots = torch.cat([p * self.page_size + torch.arange(self.page_size) for p in taken])[: before + kv_len]
            self.table.req_to_token[row, : before + kv_len] = slots.to(torch.int32)
            new.append(slots[before + kv_len - q_len :])
            of_encoder.append(slots[:before])
        self.new_slots, self.encoder_slots = torch.cat(new), torch.cat(of_encoder)
        self.tokens = len(self.new_slots)

    def randn(self, *shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=self.random).to(self.dtype)

    def batch(self) -> ForwardBatch:
        q_len, kv_len = (torch.tensor(x) for x in zip(*self.requests, strict=True))
        decode = all(q == 1 for q, _ in self.requests)
        batch = ForwardBatch(
            forward_mode=ForwardMode.DECODE if decode else ForwardMode.EXTEND,
            batch_size=len(self.requests),
            input_ids=torch.zeros(self.tokens, dtype=torch.int64),
            req_pool_indices=self.rows,
            seq_lens=kv_len,
            out_cache_loc=self.new_slots,
            seq_lens_sum=int(kv_len.sum()),
        )
        if not decode:
            batch.extend_seq_lens, batch.extend_prefix_lens = q_len, kv_len - q_len
        if self.encoder:
            batch.encoder_lens = torch.tensor(self.encoder)
            batch.encoder_out_cache_loc = self.encoder_slots
        return batch

    def runner(self, *layers: RadixAttention, **options: Any) -> Any:
        """What a backend reads of SGLang's ModelRunner."""
        args = {
            "speculative_algorithm": None,
            "dllm_algorithm": None,
            "enable_torch_compile": False,
            "dcp_size": 1,
            "attn_cp_size": 1,
            "disaggregation_mode": "null",
            "enable_hierarchical_cache": False,
        }
        known = {
            "device": "cpu",
            "dtype": self.dtype,
            "use_mla_backend": False,
            "prefill_attention_backend_str": "pagemill",
            "decode_attention_backend_str": "pagemill",
        }
        for name, value in options.items():
            (args if name in args else known)[name] = value
        return SimpleNamespace(
            req_to_token_pool=self.table,
            token_to_kv_pool=self.pool,
            model=torch.nn.ModuleList(layers),
            model_config=SimpleNamespace(is_encoder_decoder=self.encoder is not None),
            server_args=SimpleNamespace(**args),
            **known,
        )


def layer(layer_id: int = 0, **options: Any) -> RadixAttention:
    shape = {"num_heads": 8, "head_dim": 64, "scaling": 0.11, "num_kv_heads": 2}
    return RadixAttention(layer_id=layer_id, **(shape | options))
