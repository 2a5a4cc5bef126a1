"""What do experts cost that are full checkpoints, beside the same experts as adapters?

Three of the demo's adapters of SmolLM2-135M are merged into the base by plain peft, and all weights
are changed a little at random, so that the saved models differ from the base in every tensor.
Merges of the three models and of the three adapters are compared: the memory that a problem takes,
the seconds to put a merge into the weights, and the seconds of an evaluation. Seconds are those of
the processor, so that other work on the machine counts little; give OMP_NUM_THREADS=1.

    python -m benchmarks.speed.full_checkpoints [--dtype bfloat16] [--questions 12]
"""

import argparse
import gc
import tempfile
import time
from pathlib import Path

import torch

from evox_evogm.problems import LoRAMergeProblem, read_reasoning_gym
from evox_evogm.problems.inference.base_model import SMOLLM2, smollm2_folder

DEMO = Path(__file__).parents[2] / "evox_evogm" / "demo" / "experts"
NAMES = ("syllogism", "normad_value", "family_relationships")
REPEATS = 3
NOISE = 5e-3  # standard deviation of the random changes, relative to a weight


def write_models(folder: Path, dtype: torch.dtype) -> tuple[Path, list[Path]]:
    """The base and the whole models in a dtype.

    :return: their folders.
    """
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(smollm2_folder())
    folders = []
    torch.manual_seed(0)
    for name in ("base", *NAMES):
        model = AutoModelForCausalLM.from_pretrained(smollm2_folder(), dtype=torch.float32)
        if name != "base":
            model = PeftModel.from_pretrained(model, DEMO / name).merge_and_unload()
            for parameter in model.parameters():
                parameter.data *= 1 + NOISE * torch.randn(parameter.shape)
        model.to(dtype).save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
        folders.append(folder / name)
    return folders[0], folders[1:]


def memory() -> tuple[float, float]:
    """The MiB that this process has for itself, and of mapped files."""
    found = {}
    for line in Path("/proc/self/status").read_text().splitlines():
        name, _, value = line.partition(":")
        if name in ("RssAnon", "RssFile"):
            found[name] = int(value.split()[0]) / 2**10
    return found["RssAnon"], found["RssFile"]


def measure(base, experts, tasks, dtype: torch.dtype) -> str:
    """What a problem of some experts takes, on one line."""
    own, mapped = memory()
    start = time.process_time()
    problem = LoRAMergeProblem(base, experts, tasks, dtype=dtype, mode="merged")
    loading = time.process_time() - start
    generator = torch.Generator().manual_seed(0)
    pop = torch.rand(REPEATS + 1, len(experts), generator=generator) - 0.3
    merger = problem.scorer.weight_merger
    seconds = []
    for row in pop:
        start = time.process_time()
        merger.load(row)
        seconds.append(time.process_time() - start)
    merger.restore()
    start = time.process_time()
    problem.evaluate(pop[:REPEATS])
    evaluation = (time.process_time() - start) / REPEATS
    more, more_mapped = memory()
    for expert in problem.experts:
        if expert.checkpoint is not None:
            print(f"    {expert.name}: {expert.checkpoint.words()}")
    return (
        f"read in {loading:.1f} s, {more - own:.0f} MiB of its own and {more_mapped - mapped:.0f} "
        f"MiB mapped, {min(seconds[1:]):.2f} s to load a merge, {evaluation:.2f} s an evaluation"
    )


def main() -> None:
    plain = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=plain)
    parser.add_argument("--dtype", default="bfloat16", choices=["bfloat16", "float32"])
    parser.add_argument("--questions", type=int, default=12)
    arguments = parser.parse_args()
    dtype = getattr(torch, arguments.dtype)
    dev, _ = read_reasoning_gym("syllogism", dev=arguments.questions, test=1)
    threads = torch.get_num_threads()
    print(f"{SMOLLM2}, {arguments.dtype}, {arguments.questions} questions, {threads} threads")
    with tempfile.TemporaryDirectory() as folder:
        base, models = write_models(Path(folder), dtype)
        gc.collect()
        for what, experts in (
            ("adapters", [DEMO / name for name in NAMES]),
            ("full checkpoints", models),
            ("mixed", [models[0], DEMO / NAMES[1], DEMO / NAMES[2]]),
        ):
            print(f"{what}: {measure(str(base), experts, [dev], dtype)}", flush=True)
            gc.collect()


if __name__ == "__main__":
    main()
