"""Stands in for SGLang's package of CPU kernels, which PyPI does not have: SGLang imports names from it, which raise
when called. Of the tests alone."""

from collections.abc import Callable
from typing import Any


def __getattr__(name: str) -> Callable[..., Any]:
    if name.startswith("__"):
        raise AttributeError(name)

    def missing(*_: Any, **__: Any) -> None:
        raise NotImplementedError(f"sgl_kernel.{name}: this machine has a stand-in without kernels")

    return missing
