"""The lines of README.md for PyTorch run as they stand there."""

import re
import textwrap
from pathlib import Path
from typing import Any

import torch


def test_readme() -> None:
    text = (Path(__file__).resolve().parents[2] / "README.md").read_text()
    (block,) = re.findall(r"^    import pagemill\.torch\n(?:    .*\n)+", text, re.MULTILINE)
    sizes = {"num_layers": 2, "num_pages": 8, "page_size": 16, "num_kv_heads": 2, "head_dim": 64, "prompt_tokens": 25}
    names: dict[str, Any] = {**sizes, "layer": 1, "q": torch.ones(25, 8, 64).bfloat16()}
    names["k_new"] = names["v_new"] = torch.ones(25, 2, 64).bfloat16()
    exec(compile(textwrap.dedent(block), "README.md", "exec"), names)
    assert (names["out"] == 1).all()
