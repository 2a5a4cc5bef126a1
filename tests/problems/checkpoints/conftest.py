"""Whole models as experts: random changes of the base, saved by plain transformers."""

import pytest
import torch
from builders import build_model
from builders_checkpoints import changed


def pytest_collection_modifyitems(items):
    """Mark the tests that write whole models."""
    for item in items:
        if "write_model" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.language_model)


@pytest.fixture
def write_model(tmp_path):
    """A function that saves a model of `build_model` with random changes; its folder."""

    def write(name, seed=None, *, architecture="llama", dtype=torch.float32, only="", **settings):
        save = {key: settings.pop(key) for key in ("max_shard_size",) if key in settings}
        model = build_model(architecture, **settings)
        if seed is not None:
            changed(model, seed, only=only)
        model.to(dtype).save_pretrained(tmp_path / name, **save)
        return tmp_path / name

    return write
