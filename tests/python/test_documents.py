"""The Python of README.md and docs/ runs as it stands there."""

import re
from pathlib import Path

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", ROOT / "docs/python.md", ROOT / "docs/jax.md"]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_blocks(page: Path) -> None:
    blocks = re.findall(r"^```python\n(.*?)^```$", page.read_text(), re.DOTALL | re.MULTILINE)
    assert blocks
    bf16 = ml_dtypes.bfloat16
    names = {  # of a step of two sequences, which the shortest examples begin with
        "q": np.ones((25, 32, 128), bf16),
        "k_new": np.ones((25, 8, 128), bf16),
        "v_new": np.ones((25, 8, 128), bf16),
        "page_table": np.array([[7, 3, 12], [5, 9, 0]], np.int32),
        "queries": jnp.ones((25, 32, 128), jnp.bfloat16),
        "keys": jnp.ones((25, 8, 128), jnp.bfloat16),
        "values": jnp.ones((25, 8, 128), jnp.bfloat16),
        "kv_cache": jnp.ones((64, 16, 8, 2, 128), jnp.bfloat16),
        "kv_lens": jnp.array([40, 24], jnp.int32),
        "page_indices": jnp.array([7, 3, 12, 5, 9, 0], jnp.int32),
        "cu_q_lens": jnp.array([0, 1, 25], jnp.int32),
        "distribution": jnp.array([0, 0, 2], jnp.int32),
    }
    for block in blocks:
        exec(compile(block, page.name, "exec"), names)
        assert (np.asarray(names["out"]).astype(np.float32) == 1).all()
