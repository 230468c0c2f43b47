"""Several Python threads at once."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from steps import attention, filled_rows, random_step, worst_error
from test_steps import BF16, planned

import pagemill


def test_one_plan_from_several_threads(rng: np.random.Generator) -> None:
    step = random_step(rng, BF16, [(1, 200), (40, 60)])
    caches = [pagemill.Cache(*filled_rows(step, BF16)) for _ in range(4)]
    plan = planned(step, caches[0])
    expected = attention(step, BF16)
    barrier = threading.Barrier(4)

    def run(cache: pagemill.Cache) -> list[np.ndarray]:
        barrier.wait()
        return [plan.run(step.q, step.k_new, step.v_new, cache) for _ in range(25)]

    with ThreadPoolExecutor(4) as pool:
        outs = [out for outs in pool.map(run, caches) for out in outs]
    for out in outs:
        np.testing.assert_array_equal(out.view(np.uint16), outs[0].view(np.uint16))
    assert worst_error(outs[0], expected, products_bf16=True) <= 1


def test_plans_from_several_threads(rng: np.random.Generator) -> None:
    steps = [random_step(rng, BF16, [(n, 30 + n), (1, 50)]) for n in range(1, 9)]

    def run(step) -> float:  # noqa: ANN001
        cache = pagemill.Cache(*filled_rows(step, BF16))
        out = planned(step, cache).run(step.q, step.k_new, step.v_new, cache)
        return worst_error(out, attention(step, BF16), products_bf16=True)

    with ThreadPoolExecutor(4) as pool:
        assert max(pool.map(run, steps)) <= 1


def test_gil_is_released() -> None:
    """Python runs on while a prefill of some tenths of a second goes on in another thread."""
    n = 1024
    cache = pagemill.new_cache(n // 16, 16, 4, 128, "float32")
    plan = pagemill.plan([0, n], [n], [range(n // 16)], cache, num_heads=16, isa="scalar", threads=1)
    q, k = np.ones((n, 16, 128), np.float32), np.ones((n, 4, 128), np.float32)
    span = []

    def run() -> None:
        begin = time.perf_counter()
        plan.run(q, k, k, cache)
        span.append((begin, time.perf_counter()))

    thread = threading.Thread(target=run)
    thread.start()
    ticks = []
    while thread.is_alive():
        ticks.append(time.perf_counter())
        time.sleep(0.001)
    thread.join()
    begin, end = span[0]
    inside = sum(begin < tick < end for tick in ticks)
    assert inside >= 10, f"{inside} ticks in {end - begin:.3f} s"
