"""SGLang's pools of keys and values, as caches of Pagemill."""

from typing import Any, NoReturn

import torch
from sglang.srt.layers.radix_attention import RadixAttention
from sglang.srt.mem_cache.memory_pool import MHATokenToKVPool
from sglang.srt.mem_cache.swa_memory_pool import SWAKVPool

from .._core import Cache
from .steps import Slots

GROUP, LARGEST_PAGE = 16, 1024  # tokens: pages of layout tiles are multiples of the one, up to the other


class Pools:
    """The pools of a ModelRunner. A layer's cache lies in SGLang's own memory.

    Layout `rows` reads SGLang's token slots as they are, as pages of one token. After `pack`, pages of the layers
    without windows hold layout `tiles`, which is faster, in the same bytes: a page of SGLang's is one run of memory.
    """

    def __init__(self, runner: Any) -> None:
        self._requests, self._pool = runner.req_to_token_pool, runner.token_to_kv_pool
        self._has_windows = isinstance(self._pool, SWAKVPool) and self._pool.swa_layer_nums > 0
        self._page_size = 1  # of layers without windows
        self._caches: dict[int, tuple[tuple[int, int], Cache]] = {}

    def slots(self) -> Slots:
        to_windows = self._pool.translate_loc_from_full_to_swa if self._has_windows else None
        return Slots(self._requests.req_to_token, to_windows)

    def keys(self, layer: RadixAttention) -> str:
        """Whose keys the layer reads: as Options.keys."""
        if layer.is_cross_attention:
            return "encoder"
        return "window" if self._has_windows and self._pool.layers_mapping[layer.layer_id][1] else "full"

    def is_plain(self, keys: str) -> bool:
        """Whether a row of the pool is a token's keys and nothing else, so that Pagemill may store them itself."""
        pool = self._storage(keys)
        return type(pool) is MHATokenToKVPool and pool.kv_cache_layout == "nhd" and not pool.is_quantized_kv_cache

    def cache(self, layer: RadixAttention) -> Cache:
        """The layer's cache. Raises as `pagemill.Cache`."""
        k, v = self._pool.get_key_buffer(layer.layer_id), self._pool.get_value_buffer(layer.layer_id)
        place = k.data_ptr(), v.data_ptr()
        known = self._caches.get(layer.layer_id)
        if known is None or known[0] != place:
            tiles = self.keys(layer) == "full" and self._page_size > 1
            known = self._caches[layer.layer_id] = place, self._tiles(k, v) if tiles else _rows(k, v)
        return known[1]

    def pack(self) -> bool:
        """Layout `tiles` from now on, where SGLang's pages allow it. To be called before the first step."""
        storage = self._storage("full")
        if not self.is_plain("full") or storage.page_size % GROUP or storage.page_size > LARGEST_PAGE:
            return False
        self._page_size = storage.page_size
        self._caches.clear()

        def refuse(*_: Any, **__: Any) -> NoReturn:
            raise NotImplementedError("--attention-backend pagemill: pages hold layout tiles, which it alone may write")

        storage.set_kv_buffer = storage.move_kv_cache = refuse
        return True

    def _storage(self, keys: str) -> Any:
        pool = self._pool
        if isinstance(pool, SWAKVPool):
            return pool.swa_kv_pool if keys == "window" else pool.full_kv_pool
        return getattr(pool, "full_kv_pool", pool)  # of models that mix attention with state spaces

    def _tiles(self, k: torch.Tensor, v: torch.Tensor) -> Cache:
        _, heads, dim = k.shape
        pages, r = len(k) // self._page_size, 4 // k.itemsize
        k, v = (x[: pages * self._page_size] for x in (k, v))
        return Cache(
            k.view(pages, heads, self._page_size // GROUP, dim // r, GROUP, r),
            v.view(pages, heads, self._page_size // r, dim, r),
            "tiles",
        )


def _rows(k: torch.Tensor, v: torch.Tensor) -> Cache:
    if k.dim() != 3:
        raise NotImplementedError(f"buffers {list(k.shape)} of the KV pool: expected [slots, K, D]")
    return Cache(k[:, None], v[:, None])
