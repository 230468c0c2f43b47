"""Single layers against the formula in float64: what no small model shows."""

import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from layers import SCALES, Layer, metadata, slots, spec_of, tensor
from steps import attention, random_step, with_options, worst_error
from vllm.config import ModelConfig, VllmConfig, set_current_vllm_config
from vllm.model_executor.layers.attention.chunked_local_attention import create_chunked_local_attention_backend
from vllm.model_executor.layers.attention.cross_attention import create_cross_attention_backend
from vllm.model_executor.layers.attention.encoder_only_attention import create_encoder_only_attention_backend
from vllm.v1.attention.backend import AttentionType
from vllm.v1.kv_cache_interface import CrossAttentionSpec, EncoderOnlyAttentionSpec

from pagemill.vllm.attention import Attention
from pagemill.vllm.backend import Backend

MIXED = [(1, 40), (24, 24), (1, 1), (5, 90), (33, 50)]  # query tokens and keys of each sequence
SLOPES = [2.0 ** -(h + 1) for h in range(8)]


def expect_close(out: np.ndarray, step: Any) -> None:
    assert worst_error(out, attention(step, np.float32), products_bf16=False) <= 1


@pytest.mark.parametrize("heads", [(8, 2, 64), (16, 1, 40), (6, 6, 136)])
@pytest.mark.parametrize(
    ("of_step", "of_layer"),
    [
        ({}, {}),
        ({"window_left": 8}, {"sliding_window": 9}),
        ({"soft_cap": 3.0}, {"logits_soft_cap": 3.0}),
        ({"causal": False}, {}),
        ({"causal": False, "window_left": 8, "window_right": 8}, {"sliding_window": 9}),
        ({"causal": [True, False, True, False, True]}, {}),
        ({"causal": [True, False, True, False, True], "window_left": 8, "window_right": 8}, {"sliding_window": 9}),
    ],
)
def test_masks_and_scores(
    rng: np.random.Generator, heads: tuple[int, int, int], of_step: dict[str, Any], of_layer: dict[str, Any]
) -> None:
    step = random_step(rng, np.float32, MIXED, heads, **of_step)
    layer = Layer(step, **of_layer)
    layer.fill(step)
    expect_close(layer.run(step), step)


def test_sinks_and_alibi(rng: np.random.Generator) -> None:
    sinks = rng.standard_normal(8).astype(np.float32)
    step = random_step(rng, np.float32, MIXED, sinks=sinks, alibi_slopes=np.array(SLOPES, np.float32))
    parameter = torch.nn.Parameter(torch.zeros(8))
    layer = Layer(step, sinks=parameter, alibi_slopes=SLOPES)
    layer.fill(step)
    with torch.no_grad():
        parameter.copy_(torch.from_numpy(sinks))  # as weights are loaded after layers are made
    expect_close(layer.run(step), step)


def test_a_wrong_scale_is_noticed(rng: np.random.Generator) -> None:
    step = random_step(rng, np.float32, MIXED)
    layer = Layer(with_options(step, scale=0.0625))
    layer.fill(step)
    out = layer.run(step)
    assert worst_error(out, attention(step, np.float32), products_bf16=False) > 100


def test_pages_of_another_sequence_in_the_same_step(rng: np.random.Generator) -> None:
    """The second prompt begins with the first one's page, which this very step fills."""
    step = random_step(rng, np.float32, [(32, 32), (8, 24)])
    step.page_table[1, 0] = step.page_table[0, 0]
    step.keys[1][:16], step.values[1][:16] = step.keys[0][:16], step.values[0][:16]
    expect_close(Layer(step).run(step), step)


def test_encoders_need_no_cache(rng: np.random.Generator) -> None:
    options = {"causal": False, "window_left": 8, "window_right": 8, "soft_cap": 5.0}
    step = random_step(rng, np.float32, [(20, 20), (1, 1), (37, 37)], **options)
    layer = Layer(
        step,
        create_encoder_only_attention_backend(Backend),
        spec_of(step, EncoderOnlyAttentionSpec),
        attn_type=AttentionType.ENCODER_ONLY,
        sliding_window=9,
        logits_soft_cap=5.0,
    )
    layer.cache = torch.tensor([])
    expect_close(layer.run(with_options(step, causal=True)), step)


