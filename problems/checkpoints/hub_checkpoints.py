"""Whole models on the hub: which of their files are read."""

from pathlib import Path

from evox_evogm.problems.adapters.hub_source import (
    BESIDE,
    HubSource,
    fetch,
    how_to_download,
    is_offline,
)
from evox_evogm.problems.checkpoints.checkpoint_files import (
    INDEX,
    MODEL_CONFIG,
    WEIGHTS,
    is_checkpoint,
    weight_files,
)

# What is read of a whole model, and of its repository: no pickles, no states of optimizers, no
# weights of other libraries or in other precisions.
FILES = (
    MODEL_CONFIG,
    WEIGHTS,
    INDEX,
    "model-*-of-*.safetensors",
    "generation_config.json",
    "preprocessor_config.json",
    *BESIDE,
)


def has_model_config(source: HubSource, where: str) -> bool:
    """Whether a folder of a repository holds a whole model, by its configuration.

    :param where: the model as error messages name it.
    """
    return (fetch(source, [MODEL_CONFIG], where) / source.folder / MODEL_CONFIG).is_file()


def fetch_checkpoint(exact: HubSource, folder: Path, where: str) -> None:
    """Have the files of a whole model in the hub's cache.

    :param exact: at its commit.
    :param folder: that it has in the snapshot.
    :param where: the model as error messages name it.
    :raises ValueError: if its weights are not there, in one sentence.
    """
    fetch(exact, FILES, where)
    try:
        found = is_checkpoint(folder) and bool(weight_files(folder, where))
    except ValueError:  # shards are missing
        found = False
    if not found:
        advice = "take a model that was saved as safetensors"
        if is_offline():
            advice = f"HF_HUB_OFFLINE is set; where there is a network: {how_to_download(exact)}"
        raise ValueError(
            f"{where}: expected {WEIGHTS}, whole or in shards, in {exact}, found none or not all "
            f"of it; {advice}"
        )
