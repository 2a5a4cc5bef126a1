"""The files by which a run folder is known, without anything that takes long to import."""

from pathlib import Path

from evox_evogm.near_path import near_path

CONFIG, INPUTS, RESULT = "config.yaml", "inputs.json", "result.json"
REGMEAN = "regmean.safetensors"  # the regressed experts


def has_begun(out: Path) -> bool:
    """Whether the folder holds a run."""
    return (out / CONFIG).exists()


def check_finished(out: Path) -> None:
    """Refuse a folder that holds no finished run.

    :raises ValueError: saying what it holds.
    """
    if not out.is_dir():
        found = f"no folder at {out}{near_path(out)}"
        raise ValueError(f"run: expected the folder of a finished run, found {found}")
    if not has_begun(out):
        raise ValueError(f"run: expected the folder of a finished run, found no run in {out}")
    if not (out / RESULT).is_file():
        advice = "the command that began it goes on with it"
        raise ValueError(
            f"run: expected a finished run, found one without result in {out}; {advice}"
        )


def check_scored(word: str) -> None:
    """Refuse a word that names no run, file or folder, with or without a row.

    :param word: of `evogm compare`.
    """
    if Path(word).exists():
        return
    place, _, _ = word.rpartition(":")
    if not place or not Path(place).exists():
        kinds = "expected a run folder, a file of evogm score or an adapter folder"
        found = f"found {word!r}{near_path(Path(word))}"
        raise ValueError(f"compare: {kinds}, with :ROW for another row, {found}")
