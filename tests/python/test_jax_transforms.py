"""Under jit, scan, shard_map and grad: caches in place, plans once a step."""

import functools
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P
from tpu_calls import Call, random_call, run

from pagemill import _core
from pagemill import jax as pm

STEP = [(1, 70), (1, 33), (20, 20), (7, 96)]
attention = functools.partial(pm.ragged_paged_attention, sm_scale=0.1)


def pointer(x: jax.Array) -> int:
    return x.unsafe_buffer_pointer()


def fresh(call: Call) -> Call:
    """With a cache of its own that may be donated."""
    cache = jnp.copy(call.kv_cache)
    return call.but(kv_cache=jax.block_until_ready(cache))


def plans_made(function: Any, *arguments: Any) -> int:
    before = _core.jax_plans_made()
    jax.block_until_ready(function(*arguments))
    return _core.jax_plans_made() - before


def test_outside_of_jit_the_cache_is_donated(rng: np.random.Generator) -> None:
    call = fresh(random_call(rng, STEP))
    where = pointer(call.kv_cache)
    _, cache = attention(*call.arguments)
    assert pointer(cache) == where
    assert call.kv_cache.is_deleted()
    assert not call.queries.is_deleted()


def test_donated_cache_is_updated_in_place(rng: np.random.Generator) -> None:
    call = random_call(rng, STEP)
    expected = run(call, sm_scale=0.1)
    jitted = jax.jit(lambda cache, *others: attention(*others[:3], cache, *others[3:]), donate_argnums=0)
    cache = fresh(call).kv_cache
    others = call.arguments[:3] + call.arguments[4:]
    where = pointer(cache)
    out, updated = jitted(cache, *others)
    assert pointer(updated) == where
    assert cache.is_deleted()
    np.testing.assert_array_equal(np.asarray(out), expected[0])
    np.testing.assert_array_equal(np.asarray(updated), expected[1])


def test_other_caches_are_left_intact(rng: np.random.Generator) -> None:
    call = random_call(rng, STEP)
    expected = run(call, sm_scale=0.1)
    before = np.array(call.kv_cache)
    where = pointer(call.kv_cache)
    out, updated = jax.jit(attention)(*call.arguments)
    assert pointer(updated) != where
    np.testing.assert_array_equal(np.asarray(call.kv_cache), before)
    np.testing.assert_array_equal(np.asarray(out), expected[0])
    np.testing.assert_array_equal(np.asarray(updated), expected[1])


def test_shared_cache_is_not_copied(rng: np.random.Generator) -> None:
    call = fresh(random_call(rng, STEP))
    where = pointer(call.kv_cache)
    _, cache = attention(*call.arguments, update_kv_cache=False)
    assert pointer(cache) == where


def test_layers_of_a_step_are_planned_once(rng: np.random.Generator) -> None:
    """Twelve layers in one program, in two programs, and with windows in every other layer."""
    call = random_call(rng, [(1, 100 + i) for i in range(5)])

    @functools.partial(jax.jit, static_argnames=("windows",), donate_argnames=("caches",))
    def layers(caches: list[jax.Array], arguments: Any, windows: tuple[int | None, ...]) -> Any:
        q, k, v, _, *metadata = arguments
        for i, window in enumerate(windows):
            q, caches[i] = attention(q, k, v, caches[i], *metadata, sliding_window=window)
        return q, caches

    def caches(n: int) -> list[jax.Array]:
        return [jnp.copy(call.kv_cache) for _ in range(n)]

    assert plans_made(layers, caches(12), call.arguments, (None,) * 12) == 1
    assert plans_made(layers, caches(12), call.arguments, (None,) * 12) == 0
    assert plans_made(layers, caches(12), call.arguments, (None, 40) * 6) == 1
    longer = call.but(kv_lens=call.kv_lens.at[0].add(1))
    assert plans_made(layers, caches(12), longer.arguments, (None, 40) * 6) == 2
    pages = call.page_indices.at[jnp.array([0, 1])].set(call.page_indices[jnp.array([1, 0])])
    assert plans_made(layers, caches(1), call.but(page_indices=pages).arguments, (None,)) == 1


