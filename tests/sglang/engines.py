"""Answers of SGLang's engine with one attention or another."""

import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import sglang

SWITCH = Path(tempfile.mkdtemp()) / "attention"
os.environ["PAGEMILL_TESTS_SWITCH"] = str(SWITCH)

# Of engines and servers. Prompts are prefilled in chunks of a few tokens, together with decodes.
SETTINGS = {
    "device": "cpu",
    "dtype": "float32",
    "skip_tokenizer_init": True,
    "max_total_tokens": 6000,
    "chunked_prefill_size": 48,
    "enable_mixed_chunk": True,
    "log_level": "warning",
}


@dataclass
class Answer:
    tokens: list[int]
    logprobs: list[dict[int, float]]  # of each token the most probable ones
    cached: int  # tokens of the prompt that the cache held

    @classmethod
    def of(cls, output: dict[str, Any]) -> "Answer":
        meta = output["meta_info"]
        logprobs = [{token: x for x, token, _ in step} for step in meta["output_top_logprobs"]]
        return cls(output["output_ids"], logprobs, meta["cached_tokens"])


def request(prompts: list[int] | list[list[int]]) -> dict[str, Any]:
    """24 tokens, the most probable ones: arguments of Engine.generate and of the server's /generate."""
    return {
        "input_ids": prompts,
        "sampling_params": {"temperature": 0, "max_new_tokens": 24, "ignore_eos": True},
        "return_logprob": True,
        "top_logprobs_num": 5,
    }


class Engine:
    """SGLang with one model; `with` ends it. attention: a backend's name, or "switching" (stand_in/switching.py)."""

    def __init__(self, model: Path, attention: str, **options: Any) -> None:
        SWITCH.write_text("pagemill")
        self.engine = sglang.Engine(model_path=str(model), attention_backend=attention, **(SETTINGS | options))

    def __enter__(self) -> "Engine":
        return self

    def __exit__(self, *_: Any) -> None:
        self.engine.shutdown()

    def answers(self, prompts: list[list[int]]) -> list[Answer]:
        """Prompts at once, with what the cache holds of them."""
        return [Answer.of(x) for x in self.engine.generate(**request(prompts))]

    def answers_of(self, attention: str, prompts: list[list[int]]) -> list[Answer]:
        """Of a switching engine, by one of its attentions from now on, and from an empty cache."""
        self.engine.flush_cache()
        SWITCH.write_text(attention)
        return self.answers(prompts)


def worst_logprob_error(got: list[Answer], expected: list[Answer]) -> float:
    """Of the chosen tokens, as far as the answers are the same."""
    worst = 0.0
    for a, b in zip(got, expected, strict=True):
        for token, other, of_a, of_b in zip(a.tokens, b.tokens, a.logprobs, b.logprobs, strict=True):
            if token != other:
                break
            worst = max(worst, abs(of_a[token] - of_b[token]))
    return worst
