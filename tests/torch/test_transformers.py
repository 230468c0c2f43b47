"""HuggingFace models: the same greedy text with attn_implementation="pagemill" as with "sdpa"."""

from typing import Any

import pytest
import torch
import transformers

from pagemill import torch as pt

pt.register_transformers()


def model(kind: str, attention: str, dtype: torch.dtype, **options: Any) -> Any:
    """A small one of random weights, the same for every attention."""
    shape = {
        "hidden_size": 128,
        "intermediate_size": 256,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": 512,
        "head_dim": 32,
        "initializer_range": 0.3,  # so that no two tokens are about as likely
    }
    config = getattr(transformers, f"{kind}Config")(**shape, **options)
    torch.manual_seed(7)
    made = getattr(transformers, f"{kind}ForCausalLM")._from_config(config, attn_implementation=attention)
    return made.to(dtype).eval()


def generate(made: Any, prompts: list[list[int]], count: int = 40) -> torch.Tensor:
    """Padded on the left, as generate expects."""
    longest = max(map(len, prompts))
    tokens = torch.tensor([[0] * (longest - len(p)) + p for p in prompts])
    mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts])
    with torch.inference_mode():
        return made.generate(
            tokens, attention_mask=mask, max_new_tokens=count, min_new_tokens=count, do_sample=False, pad_token_id=0
        )


PROMPTS = {
    "one": [[5, 17, 300, 42, 8]],
    "equal": [[5, 17, 300, 42, 8], [9, 8, 7, 6, 5]],
    "padded": [[5, 17, 300, 42, 8, 77, 200, 3, 3, 1], [9, 8, 7], [100, 101, 102, 103, 104, 105]],
}


@pytest.mark.parametrize("prompts", PROMPTS)
@pytest.mark.parametrize(
    ("kind", "options"),
    [("Llama", {}), ("Mistral", {"sliding_window": 12}), ("Qwen3", {})],
    ids=["llama", "mistral", "qwen3"],
)
def test_greedy_text(kind: str, options: dict[str, Any], prompts: str) -> None:
    theirs = generate(model(kind, "sdpa", torch.float32, **options), PROMPTS[prompts])
    ours = generate(model(kind, "pagemill", torch.float32, **options), PROMPTS[prompts])
    assert torch.equal(ours, theirs)


@pytest.mark.parametrize("prompts", PROMPTS)
@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("Gemma2", {"sliding_window": 12, "attn_logit_softcapping": 5.0, "query_pre_attn_scalar": 32}),
        ("GptOss", {"sliding_window": 12, "num_local_experts": 4, "num_experts_per_tok": 2}),
    ],
    ids=["gemma2", "gpt-oss"],
)
def test_greedy_text_with_soft_cap_or_sinks(kind: str, options: dict[str, Any], prompts: str) -> None:
    """Which sdpa has not: beside transformers' own eager attention."""
    theirs = generate(model(kind, "eager", torch.float32, **options), PROMPTS[prompts])
    ours = generate(model(kind, "pagemill", torch.float32, **options), PROMPTS[prompts])
    assert torch.equal(ours, theirs)


@pytest.mark.parametrize("padding", [slice(0, 7), slice(13, 20)], ids=["left", "right"])
def test_bidirectional(padding: slice) -> None:
    config = transformers.BertConfig(
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=3,
        num_attention_heads=4,
        vocab_size=512,
        initializer_range=0.1,
    )
    tokens = torch.randint(0, 512, (2, 20), generator=torch.Generator().manual_seed(3))
    mask = torch.ones(2, 20, dtype=torch.long)
    mask[1, padding] = 0
    states = []
    for attention in ("sdpa", "pagemill"):
        torch.manual_seed(7)
        made = transformers.BertModel._from_config(config, attn_implementation=attention).eval()
        with torch.inference_mode():
            states.append(made(tokens, attention_mask=mask).last_hidden_state[mask.bool()])
    torch.testing.assert_close(states[1], states[0], rtol=0, atol=1e-4)


def test_text_depends_on_attention() -> None:
    """Another scale or window gives other text: the comparison sees mistakes in attention."""
    prompts = PROMPTS["padded"]
    right = generate(model("Mistral", "pagemill", torch.float32, sliding_window=12), prompts)
    assert not torch.equal(generate(model("Mistral", "pagemill", torch.float32, sliding_window=9), prompts), right)
    made = model("Mistral", "pagemill", torch.float32, sliding_window=12)
    for layer in made.model.layers:
        layer.self_attn.scaling *= 0.9
    assert not torch.equal(generate(made, prompts), right)


def test_logits_bf16() -> None:
    tokens = torch.randint(0, 512, (2, 50), generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        exact = model("Llama", "sdpa", torch.float32)(tokens).logits
        theirs, ours = (model("Llama", name, torch.bfloat16)(tokens).logits.float() for name in ("sdpa", "pagemill"))
    spread = (theirs - exact).square().mean().sqrt()
    assert (ours - exact).square().mean().sqrt() < 1.2 * spread
