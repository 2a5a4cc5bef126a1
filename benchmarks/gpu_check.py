"""Does everything work on a GPU, and how fast? One command of at most 8 minutes.

It needs no network and no model files: bases have random weights in the shapes of Qwen2.5-0.5B,
Qwen2.5-1.5B and Llama 3.1 8B, with ten random adapters of rank 16 on every linear layer.

    python -m benchmarks.gpu_check                          # on the GPU
    python -m benchmarks.gpu_check --tiny --device cpu      # every part with tiny shapes

| part | what it does |
| --- | --- |
| scores | both modes on small bases in float32, against the CPU and plain peft |
| step | a step of the searches without its evaluations |
| contract | every search on the device: eager, under vmap, compiled |
| speed | P = 20 merges in bfloat16, against the published procedure and peft |
| cards | the same with the memory of smaller cards |

Every number is in `gpu_check.json` as soon as it is known. A part that fails or takes longer than
its share of the time is noted, and the next goes on. The table is in `gpu_check.md`, written again
after each part. A call that never returns ends the process a minute after the time. The status is
1 if a result is wrong, a part failed, or the time was too short for scores or contract.
"""

import argparse
import faulthandler
import platform
import subprocess
import sys
from collections.abc import Callable, Sequence
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from benchmarks.gpu.checks import check_contract, check_scores
from benchmarks.gpu.random_bases import REGIMES, TINY_REGIMES
from benchmarks.gpu.rates import DeviceRates, measure_device
from benchmarks.gpu.record import Record, is_right
from benchmarks.gpu.speed import CARDS, SpeedCheck, measure_steps
from benchmarks.gpu.table import CHECKS, checks_of, table_of

TABLE = "gpu_check.md"
GRACE = 60  # seconds beyond the time, after which the process is ended
# The base that goals are set for comes first: time may run out.
BASES = ("Qwen2.5-1.5B", "Llama-3.1-8B", "Qwen2.5-0.5B")
CARDS_ON = "Qwen2.5-1.5B"  # the base with which smaller cards are emulated
PACKAGES = ("evox-evogm", "evox", "torch", "transformers", "peft")
PARTS = ("rates", "scores", "step", "contract", "speed", "cards")


def describe_machine(device: torch.device) -> dict:
    """The device, versions and the commit."""
    name = platform.processor() or platform.machine()
    machine = {"device": name, "threads": torch.get_num_threads()}
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        machine["device"] = properties.name
        machine["gib"] = round(properties.total_memory / 2**30, 1)
        machine["cuda"] = torch.version.cuda
    machine["python"] = platform.python_version()
    machine["versions"] = {package: version_of(package) for package in PACKAGES}
    machine["commit"] = current_commit()
    return machine


def version_of(package: str) -> str:
    """The version of a package, or "unknown" where it runs from a folder without an install."""
    try:
        return version(package)
    except PackageNotFoundError:
        return "unknown"


def with_index(device: torch.device) -> torch.device:
    """The same device with its number, which some functions of `torch.cuda` need."""
    if device.type != "cuda" or device.index is not None:
        return device
    return torch.device("cuda", torch.cuda.current_device())


def current_commit() -> str:
    """The commit of this checkout, or "unknown"."""
    command = ["git", "rev-parse", "--short", "HEAD"]
    folder = Path(__file__).parent
    try:
        done = subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return done.stdout.strip()


def write_table(record: Record, parts: Sequence[str] = PARTS) -> str:
    """The table and the results of the checks, written beside the JSON.

    :param parts: that were asked for.
    """
    versions = ", ".join(f"{name} {number}" for name, number in record.machine["versions"].items())
    lines = [
        f"{record.machine['device']}, commit {record.machine['commit']}, {versions}",
        "",
        table_of(record.rows),
        "",
        checks_of(record.rows, [part for part in CHECKS if part in parts]),
    ]
    for note in record.notes:
        lines.append(f"- {note['part']}: {note['note']}")
    text = "\n".join(lines) + "\n"
    (record.folder / TABLE).write_text(text)
    return text


