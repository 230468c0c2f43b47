"""Plans of the last steps, on the OpenMP threads of ATen."""

import threading
from collections import OrderedDict
from typing import Any

import torch

from .. import planning
from .._core import Cache, Plan


class Plans:
    """The last plans: the layers of a step bring the same metadata, and are planned for once."""

    CAPACITY = 16

    def __init__(self) -> None:
        self._plans: OrderedDict[tuple[Any, ...], Plan] = OrderedDict()
        self._lock = threading.Lock()
        self.made = 0

    def get(
        self,
        query_start: torch.Tensor,
        kv_len: torch.Tensor,
        page_table: torch.Tensor,
        cache: Cache,
        **options: Any,
    ) -> Plan:
        metadata = [x.numpy() for x in (query_start, kv_len, page_table)]
        geometry = (cache.layout, cache.dtype, cache.num_pages, cache.page_size, cache.num_kv_heads, cache.head_dim)
        key = (geometry, tuple(options.items()), *((x.dtype, x.shape, x.tobytes()) for x in metadata))
        with self._lock:
            plan = self._plans.get(key)
            if plan is None:
                plan = planning.plan(*metadata, cache, openmp=True, **options)
                self.made += 1
                self._plans[key] = plan
                if len(self._plans) > self.CAPACITY:
                    self._plans.popitem(last=False)
            self._plans.move_to_end(key)
        return plan
