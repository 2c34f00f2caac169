"""What the tests of the server share."""

import pytest
from openai_server import make_run


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> str:
    """The folder of a run with a tagged model, its base and a plain model."""
    return make_run(tmp_path_factory.mktemp("served"))
