"""Pagemill as an attention backend of SGLang on CPUs: installed beside it, `--attention-backend pagemill` takes it.

SGLang finds `register` by the entry point `sglang.srt.plugins` and calls it in each of its processes.
"""

from typing import Any

NAME = "pagemill"


def register() -> None:
    """Makes the name known to SGLang; loads neither PyTorch nor kernels. Any number of calls."""
    from sglang.srt.arg_groups.choices import ATTENTION_BACKEND_CHOICES, add_attention_backend_choices
    from sglang.srt.layers.attention.attention_registry import register_attention_backend

    if NAME not in ATTENTION_BACKEND_CHOICES:
        add_attention_backend_choices([NAME])
    register_attention_backend(NAME)(_create)


def _create(runner: Any) -> Any:
    from .backend import Backend

    return Backend(runner)
