import os

import numpy as np
import pytest

os.environ.setdefault("XLA_FLAGS", "--xla_force_host_platform_device_count=4")  # read when JAX starts
os.environ.setdefault("JAX_PLATFORMS", "cpu")


@pytest.fixture
def rng(request: pytest.FixtureRequest) -> np.random.Generator:
    """The same numbers for the same test, whichever others run."""
    return np.random.default_rng(list(request.node.name.encode()))