def test_plans_of_other_steps_are_not_mistaken(rng: np.random.Generator) -> None:
    """More steps at once than plans are kept, each with results of its own."""
    calls = [random_call(rng, [(1, 30 + 5 * i), (4, 20 + i)], heads=(4, 2, 64)) for i in range(24)]
    expected = [run(call, sm_scale=0.1) for call in calls]
    for _ in range(2):
        for call, (out, cache) in zip(calls, expected, strict=True):
            again = run(call, sm_scale=0.1)
            np.testing.assert_array_equal(again[0], out)
            np.testing.assert_array_equal(again[1], cache)


def test_scan_over_layers(rng: np.random.Generator) -> None:
    """The layers' caches as what scan goes through, and one cache as what it carries."""
    call = random_call(rng, STEP)
    q, k, v, _, *metadata = call.arguments
    layers = 4
    caches = jnp.stack([call.kv_cache * (i + 1) for i in range(layers)])

    @jax.jit
    def scanned(q: jax.Array, caches: jax.Array) -> Any:
        return jax.lax.scan(lambda q, cache: attention(q, k, v, cache, *metadata), q, caches)

    out, updated = scanned(q, caches)
    expected = q
    for i in range(layers):
        expected, cache = attention(expected, k, v, jnp.copy(caches[i]), *metadata)
        np.testing.assert_array_equal(np.asarray(updated[i]), np.asarray(cache))
    np.testing.assert_array_equal(np.asarray(out), np.asarray(expected))


def test_scan_over_tokens_in_place(rng: np.random.Generator) -> None:
    """Decoding within one program: the carried cache stays where the donated one was."""
    call = fresh(random_call(rng, [(1, 30), (1, 50)], page_size=64))
    keys = jnp.stack([call.keys * (i + 1) for i in range(5)])

    def decode(carry: Any, k: jax.Array) -> Any:
        cache, kv_lens = carry
        out, cache = attention(call.queries, k, k, cache, kv_lens, *call.arguments[5:])
        return (cache, kv_lens + 1), out

    before = call.kv_cache
    cache, kv_lens, outs = jnp.copy(before), call.kv_lens, []
    for k in keys:
        (cache, kv_lens), out = decode((cache, kv_lens), k)
        outs.append(np.asarray(out))
    scanned = jax.jit(lambda cache, lens, keys: jax.lax.scan(decode, (cache, lens), keys), donate_argnums=0)
    donated = jax.block_until_ready(jnp.copy(before))
    where = pointer(donated)
    (in_place, _), stacked = scanned(donated, call.kv_lens, keys)
    assert pointer(in_place) == where
    np.testing.assert_array_equal(np.asarray(stacked), np.stack(outs))
    np.testing.assert_array_equal(np.asarray(in_place), np.asarray(cache))


@pytest.mark.parametrize("devices", [2, 4])
def test_heads_over_devices(rng: np.random.Generator, devices: int) -> None:
    """Tensor parallelism: each device has its heads, and shares of every cache row."""
    call = random_call(rng, STEP, heads=(16, 4, 128))
    expected = run(call, sm_scale=0.1)
    mesh = jax.make_mesh((devices,), ("heads",), axis_types=(jax.sharding.AxisType.Auto,))
    heads, cache = P(None, "heads"), P(None, None, "heads")
    sharded = jax.jit(
        jax.shard_map(
            attention,
            mesh=mesh,
            in_specs=(heads, heads, heads, cache, P(), P(), P(), P()),
            out_specs=(heads, cache),
        ),
        donate_argnums=3,
    )
    before = _core.jax_plans_made()
    shardings = [jax.sharding.NamedSharding(mesh, spec) for spec in (heads, heads, heads, cache, P(), P(), P(), P())]
    arguments = [jax.device_put(x, s) for x, s in zip(fresh(call).arguments, shardings, strict=True)]
    where = [shard.data.unsafe_buffer_pointer() for shard in arguments[3].addressable_shards]
    out, updated = sharded(*arguments)
    assert [shard.data.unsafe_buffer_pointer() for shard in updated.addressable_shards] == where
    np.testing.assert_array_equal(np.asarray(out), expected[0])
    np.testing.assert_array_equal(np.asarray(updated), expected[1])
    assert _core.jax_plans_made() == before + 1  # all devices share the step


