"""Pagemill as the CPU attention of vLLM: installed beside it, it needs no option.

vLLM finds `register` by the entry point `vllm.general_plugins` and calls it in each of its processes. Environment:
PAGEMILL_VLLM=0 leaves vLLM as it is.
"""

import os

BACKEND = "pagemill.vllm.backend.Backend"


def register() -> None:
    """Puts Pagemill in the place of vLLM's CPU_ATTN; loads neither PyTorch nor kernels. Any number of calls.

    Raises ValueError for a PAGEMILL_VLLM other than 0 and 1.
    """
    switch = os.environ.get("PAGEMILL_VLLM", "1")
    if switch not in ("0", "1"):
        raise ValueError(f"PAGEMILL_VLLM = {switch!r}: expected 0 or 1")
    if switch == "0":
        return
    from vllm.v1.attention.backends.registry import AttentionBackendEnum, register_backend

    register_backend(AttentionBackendEnum.CPU_ATTN, BACKEND)