def check_device(
    record: Record,
    device: torch.device,
    *,
    tiny: bool,
    parts: Sequence[str] = PARTS,
    bases: Sequence[str] = BASES,
    cards: Sequence[int] = CARDS,
) -> None:
    """Run some parts.

    :param parts: which of `PARTS`.
    :param bases: whose speed is measured, which of `BASES`.
    :param cards: the GiB of the smaller cards.
    """
    record.machine = describe_machine(device)
    all_parts = set(parts) == set(PARTS)
    rates = DeviceRates(float("inf"), float("inf"))  # where they could not be measured

    def run(part: str, share: float, work: Callable[[], object]) -> None:
        if part.split()[0] not in parts:
            return
        record.run(part, share if all_parts else 1.0, work)
        write_table(record, parts)  # so that it is there whatever happens to the next part

    def measure_rates() -> None:
        nonlocal rates
        rates = measure_device(device, torch.bfloat16)
        record.add("rates", operations=rates.operations, bytes=rates.bytes)

    parts = ["rates", *parts] if "speed" in parts else parts  # whose roofline they make
    run("rates", 0.05, measure_rates)
    run("scores", 0.12, partial(check_scores, record, device))
    compiled = not tiny
    run("step", 0.1, partial(measure_steps, record, device, vmapped_runs=2 if tiny else 16))
    # Before the speeds, which take all the time that is left.
    run("contract", 0.25, partial(check_contract, record, device, compiled=compiled))

    def speed_of(name: str) -> SpeedCheck:
        regimes, candidates = (TINY_REGIMES, 3) if tiny else (REGIMES, 20)
        return SpeedCheck(record, device, name, regimes, rates, candidates=candidates, tiny=tiny)

    for name in bases:
        run(f"speed of {name}", 0.3, lambda name=name: speed_of(name).run())
        if name == CARDS_ON:
            run(f"cards with {name}", 0.15, lambda name=name: speed_of(name).emulate_cards(cards))


def main(words: list[str] | None = None) -> int:
    """The status: 0 if everything that was checked is right."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    default = "cuda" if torch.cuda.is_available() else "cpu"
    parser.add_argument("--device", type=torch.device, default=torch.device(default))
    parser.add_argument("--minutes", type=float, default=8.0, help="of all parts together")
    parser.add_argument("--out", type=Path, default=Path("runs/gpu_check"))
    parser.add_argument("--tiny", action="store_true", help="tiny shapes, for a try on the CPU")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--bases", nargs="+", choices=BASES, default=BASES)
    parser.add_argument("--cards", nargs="+", type=int, default=CARDS, help="GiB of each")
    arguments = parser.parse_args(words)
    if arguments.minutes <= 0:
        parser.error(f"--minutes: expected a number above 0, found {arguments.minutes}")
    if arguments.device.type == "cpu" and not arguments.tiny:
        parser.error("--device: expected a GPU, found cpu; real shapes take hours there: --tiny")
    if arguments.parts == ["cards"] and CARDS_ON not in arguments.bases:
        parser.error(
            f"--parts cards: expected --bases with {CARDS_ON}, on which cards are emulated"
        )
    record = Record(arguments.out, arguments.minutes)
    # A signal cannot end a call that never returns to Python; this can. It needs a real file.
    seconds = 60 * arguments.minutes + GRACE
    faulthandler.dump_traceback_later(seconds, exit=True, file=sys.__stderr__)
    try:
        check_device(
            record,
            with_index(arguments.device),
            tiny=arguments.tiny,
            parts=arguments.parts,
            bases=arguments.bases,
            cards=arguments.cards,
        )
    finally:
        faulthandler.cancel_dump_traceback_later()
    print()
    print(write_table(record, arguments.parts), end="")
    return 0 if is_right(record, CHECKS) else 1


if __name__ == "__main__":
    raise SystemExit(main())
