import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

HERE = Path(__file__).parent
STAND_IN = str(HERE / "stand_in")
sys.path[:0] = [str(HERE), STAND_IN, str(HERE.parent / "vllm")]  # random_models.py, smollm2.py
os.environ.update(
    HF_HUB_OFFLINE="1",
    SGLANG_USE_CPU_ENGINE="1",
    # SGLang starts processes, which find the stand-in and the plugin of these tests by this path.
    PYTHONPATH=os.pathsep.join([STAND_IN, str(HERE), os.environ.get("PYTHONPATH", "")]),
)


@pytest.fixture(scope="session")
def model_folder() -> Callable[[str], Path]:
    """Folder of a model of models.py by name; made by the first test that asks."""

    def made(name: str) -> Path:
        folder = HERE.parents[1] / "build" / "sglang-models" / name
        if not (folder / "config.json").exists():
            import models

            folder.mkdir(parents=True, exist_ok=True)
            models.make(name, folder)
        return folder

    return made
