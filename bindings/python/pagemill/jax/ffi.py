"""The library's call as an operation of XLA, through its foreign function interface."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .. import _core

FP8 = ("float8_e4m3fn", "float8_e5m2")

for _name, _handler in _core.jax_handlers.items():
    jax.ffi.register_ffi_target(_name, _handler, platform="cpu")


def call(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    kv_cache: jax.Array,
    metadata: tuple[jax.Array, ...],
    sinks: jax.Array | None,
    *,
    out_dtype: Any,
    sm_scale: float,
    q_scale: float | None,
    k_scale: float | None,
    v_scale: float | None,
    sliding_window: int | None,
    soft_cap: float | None,
    causal: bool,
    update: bool,
    head64: bool,
) -> tuple[jax.Array, jax.Array]:
    """(output, cache) of arguments that `checks` has passed. head64: the cache is of `ragged_paged_attention_hd64`."""
    head_dim = q.shape[2]
    if q_scale is not None:
        limits = jnp.finfo(kv_cache.dtype)
        q = jnp.clip(q / q_scale, float(limits.min), float(limits.max)).astype(kv_cache.dtype)
    # The library takes q, k and v of one dtype. Widening k and v is exact, and they are stored as they were.
    dtype = common_dtype(q.dtype, kv_cache.dtype)
    padding = ((0, 0), (0, 0), (0, -head_dim % 8))
    q, k, v = (jnp.pad(x.astype(dtype), padding) for x in (q, k, v))
    _core.expect_supported(
        num_heads=q.shape[1], num_kv_heads=k.shape[1], head_dim=q.shape[2], page_size=kv_cache.shape[1]
    )
    out_dtype = jnp.dtype(out_dtype)
    computed = dtype if out_dtype == dtype and v_scale is None else jnp.dtype(jnp.float32)
    scale = sm_scale * (q_scale or 1.0) * (k_scale or 1.0)
    operands = (q, k, v, kv_cache, *metadata, jnp.zeros((0,), jnp.float32) if sinks is None else sinks)
    out_type = jax.ShapeDtypeStruct(q.shape, computed)
    options = {
        "causal": causal,
        "window": np.int64(min(sliding_window or 0, np.iinfo(np.int32).max)),
        # 0 would stand for 1 / sqrt(D)
        "scale": np.float32(scale or np.finfo(np.float32).tiny),
        "soft_cap": np.float32(abs(soft_cap or 0.0)),
        "head64": head64,
    }
    if update:
        target, types, aliases = "pagemill_update_and_attend", (out_type, type_of(kv_cache)), {3: 1}
        out, kv_cache = _operation(target, types, aliases, tuple(options.items()), *operands)
    else:
        (out,) = _operation("pagemill_attend", (out_type,), {}, tuple(options.items()), *operands)
    if v_scale is not None:
        out = out * v_scale
    return out[..., :head_dim].astype(out_dtype), kv_cache


def common_dtype(q: Any, kv: Any) -> Any:
    if q.name in FP8:
        q = jnp.dtype(jnp.bfloat16)
    return q if kv.name in FP8 else jnp.promote_types(q, kv)


def type_of(x: jax.Array) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(x.shape, x.dtype)


@functools.partial(jax.custom_jvp, nondiff_argnums=(0, 1, 2, 3))
def _operation(target: str, types: Any, aliases: dict[int, int], options: Any, *operands: jax.Array) -> Any:
    return jax.ffi.ffi_call(target, types, input_output_aliases=aliases)(*operands, **dict(options))


@_operation.defjvp
def _no_gradient(*_: Any) -> Any:
    raise NotImplementedError(
        "pagemill.jax: ragged paged attention has no gradient: expected it outside of what grad, jvp, vjp differentiate"
    )
