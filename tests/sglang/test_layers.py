"""The backend's layers over SGLang's pools: outputs and pools as by the formula or as by torch_native."""

from typing import Any

import pytest
import torch
from pools import MIXED, World, layer
from reference import FormulaBackend
from sglang.srt.layers.attention.torch_native_backend import TorchNativeAttnBackend
from sglang.srt.layers.radix_attention import AttentionType, RadixAttention

import pagemill
from pagemill.sglang.backend import Backend

DECODES = [(1, 40), (1, 1), (1, 150), (1, 17)]


def convert(world: World, made: Any, attention: RadixAttention, *, back: bool = False) -> None:
    """The layer's keys and values from rows to the layout that the backend reads, or back."""
    if not isinstance(made, Backend) or not made._serves(attention) or made._pools.cache(attention).layout == "rows":
        return
    cache, planes = made._pools.cache(attention), world.pool.get_kv_buffer(attention.layer_id)
    rows = [x[: cache.num_pages * world.page_size].view(-1, world.page_size, *x.shape[1:]) for x in planes]
    copies = [x.clone() for x in rows]
    if back:
        pagemill.convert(cache, pagemill.Cache(*copies))
        for x, copy in zip(rows, copies, strict=True):
            x.copy_(copy)
    else:
        pagemill.convert(pagemill.Cache(*copies), cache)


def run(backend: type, world: World, attention: RadixAttention, **call: Any) -> tuple[torch.Tensor, ...]:
    """Output, and the layer's keys and values after, as rows."""
    made = backend(world.runner(attention))
    convert(world, made, attention)
    batch = world.batch()
    cross = attention.is_cross_attention
    q = world.randn(world.tokens, attention.tp_q_head_num * attention.qk_head_dim)
    new = len(world.encoder_slots) if cross else world.tokens
    k = world.randn(new, attention.tp_k_head_num, attention.qk_head_dim)
    v = world.randn(new, attention.tp_v_head_num, attention.v_head_dim)
    made.init_forward_metadata(batch)
    forward = made.forward_decode if batch.forward_mode.is_decode() else made.forward_extend
    out = forward(q, k, v, attention, batch, **call)
    convert(world, made, attention, back=True)
    return out, *(x.clone() for x in world.pool.get_kv_buffer(attention.layer_id))


def expect_same(
    world: dict[str, Any], attention: RadixAttention, expected_by: type = FormulaBackend, **call: Any
) -> None:
    ours, theirs = (run(backend, World(**world), attention, **call) for backend in (Backend, expected_by))
    tolerance = {torch.float32: 1e-4, torch.bfloat16: 2e-2, torch.float16: 4e-3}[ours[0].dtype]
    torch.testing.assert_close(ours[0].float(), theirs[0].float(), atol=tolerance, rtol=tolerance)
    for buffer, other in zip(ours[1:], theirs[1:], strict=True):
        torch.testing.assert_close(buffer, other, atol=0, rtol=0)


