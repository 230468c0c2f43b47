"""Models as SGLang wants them: SmolLM2, and of random weights those of random_models.py and two of its own."""

from pathlib import Path

import random_models
import smollm2
import torch
from transformers import Gemma2Config, Gemma2ForCausalLM, GraniteSWAConfig, GraniteSWAForCausalLM, PreTrainedModel


def gemma2() -> PreTrainedModel:
    """Every other layer with a window of 64 keys, every layer with a soft cap; random_models' lacks a field."""
    config = random_models.gemma2().to_dict()
    model = Gemma2ForCausalLM(Gemma2Config(**config, hidden_act=config["hidden_activation"]))
    model.model.embed_tokens.weight.data *= 0.2  # larger ones, which are the head too, repeat the last token for ever
    return model


def granite_swa() -> PreTrainedModel:
    """Every other layer with a window of 48 keys, which have a pool of their own; every layer with sinks."""
    config = GraniteSWAConfig(
        **random_models.SHAPE,
        num_attention_heads=8,
        num_key_value_heads=2,
        attention_multiplier=0.125,
        layer_types=["sliding_attention", "full_attention"] * 2,
        layer_rope_theta=[1e4] * 4,
        sliding_window=48,
    )
    model = GraniteSWAForCausalLM(config)
    for layer in model.model.layers:
        torch.nn.init.normal_(layer.self_attn.sinks, mean=1.0)
    return model


OWN = {"gemma2": gemma2, "granite-swa": granite_swa}


def make(name: str, folder: Path) -> None:
    """Writes config.json, model.safetensors in float32 and a tokenizer, the same at every call."""
    if name == "smollm2":
        return smollm2.convert(folder)
    if name not in OWN:
        return random_models.make(name, folder)
    torch.manual_seed(len(name))
    model = OWN[name]()
    model.save_pretrained(folder)
    return random_models.save_tokenizer(model.config.vocab_size, folder)
