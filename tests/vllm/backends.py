"""Pagemill's backend, changed as tests need it."""

from itertools import count
from typing import Any

from pagemill.vllm.attention import Attention
from pagemill.vllm.backend import Backend


class HalvedAttention(Attention):
    """Wrong: scores of half their size. What compares answers must notice it."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.scale /= 2


class HalvedBackend(Backend):
    @staticmethod
    def get_impl_cls() -> type[Attention]:
        return HalvedAttention


class AlternatingAttention(Attention):
    """Every other layer as if Pagemill could not serve it."""

    layers = count()

    def _what_fails(self) -> str | None:
        return "a test says so" if next(self.layers) % 2 else super()._what_fails()


class AlternatingBackend(Backend):
    @staticmethod
    def get_impl_cls() -> type[Attention]:
        return AlternatingAttention
