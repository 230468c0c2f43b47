"""A plugin of SGLang for tests: --attention-backend switching is, step by step, the attention that a file names. So one
engine answers with each of them, over pools in SGLang's own layout (page size 1)."""

import os
from pathlib import Path
from typing import Any

import torch


def register() -> None:
    from sglang.srt.arg_groups.choices import add_attention_backend_choices
    from sglang.srt.layers.attention.attention_registry import register_attention_backend

    add_attention_backend_choices(["switching"])
    register_attention_backend("switching")(_create)


def _create(runner: Any) -> Any:
    from reference import FormulaBackend
    from sglang.srt.layers.attention.base_attn_backend import AttentionBackend
    from sglang.srt.layers.attention.torch_native_backend import TorchNativeAttnBackend

    from pagemill.sglang.backend import Backend

    class Halved(Backend):
        """Wrong by half the scale."""

        def _attend(self, q: torch.Tensor, *arguments: Any) -> torch.Tensor:
            return super()._attend(q * 0.5, *arguments)

    class Switching(AttentionBackend):
        def __init__(self) -> None:
            super().__init__()
            self.backends = {
                "torch_native": TorchNativeAttnBackend(runner),
                "formula": FormulaBackend(runner),
                "pagemill": Backend(runner),
                "halved": Halved(runner),
            }

        def support_triton(self) -> bool:
            return False

        def init_forward_metadata(self, forward_batch: Any) -> None:
            self.current = self.backends[Path(os.environ["PAGEMILL_TESTS_SWITCH"]).read_text()]
            self.current.init_forward_metadata(forward_batch)

        def forward_decode(self, *arguments: Any, **options: Any) -> torch.Tensor:
            return self.current.forward_decode(*arguments, **options)

        def forward_extend(self, *arguments: Any, **options: Any) -> torch.Tensor:
            return self.current.forward_extend(*arguments, **options)

    return Switching()
