"""Small models of random weights, as files that vLLM reads. Their answers mean nothing; what they must be is known."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModelForCausalLM, BloomConfig, Gemma2Config, GraniteConfig, LlamaConfig, PretrainedConfig

# Weights so large that scores differ by several: halving them must change the answers.
SHAPE: dict[str, Any] = {
    "vocab_size": 512,
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 4,
    "max_position_embeddings": 4096,
    "initializer_range": 0.15,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 1,
}


def llama(**shape: Any) -> PretrainedConfig:
    return LlamaConfig(**SHAPE, **shape)


def granite() -> PretrainedConfig:
    """Every other layer with a window of 48 keys, every layer with sinks."""
    kinds = ["sliding_attention", "full_attention"] * 2
    return GraniteConfig(
        **SHAPE,
        num_attention_heads=8,
        num_key_value_heads=2,
        attention_multiplier=0.125,
        layer_types=kinds,
        sliding_window=48,
        attention_sinks=True,
    )


def gemma2() -> PretrainedConfig:
    """Every other layer with a window of 64 keys, every layer with a soft cap."""
    return Gemma2Config(
        **SHAPE,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=96,
        query_pre_attn_scalar=96,
        sliding_window=64,
        attn_logit_softcapping=20.0,
    )


def bloom() -> PretrainedConfig:
    """ALiBi."""
    return BloomConfig(vocab_size=512, hidden_size=256, n_layer=4, n_head=4, initializer_range=0.15, eos_token_id=1)


CONFIGS: dict[str, Callable[[], PretrainedConfig]] = {
    "llama": lambda: llama(num_attention_heads=8, num_key_value_heads=2, head_dim=64),
    "llama-odd": lambda: llama(num_attention_heads=16, num_key_value_heads=1, head_dim=40),
    "granite": granite,
    "gemma2": gemma2,
    "bloom": bloom,
}


def make(name: str, folder: Path) -> None:
    """Writes config.json and model.safetensors in float32, the same at every call."""
    torch.manual_seed(len(name))
    config = CONFIGS[name]()
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model.get_input_embeddings().weight.data.mul_(0.1)  # or tied ones say the last token again, whatever it attends to
    model.save_pretrained(folder)
    save_tokenizer(config.vocab_size, folder)
    if getattr(config, "attention_sinks", False):
        add_sinks(folder / "model.safetensors", config)


def add_sinks(file: Path, config: PretrainedConfig) -> None:
    """The parameter of vLLM's model that transformers' has not."""
    weights = load_file(file)
    for layer in range(config.num_hidden_layers):
        weights[f"model.layers.{layer}.self_attn.sinks"] = torch.randn(config.num_attention_heads) + 1
    save_file(weights, file, {"format": "pt"})


def save_tokenizer(vocabulary: int, folder: Path) -> None:
    """Token i is the word t<i>: servers want a tokenizer."""
    tokenizer = Tokenizer(models.WordLevel({f"t{i}": i for i in range(vocabulary)}, unk_token="t0"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "t1"}')
