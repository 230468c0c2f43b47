"""Random steps, and what they must give: the formula in float64."""

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np


@dataclass
class Options:
    """Of the call, with the names that pagemill has for them."""

    causal: bool | list[bool] = True
    window_left: int | None = None
    window_right: int | None = None
    scale: float | None = None
    soft_cap: float = 0.0
    q_scale: float = 1.0
    k_scale: float = 1.0
    v_scale: float = 1.0
    sinks: np.ndarray | None = None  # [H]
    alibi_slopes: np.ndarray | None = None  # [H]

    def of_plan(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in ("causal", "window_left", "window_right")}

    def of_run(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name not in self.of_plan()}


@dataclass
class Step:
    """Keys and values of whole sequences; the last q_len[b] of each are the step's new ones."""

    q: np.ndarray  # [T, H, D]
    keys: list[np.ndarray]  # B times [S, K, D], as the cache is to hold them once k_scale is divided out
    values: list[np.ndarray]
    q_len: list[int]
    page_table: np.ndarray  # [B, pages_per_seq], shuffled
    page_size: int
    num_pages: int
    options: Options = field(default_factory=Options)

    @property
    def kv_len(self) -> np.ndarray:
        return np.array([len(k) for k in self.keys], np.int32)

    @property
    def query_start(self) -> np.ndarray:
        return np.concatenate([[0], np.cumsum(self.q_len)]).astype(np.int32)

    @property
    def k_new(self) -> np.ndarray:
        return np.concatenate([k[len(k) - n :] for k, n in zip(self.keys, self.q_len, strict=True)])

    @property
    def v_new(self) -> np.ndarray:
        return np.concatenate([v[len(v) - n :] for v, n in zip(self.values, self.q_len, strict=True)])


def normal(rng: np.random.Generator, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    return rng.standard_normal(shape, np.float32).astype(dtype)


def random_step(
    rng: np.random.Generator,
    dtype: Any,
    lengths: list[tuple[int, int]],  # (q_len, kv_len) of each sequence
    heads: tuple[int, int, int] = (8, 2, 64),  # H, K, D
    page_size: int = 16,
    **options: Any,
) -> Step:
    h, k, d = heads
    pages_per_seq = max(-(-kv_len // page_size) for _, kv_len in lengths) + 1
    num_pages = len(lengths) * pages_per_seq + 3
    table = rng.permutation(num_pages)[: len(lengths) * pages_per_seq].reshape(len(lengths), -1).astype(np.int32)
    return Step(
        q=normal(rng, (sum(q_len for q_len, _ in lengths), h, d), dtype),
        keys=[normal(rng, (kv_len, k, d), dtype) for _, kv_len in lengths],
        values=[normal(rng, (kv_len, k, d), dtype) for _, kv_len in lengths],
        q_len=[q_len for q_len, _ in lengths],
        page_table=table,
        page_size=page_size,
        num_pages=num_pages,
        options=Options(**options),
    )


def filled_rows(step: Step, dtype: Any, *, through: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """K and V as [pages, P, K, D] that hold the keys before the step (or through it); NaN elsewhere."""
    _, heads, dim = step.keys[0].shape
    planes = []
    for sequences, scale in ((step.keys, step.options.k_scale), (step.values, step.options.v_scale)):
        plane = np.full((step.num_pages, step.page_size, heads, dim), np.nan, dtype)
        for b, rows in enumerate(sequences):
            stored = (rows.astype(np.float32) / np.float32(scale)).astype(dtype)
            for j in range(len(rows) - (0 if through else step.q_len[b])):
                plane[step.page_table[b, j // step.page_size], j % step.page_size] = stored[j]
        planes.append(plane)
    return planes[0], planes[1]


@dataclass
class Expected:
    out: np.ndarray  # f64 [T, H, D]
    lse: np.ndarray  # f64 [T, H]
    mass: np.ndarray  # f64 [T, H, D], sum p |v|: what the bound of errors is a multiple of


def attention(step: Step, cache_dtype: Any) -> Expected:
    """softmax(scale * q . k) v of each query over the keys that it sees."""
    o = step.options
    tokens, num_heads, dim = step.q.shape
    result = Expected(np.zeros((tokens, num_heads, dim)), np.zeros((tokens, num_heads)), np.zeros(step.q.shape))
    scale = (1 / np.sqrt(dim) if o.scale is None else o.scale) * o.q_scale
    row = 0
    for b, (keys, values) in enumerate(zip(step.keys, step.values, strict=True)):
        group = num_heads // keys.shape[1]
        # as the cache holds them: rounded
        k, v = (
            (x.astype(np.float32) / np.float32(s)).astype(cache_dtype).astype(np.float64) * s
            for x, s in ((keys, o.k_scale), (values, o.v_scale))
        )
        causal = o.causal[b] if isinstance(o.causal, list) else o.causal
        for i in range(step.q_len[b]):
            position = len(keys) - step.q_len[b] + i
            j = np.arange(len(keys))
            seen = (j <= position) | (not causal)
            if o.window_left is not None:
                seen &= j >= position - o.window_left
            if o.window_right is not None:
                seen &= j <= position + o.window_right
            for h in range(num_heads):
                s = scale * (k[seen, h // group] @ step.q[row, h].astype(np.float64))
                if o.soft_cap:
                    s = o.soft_cap * np.tanh(s / o.soft_cap)
                if o.alibi_slopes is not None:
                    s = s - o.alibi_slopes[h] * np.abs(position - j[seen])
                logits = s if o.sinks is None else np.append(s, o.sinks[h])
                lse = np.logaddexp.reduce(logits) if len(logits) else -np.inf
                p = np.exp(s - lse)
                result.lse[row, h] = lse
                result.out[row, h] = p @ v[seen, h // group]
                result.mass[row, h] = p @ np.abs(v[seen, h // group])
            row += 1
    return result


def worst_error(out: np.ndarray, expected: Expected, *, products_bf16: bool) -> float:
    """Largest |out - expected| in units of the bound that the library promises: 1 is the most that is allowed."""
    rounding = {2: 2.0**-8 if out.dtype.name == "bfloat16" else 2.0**-11, 4: 2.0**-24}[out.dtype.itemsize]
    products = 2.0**-8 if products_bf16 else 2.0**-16
    bound = rounding * np.abs(expected.out) + products * expected.mass
    error = np.abs(out[: len(expected.out)].astype(np.float64) - expected.out)
    if not np.isfinite(error).all():
        return np.inf
    return float((error / np.maximum(bound, 1e-30)).max()) if error.size else 0.0


def with_options(step: Step, **changes: Any) -> Step:
    return replace(step, options=replace(step.options, **changes))