def test_sequences_over_devices(rng: np.random.Generator) -> None:
    """Data parallelism: each device has a batch, a cache and metadata of its own."""
    calls = [random_call(rng, [(1, 60), (3, 40)], heads=(4, 2, 64)) for _ in range(4)]
    expected = [run(call, sm_scale=0.1) for call in calls]
    mesh = jax.make_mesh((4,), ("batch",), axis_types=(jax.sharding.AxisType.Auto,))
    sharded = jax.jit(
        jax.shard_map(attention, mesh=mesh, in_specs=(P("batch"),) * 8, out_specs=(P("batch"), P("batch")))
    )
    stacked = [jnp.concatenate(x) for x in zip(*(call.arguments for call in calls), strict=True)]
    for _ in range(5):
        out, updated = sharded(*stacked)
        np.testing.assert_array_equal(np.asarray(out), np.concatenate([out for out, _ in expected]))
        np.testing.assert_array_equal(np.asarray(updated), np.concatenate([cache for _, cache in expected]))


def test_several_threads(rng: np.random.Generator) -> None:
    calls = [random_call(rng, [(1, 200), (40, 60)]) for _ in range(4)]
    expected = [run(call, sm_scale=0.1) for call in calls]
    with ThreadPoolExecutor(4) as pool:
        for results in pool.map(lambda call: [run(call, sm_scale=0.1) for _ in range(10)], calls):
            i = next(i for i, (out, _) in enumerate(expected) if (out == results[0][0]).all())
            for out, cache in results:
                np.testing.assert_array_equal(out, expected[i][0])
                np.testing.assert_array_equal(cache, expected[i][1])


def test_gradients_are_refused(rng: np.random.Generator) -> None:
    call = random_call(rng, STEP, dtype=jnp.float32)

    def loss(q: jax.Array) -> jax.Array:
        return attention(q, *call.arguments[1:])[0].sum()

    transforms = (
        jax.grad(loss),
        jax.jit(jax.grad(loss)),
        lambda q: jax.jvp(loss, (q,), (q,)),
        lambda q: jax.vjp(loss, q),
    )
    for transform in transforms:
        with pytest.raises(NotImplementedError, match="ragged paged attention has no gradient"):
            transform(call.queries)
    out, _ = jax.jit(attention)(*call.arguments)
    stopped = jax.grad(lambda q: (q * jax.lax.stop_gradient(out)).sum())(call.queries)
    np.testing.assert_array_equal(np.asarray(stopped), np.asarray(out))


def test_vmap_is_refused(rng: np.random.Generator) -> None:
    call = random_call(rng, STEP)
    with pytest.raises(NotImplementedError):
        jax.vmap(lambda q: attention(q, *call.arguments[1:])[0])(jnp.stack([call.queries] * 2))


def test_work_runs_on_xlas_threads() -> None:
    """A run starts no thread, and more than one of those that were there works."""
    code = """
import os
import jax, jax.numpy as jnp, numpy as np
from pagemill import jax as pm

def ticks():
    fields = {tid: open(f"/proc/self/task/{tid}/stat").read().rsplit(")", 1)[1].split()
              for tid in os.listdir("/proc/self/task")}
    return {tid: int(f[11]) + int(f[12]) for tid, f in fields.items()}

n = 2000
cache = jnp.zeros(pm.get_kv_cache_shape(n // 16, 16, 8, 128, jnp.bfloat16), jnp.bfloat16)
q, k = jnp.ones((n, 32, 128), jnp.bfloat16), jnp.ones((n, 8, 128), jnp.bfloat16)
a = jnp.ones((2000, 2000))
jax.block_until_ready(a @ a)
metadata = [jnp.asarray(x, jnp.int32) for x in ([n], np.arange(n // 16), [0, n], [0, 0, 1])]
tiny = pm.ragged_paged_attention(q[:1], k[:1], k[:1], jnp.copy(cache),
                                 *[jnp.asarray(x, jnp.int32) for x in ([1], [0], [0, 1], [0, 0, 1])])
jax.block_until_ready(tiny)
step = jax.jit(pm.ragged_paged_attention, donate_argnums=3).lower(q, k, k, cache, *metadata).compile()
before = ticks()
for _ in range(12):
    out, cache = step(q, k, k, cache, *metadata)
    jax.block_until_ready(out)
after = ticks()
print(len(before), len(after), sum(after[t] - before.get(t, 0) > 10 for t in after))
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    before, after, busy = map(int, result.stdout.split())
    assert after == before
    assert busy > 1 or os.cpu_count() == 1
