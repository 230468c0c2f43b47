import numpy as np
import pytest


@pytest.fixture
def rng(request: pytest.FixtureRequest) -> np.random.Generator:
    """The same numbers for the same test, whichever others run."""
    return np.random.default_rng(list(request.node.name.encode()))
