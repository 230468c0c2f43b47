"""Pagemill from Python, step by step: a cache, a prompt, decoding, a shared prefix, and lse.

Each result is compared with plain attention in NumPy.
"""

import numpy as np

import pagemill

H, K, D, P = 8, 2, 64, 16  # query heads, KV heads, head dim, tokens of a page
rng = np.random.default_rng(1)


def random(tokens: int, heads: int) -> np.ndarray:
    return rng.standard_normal((tokens, heads, D), np.float32)


def plain_attention(q: np.ndarray, k: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Of the last len(q) tokens to all of k and v, causal."""
    k, v = (np.repeat(x, H // K, axis=1) for x in (k, v))
    scores = np.einsum("qhd,khd->hqk", q, k) / np.sqrt(D)
    positions = np.arange(len(k) - len(q), len(k))
    scores[:, np.arange(len(k)) > positions[:, None]] = -np.inf
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return np.einsum("hqk,khd->qhd", weights / weights.sum(axis=-1, keepdims=True), v)


def expect_close(out: np.ndarray, expected: np.ndarray, what: str) -> None:
    error = np.abs(out - expected).max()
    print(f"{what}: largest error {error:.1e}")
    assert error < 1e-4


print("1. A cache: pages for all sequences, in one array each for keys and values.")
cache = pagemill.new_cache(num_pages=32, page_size=P, num_kv_heads=K, head_dim=D, dtype="float32")
print(f"   {cache.num_pages} pages of {cache.page_size} tokens, {cache.nbytes} bytes, layout {cache.layout}")

print("2. Prefill: sequence 0 brings a prompt of 40 tokens, sequence 1 one of 7, in one call.")
page_table = np.array([[5, 9, 2, 30], [7, 0, 0, 0]], np.int32)  # any pages in any order
q, k, v = random(47, H), random(47, K), random(47, K)
plan = pagemill.plan(query_start=[0, 40, 47], kv_len=[40, 7], page_table=page_table, cache=cache, num_heads=H)
out = plan.run(q, k, v, cache)  # with several layers: run the same plan for each, with its cache
expect_close(out[:40], plain_attention(q[:40], k[:40], v[:40]), "   sequence 0")
expect_close(out[40:], plain_attention(q[40:], k[40:], v[40:]), "   sequence 1")

print("3. Decode: both continue, one token a step.")
keys, values = [k[:40], k[40:]], [v[:40], v[40:]]
for step in range(1, 4):
    q, k, v = random(2, H), random(2, K), random(2, K)
    plan = pagemill.plan([0, 1, 2], [40 + step, 7 + step], page_table, cache, num_heads=H)
    out = plan.run(q, k, v, cache)
    for b in range(2):
        keys[b], values[b] = np.concatenate([keys[b], k[b : b + 1]]), np.concatenate([values[b], v[b : b + 1]])
        expect_close(out[b : b + 1], plain_attention(q[b : b + 1], keys[b], values[b]), f"   step {step}, {b}")

print("4. A shared prefix: sequence 2 begins with sequence 0's first 32 tokens, whose two pages it shares.")
suffix = 5
table = np.array([[5, 9, 12]], np.int32)  # pages 5 and 9 of sequence 0, then one of its own
q, k, v = random(suffix, H), random(suffix, K), random(suffix, K)
plan = pagemill.plan([0, suffix], [32 + suffix], table, cache, num_heads=H)
out = plan.run(q, k, v, cache)
keys2, values2 = np.concatenate([keys[0][:32], k]), np.concatenate([values[0][:32], v])
expect_close(out, plain_attention(q, keys2, values2), "   sequence 2")

print("5. lse: attention to prefix and suffix apart, then merged (as where they lie on two machines).")
parts = []
for pages, kv_len, first in ((table[:, :2], 32, 32), (table[:, 2:], suffix, 0)):
    part = pagemill.plan([0, suffix], [kv_len], pages, cache, num_heads=H, write_cache=False, first_position=[first])
    parts.append(part.attend(q, cache, lse=True))
(prefix, prefix_lse), (rest, rest_lse) = parts
merged, lse = pagemill.merge(prefix, prefix_lse, rest, rest_lse)
expect_close(merged, out, "   merged")
weight = np.exp(prefix_lse - lse).mean()
print(f"   on average {weight:.0%} of the attention goes to the prefix")
