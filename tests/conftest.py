import hypothesis
import pytest

import llorch
from llorch.testing import use_isa

# A failing example must be the same for everybody who runs the tests.
hypothesis.settings.register_profile("llorch", deadline=None, derandomize=True, max_examples=60, database=None)
hypothesis.settings.load_profile("llorch")


@pytest.fixture(params=llorch.available_isas())
def isa(request):
    """Each instruction set of this machine in turn."""
    with use_isa(request.param):
        assert llorch.isa() == request.param
        yield request.param
