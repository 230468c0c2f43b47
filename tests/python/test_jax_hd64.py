"""The JAX front end for head dim 64 beside the TPU kernel's own reference."""

from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from tpu_calls import MIXED, expect_equal, random_call

BF16, F32 = jnp.bfloat16, jnp.float32


@pytest.mark.parametrize("heads", [(4, 4, 64), (12, 3, 64), (64, 8, 64)])
@pytest.mark.parametrize(
    ("options", "with_sink"),
    [
        ({}, False),
        ({}, True),
        ({"sliding_window": 5}, True),
        ({"soft_cap": 3.0}, False),
        ({"k_scale": 1.7, "v_scale": 0.6}, True),
    ],
)
@pytest.mark.parametrize("dtype", [BF16, F32])
def test_hd64(
    rng: np.random.Generator, heads: tuple[int, int, int], options: dict[str, Any], with_sink: bool, dtype: Any
) -> None:
    call = random_call(rng, MIXED, heads=heads, dtype=dtype, distribution=(3, 3), spare=2, head64=True)
    sink = jnp.asarray(rng.standard_normal(heads[0], np.float32)) + 2 if with_sink else None
    expect_equal(call, head64=True, sink=sink, sm_scale=0.125, **options)