def test_cross_attention_stores_once_and_reads_later(rng: np.random.Generator) -> None:
    """Decoder tokens see all of the encoder's, whose keys come with a request's first step only."""
    options = {"attn_type": AttentionType.ENCODER_DECODER}
    step = with_options(random_step(rng, np.float32, [(3, 70), (1, 20), (4, 33)]), causal=False)
    layer = Layer(step, create_cross_attention_backend(Backend), spec_of(step, CrossAttentionSpec), **options)
    encoder = {"encoder_seq_lens": tensor(step.kv_len), "encoder_seq_lens_cpu": step.kv_len}

    def common(decoded: list[int]) -> Any:
        lengths = tensor(np.array(decoded, np.int32))
        return metadata(step, seq_lens=lengths, seq_lens_cpu_upper_bound=lengths, **encoder)

    keys, values = (np.concatenate([x[i] for i in (0, 2)]) for x in (step.keys, step.values))
    layer.forward(step.q, step.keys[1], step.values[1], common([9, 1, 9]))  # only the second request is new
    out = layer.forward(step.q, keys, values, common([3, 7, 4]))  # the first and the third
    expect_close(out, step)
    expect_close(layer.forward(step.q, None, None, common([5, 8, 9])), step)


def test_attention_within_chunks(rng: np.random.Generator) -> None:
    """Queries see the keys of their own 32 positions: vLLM makes sequences of them, whose pages begin in the middle."""
    step = random_step(rng, np.float32, [(1, 40), (70, 90), (24, 24)])
    layer = Layer(step, create_chunked_local_attention_backend(Backend, 32))
    layer.fill(step)
    out = layer.run(step)
    expected = attention(step, np.float32).out
    row = 0
    for b, keys in enumerate(step.keys):
        for position in range(len(keys) - step.q_len[b], len(keys)):
            begin = position // 32 * 32
            one = replace(
                step,
                q=step.q[row : row + 1],
                keys=[keys[begin : position + 1]],
                values=[step.values[b][begin : position + 1]],
                q_len=[1],
            )
            expected[row] = attention(one, np.float32).out[0]
            row += 1
    np.testing.assert_allclose(out, expected, atol=1e-4)


def test_a_layer_that_shares_a_cache_does_not_write(rng: np.random.Generator) -> None:
    step = random_step(rng, np.float32, MIXED)
    writer, reader = Layer(step), Layer(step, kv_sharing_target_layer_name="model.layers.0.attn")
    writer.fill(step)
    writer.run(step)
    reader.cache = writer.cache
    before = writer.cache.clone()
    expect_close(reader.forward(step.q, np.full_like(step.k_new, 9), np.full_like(step.v_new, 9), metadata(step)), step)
    assert torch.equal(writer.cache, before)


def test_padding_is_left_alone(rng: np.random.Generator) -> None:
    step = random_step(rng, np.float32, MIXED)
    layer = Layer(step)
    layer.fill(step)
    q, k, v = (np.concatenate([x, np.full_like(x[:7], 9)]) for x in (step.q, step.k_new, step.v_new))
    starts = tensor(np.append(step.query_start, step.query_start[-1]))
    common = metadata(
        step,
        query_start_loc=starts,
        seq_lens=tensor(np.append(step.kv_len, 0).astype(np.int32)),
        block_table_tensor=tensor(np.concatenate([step.page_table, np.full_like(step.page_table[:1], -1)])),
        slot_mapping=tensor(np.append(slots(step), [-1] * 7)),
        num_reqs=len(step.keys) + 1,
        num_actual_tokens=len(q),
    )
    out = layer.forward(q, k, v, common)
    expect_close(out, step)
    assert np.isnan(out[len(step.q) :]).all()


