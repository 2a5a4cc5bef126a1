"""The fixture of tests that write adapters with something wrong."""

import pytest
from sick_adapters import Bench


@pytest.fixture
def bench(make_adapter, edit_config, edit_tensors, model, tokenizer):
    return Bench(make_adapter, edit_config, edit_tensors, model, tokenizer)
