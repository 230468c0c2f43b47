import os
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE.parent / "python")]  # steps.py
os.environ.update(
    HF_HUB_OFFLINE="1",
    VLLM_NO_USAGE_STATS="1",
    VLLM_ENABLE_V1_MULTIPROCESSING="0",  # engines that a test makes live in its process
    VLLM_CPU_KVCACHE_SPACE="1",
    VLLM_LOGGING_LEVEL=os.environ.get("VLLM_LOGGING_LEVEL", "ERROR"),
)


@pytest.fixture
def rng(request: pytest.FixtureRequest) -> np.random.Generator:
    return np.random.default_rng(list(request.node.name.encode()))


@pytest.fixture(scope="session")
def model_folder() -> Callable[[str], Path]:
    """Folder of a model of random_models.py by name, or of "smollm2"; made by the first test that asks."""

    def made(name: str) -> Path:
        folder = HERE.parents[1] / "build" / "vllm-models" / name
        if not (folder / "config.json").exists():
            import random_models
            import smollm2

            folder.mkdir(parents=True, exist_ok=True)
            smollm2.convert(folder) if name == "smollm2" else random_models.make(name, folder)
        return folder

    return made