def test_slots_that_lengths_do_not_tell(rng: np.random.Generator) -> None:
    """A draft past the longest context has slot -1 and length 1: its key must not replace the sequence's first."""
    step = random_step(rng, np.float32, [(1, 40), (1, 60)])
    layer = Layer(step)
    layer.fill(step)
    layer.run(step)
    before = layer.cache.clone()
    lengths = tensor(np.array([40, 1], np.int32))
    common = metadata(step, seq_lens=lengths, slot_mapping=tensor(np.array([slots(step)[0], -1])))
    out = layer.forward(step.q, step.k_new, step.v_new, common)
    assert torch.equal(layer.cache, before)
    expected = attention(step, np.float32).out[0]
    np.testing.assert_allclose(out[0], expected, atol=1e-4)


def test_slots_in_any_order(rng: np.random.Generator) -> None:
    step = random_step(rng, np.float32, MIXED)
    layer = Layer(step)
    layer.fill(step)
    order = rng.permutation(len(step.k_new))
    built = layer.builder.build(0, metadata(step, slot_mapping=tensor(slots(step)[order])))
    built.store(tensor(step.k_new[order]), tensor(step.v_new[order]), layer.impl._cache(layer.cache), 1.0, 1.0)
    reader = Layer(step, kv_sharing_target_layer_name="model.layers.0.attn")
    reader.cache = layer.cache
    expect_close(reader.run(step), step)


def test_a_plan_serves_all_layers_of_a_step(rng: np.random.Generator) -> None:
    step = random_step(rng, np.float32, MIXED)
    layers = [Layer(step) for _ in range(3)] + [Layer(step, sliding_window=9)]
    built = layers[0].builder.build(0, metadata(step))
    for layer in layers:
        out = torch.empty(step.q.shape)
        layer.impl.forward(SCALES, *(tensor(x) for x in (step.q, step.k_new, step.v_new)), layer.cache, built, out)
    assert len([key for key in built.plans if hasattr(key[0], "sliding_window")]) == 2


def impl(name: str, config: VllmConfig, head_size: int, **options: Any) -> Attention:
    with set_current_vllm_config(config):
        made = Attention(4, head_size, 0.1, 2, **({"kv_cache_dtype": "float32"} | options))
    config.compilation_config.static_forward_context[name] = type("Layer", (), {"impl": made})()
    return made


@pytest.fixture
def config(model_folder: Callable[[str], Path]) -> VllmConfig:
    torch.set_default_dtype(torch.float32)
    return VllmConfig(model_config=ModelConfig(str(model_folder("llama")), dtype="float32"))


def test_what_cannot_be_served_goes_to_the_built_in_attention(config: VllmConfig) -> None:
    assert impl("0", config, 64).built_in is None
    assert impl("1", config, 20).built_in is not None
    assert impl("2", config, 64, kv_sharing_target_layer_name="1").built_in is not None
    assert impl("3", config, 64, kv_sharing_target_layer_name="0").built_in is None
    assert impl("4", config, 64, kv_cache_dtype="fp8").built_in is None
    assert impl("5", config, 64, kv_cache_dtype="fp8_e5m2").built_in is None
    assert impl("6", config, 64, kv_cache_dtype="fp8_per_token_head").built_in is not None


def test_the_built_in_attention_is_said_once(config: VllmConfig, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "vllm.pagemill"):
        assert all(impl(str(i), config, 28).built_in for i in range(3))
    (said,) = (record.getMessage() for record in caplog.records if record.name == "vllm.pagemill")
    assert "A layer keeps vLLM's built-in attention" in said and "head_dim = 28: expected a multiple of 8" in said


def test_layers_that_share_a_cache_read_what_was_written(config: VllmConfig) -> None:
    """If one cannot be served, the others must neither fill nor read the cache in another layout."""
    layers = [impl("0", config, 64), impl("1", config, 64, kv_sharing_target_layer_name="0")]
    assert [layer.built_in for layer in layers] == [None, None]
    layers.append(impl("2", config, 20, kv_sharing_target_layer_name="0"))
    assert all(layer.built_in for layer in layers)
