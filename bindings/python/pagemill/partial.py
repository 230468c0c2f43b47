"""Attention over disjoint sets of keys, put together by lse."""

from typing import Any

import numpy as np

from ._core import merge_into


def merge(
    a: Any,
    lse_a: Any,
    b: Any,
    lse_b: Any,
    *,
    out: Any = None,
    out_lse: Any = None,
) -> tuple[Any, Any]:
    """Merges two partial results of the same queries over disjoint keys. With m = max(lse_a, lse_b),

        lse = m + ln(exp(lse_a - m) + exp(lse_b - m)),  out = exp(lse_a - lse) a + exp(lse_b - lse) b

    and out 0, lse -inf where both are -inf.

    Args:
      a, b: [..., D] of one dtype, contiguous, such as two results [T, H, D] of `Plan.run`.
      lse_a, lse_b: f32 [...], contiguous.
      out, out_lse: where to write, None for new NumPy arrays. out may be a or b and out_lse may be lse_a or lse_b;
        other overlap is not allowed.

    Returns:
      (out, lse)

    Raises:
      TypeError: another dtype. ValueError: shapes that differ, arrays that are not contiguous or read-only.

    Releases the GIL; safe from several threads that write different arrays.
    """
    out = np.empty_like(a) if out is None else out
    out_lse = np.empty_like(lse_a) if out_lse is None else out_lse
    merge_into(a, lse_a, b, lse_b, out, out_lse)
    return out, out_lse
