"""What the layers of an SGLang step share: metadata, and the plans made from them."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch

from .. import planning
from .._core import Cache, Plan


class Options(NamedTuple):
    """Of a plan, what layers of one step may differ in."""

    keys: str  # whose keys: "full", "window" (the pool of layers with windows) or "encoder" (cross attention)
    num_heads: int
    dtype: str  # of q, k and v
    causal: bool
    window: int  # keys before its position that a query sees, and after it if not causal; -1: no bound
    write_cache: bool


@dataclass(frozen=True)
class Slots:
    """SGLang's pools as a step finds them."""

    req_to_token: torch.Tensor  # i32 [requests, context]: slot of each token; an encoder's tokens come first
    to_windows: Callable[[torch.Tensor], torch.Tensor] | None  # slots in the pool of layers with windows; None: no such


class Step:
    """One step; its plans are made when first asked for.

    Args:
      slots: the pools.
      requests: i64 [B], rows of req_to_token.
      kv_len: i64 [B], keys of each request's self-attention, new tokens included.
      q_len: i64 [B], or None: one each.
      encoder_len: i64 [B], tokens of each request's encoder; None without encoders.
      new_slots: i64 [T], where SGLang wants the new tokens.

    Not safe from several threads at once: SGLang runs the layers of a step one after the other.
    """

    def __init__(
        self,
        slots: Slots,
        requests: torch.Tensor,
        kv_len: torch.Tensor,
        q_len: torch.Tensor | None,
        encoder_len: torch.Tensor | None,
        new_slots: torch.Tensor | None,
    ) -> None:
        self._slots = slots
        self._requests = requests.numpy()
        self._kv_len = kv_len.numpy().astype(np.int32)
        self._q_len = np.ones_like(self._kv_len) if q_len is None else q_len.numpy().astype(np.int32)
        self._encoder_len = None if encoder_len is None else encoder_len.numpy().astype(np.int32)
        self.new_slots = new_slots
        self.query_start = np.concatenate([[0], np.cumsum(self._q_len)]).astype(np.int32)
        self._made: dict[Any, Any] = {}

    @property
    def num_queries(self) -> int:
        return int(self.query_start[-1])

    def plan(self, options: Options, cache: Cache) -> Plan:
        """The plan of layers with these options. cache: of one such layer."""
        geometry = (cache.layout, cache.dtype, cache.num_pages, cache.page_size, cache.num_kv_heads, cache.head_dim)
        return self._once((options, geometry), lambda: self._plan(options, cache))

    def _plan(self, options: Options, cache: Cache) -> Plan:
        table, rows = self._table(options.keys, cache.page_size)
        return planning.plan(
            self.query_start,
            self._encoder_len if options.keys == "encoder" else self._kv_len,
            table,
            cache,
            row_index=rows,
            num_heads=options.num_heads,
            dtype=options.dtype,
            causal=options.causal,
            window_left=options.window,
            window_right=-1 if options.causal else options.window,
            write_cache=options.write_cache,
            threads=torch.get_num_threads(),
            openmp=True,
        )

    def _table(self, keys: str, page_size: int) -> tuple[np.ndarray, np.ndarray | None]:
        """Page table, and each request's row: SGLang's own table wherever it serves as it is."""
        if page_size == 1 and (keys == "encoder" or (keys == "full" and self._encoder_len is None)):
            return self._slots.req_to_token.numpy(), self._requests
        return self._once(("table", keys, page_size), lambda: self._own_table(keys, page_size)), None

    def _own_table(self, keys: str, page_size: int) -> np.ndarray:
        longest = int(self._kv_len.max(initial=0))
        table = self._slots.req_to_token[torch.from_numpy(self._requests)]
        if self._encoder_len is not None:
            of_key = torch.arange(longest)[None] + torch.from_numpy(self._encoder_len)[:, None]
            table = table.gather(1, of_key.clamp(max=table.shape[1] - 1))
        table = table[:, :longest:page_size]
        if keys == "window":
            table = self.window_slots(table.long())
        return (table // page_size).to(torch.int32).numpy()

    def window_slots(self, slots: torch.Tensor) -> torch.Tensor:
        """The same tokens in the pool of layers with windows."""
        assert self._slots.to_windows is not None
        return self._slots.to_windows(slots)

    def stores_in_order(self, keys: str, page_size: int) -> bool:
        """Whether SGLang wants the new tokens where table and lengths put them, as a plan that writes assumes."""
        return self._once(("in order", keys), lambda: self._follows_table(keys, page_size))

    def _follows_table(self, keys: str, page_size: int) -> bool:
        table, rows = self._table(keys, page_size)
        slots = planning.new_slots(self.query_start, self._kv_len, table, page_size, rows)
        if slots is None or self.new_slots is None or len(self.new_slots) < len(slots):
            return False
        wanted = self.new_slots[: len(slots)]
        return np.array_equal(slots, (self.window_slots(wanted) if keys == "window" else wanted).numpy())

    def _once(self, key: Any, make: Callable[[], Any]) -> Any:
        if key not in self._made:
            self._made[key] = make()
        return self._made[key]