@pytest.mark.parametrize("page_size", [1, 16])
@pytest.mark.parametrize("requests", [MIXED, DECODES], ids=["mixed", "decodes"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_as_torch_native(dtype: torch.dtype, requests: list[tuple[int, int]], page_size: int) -> None:
    world = {"dtype": dtype, "requests": requests, "page_size": page_size}
    expect_same(world, layer(), TorchNativeAttnBackend)
    expect_same(world, layer(sliding_window_size=13), TorchNativeAttnBackend)


@pytest.mark.parametrize("page_size", [1, 16])
@pytest.mark.parametrize("cache_dtype", [torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2])
def test_narrower_caches(cache_dtype: torch.dtype, page_size: int) -> None:
    expect_same({"cache_dtype": cache_dtype, "page_size": page_size}, layer(), TorchNativeAttnBackend)


@pytest.mark.parametrize("requests", [MIXED, DECODES], ids=["mixed", "decodes"])
@pytest.mark.parametrize("page_size", [1, 16])
def test_what_torch_native_lacks(page_size: int, requests: list[tuple[int, int]]) -> None:
    sinks = torch.randn(8)
    world = {"requests": requests, "page_size": page_size}
    expect_same(world, layer(logit_cap=0.7))
    expect_same(world, layer(), sinks=sinks)
    expect_same(world, layer(sliding_window_size=13, logit_cap=0.7), sinks=sinks)
    expect_same(world | {"windows": True}, layer(1, sliding_window_size=13), sinks=sinks)
    expect_same(world | {"windows": True}, layer(0), sinks=sinks)


def test_layouts() -> None:
    """tiles wherever all of SGLang's pages may hold them."""

    def layout(attention: RadixAttention, world: World, **options: Any) -> str:
        return Backend(world.runner(attention, **options))._pools.cache(attention).layout

    assert layout(layer(), World(page_size=16)) == layout(layer(), World(page_size=64)) == "tiles"
    assert layout(layer(), World(page_size=16, windows=True)) == "tiles"
    assert layout(layer(1), World(page_size=16, windows=True)) == "rows"
    for world in (World(), World(page_size=8), World(page_size=16, encoder=[1] * 5)):
        assert layout(layer(), world) == "rows"
    assert layout(layer(), World(page_size=16), enable_hierarchical_cache=True) == "rows"
    assert layout(layer(), World(page_size=16), disaggregation_mode="prefill") == "rows"
    assert layout(layer(), World(page_size=16), prefill_attention_backend_str="torch_native") == "rows"


def test_nobody_else_writes_tiles() -> None:
    world = World(page_size=16)
    run(Backend, world, layer())
    with pytest.raises(NotImplementedError, match="layout tiles, which it alone may write"):
        run(TorchNativeAttnBackend, world, layer())
    world = World(page_size=16)
    world.new_slots = world.new_slots.flip(0)
    with pytest.raises(NotImplementedError, match="layout tiles, which it alone may write"):
        run(Backend, world, layer())


@pytest.mark.parametrize("kind", [AttentionType.ENCODER_ONLY, AttentionType.DECODER_BIDIRECTIONAL])
@pytest.mark.parametrize("window", [-1, 6])
def test_not_causal(kind: AttentionType, window: int) -> None:
    expect_same({}, layer(attn_type=kind, sliding_window_size=window))


@pytest.mark.parametrize("requests", [MIXED, DECODES], ids=["mixed", "decodes"])
def test_encoders(requests: list[tuple[int, int]]) -> None:
    world = {"requests": requests, "encoder": [7, 0, 60, 21, 3][: len(requests)]}
    expect_same(world, layer())
    expect_same(world, layer(is_cross_attention=True))


def test_keys_stored_elsewhere() -> None:
    """Without storing, and where SGLang names other slots than its table does."""
    expect_same({}, layer(), save_kv_cache=False)
    worlds = [World(), World()]
    for world in worlds:
        world.new_slots = world.new_slots.flip(0)
    ours, theirs = (run(b, w, layer()) for b, w in zip((Backend, TorchNativeAttnBackend), worlds, strict=True))
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)


def test_layers_share_a_plan(monkeypatch: pytest.MonkeyPatch) -> None:
    from pagemill.sglang import steps

    world = World()
    layers = [layer(0), layer(1), layer(1, sliding_window_size=5)]
    backend, batch = Backend(world.runner(*layers)), world.batch()
    made: list[Any] = []
    plan = steps.planning.plan
    monkeypatch.setattr(steps.planning, "plan", lambda *a, **o: made.append(o) or plan(*a, **o))
    backend.init_forward_metadata(batch)
    for attention in layers * 3:
        q, k = world.randn(world.tokens, 8 * 64), world.randn(world.tokens, 2, 64)
        backend.forward_extend(q, k, k, attention, batch)
    assert [x["window_left"] for x in made] == [-1, 5]


def test_rows_of_padding() -> None:
    world = World()
    backend, batch = Backend(world.runner(layer())), world.batch()
    backend.init_forward_metadata(batch)
    q, k = world.randn(world.tokens + 3, 8 * 64), world.randn(world.tokens + 3, 2, 64)
    out = backend.forward_extend(q, k, k, layer(), batch)
    assert out[: world.tokens].abs().sum(1).min() > 0 and not out[world.tokens :].any()


def test_wrong_scale_is_seen() -> None:
    with pytest.raises(AssertionError):
        ours, theirs = run(Backend, World(), layer(scaling=0.055)), run(TorchNativeAttnBackend, World(), layer())
        torch.testing.assert_close(ours[0], theirs[0], atol=1e-2, rtol=1e-2)


def test_torch_native_in_our_place(caplog: pytest.LogCaptureFixture) -> None:
    """An unequal v head dim; said once."""
    expect_same({"v_head_dim": 32}, layer(v_head_dim=32), TorchNativeAttnBackend)
    said = [x.message for x in caplog.records if "torch_native" in x.message]
    assert said == ["Layer 0 keeps SGLang's torch_native attention: v_head_dim = 32: expected 64, that of keys."]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"use_mla_backend": True}, "model with MLA: expected another, or --attention-backend torch_native"),
        ({"speculative_algorithm": "EAGLE"}, "speculative_algorithm = EAGLE: expected none"),
        ({"dllm_algorithm": "LowConfidence"}, "dllm_algorithm = LowConfidence: expected none"),
        ({"enable_torch_compile": True}, "enable_torch_compile: expected off"),
        ({"dcp_size": 2}, "dcp_size = 2: expected 1"),
        ({"attn_cp_size": 2}, "attn_cp_size = 2: expected 1"),
        ({"device": "cuda"}, "device = cuda: expected cpu"),
    ],
)
def test_refused_at_start(options: dict[str, Any], message: str) -> None:
    with pytest.raises(NotImplementedError, match=message):
        Backend(World().runner(layer(), **options))


def test_layers_that_nothing_here_serves() -> None:
    with pytest.raises(NotImplementedError, match="layer 0: v_head_dim = 32: .* torch_native cannot serve"):
        Backend(World(v_head_dim=32).runner(layer(v_head_dim=32, logit_cap=30.0)))
    with pytest.raises(NotImplementedError, match="layer 0: sinks: expected None, torch_native has none"):
        run(Backend, World(v_head_dim=32), layer(v_head_dim=32), sinks=torch.zeros(8))
    with pytest.raises(NotImplementedError, match="q_rope: expected None"):
        run(Backend, World(), layer(), q_rope=torch.zeros(1))
