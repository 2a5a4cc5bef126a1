"""The small level of `compare.py`: a real merge of real networks in which one evaluation takes milliseconds.

A Llama of half a million parameters reads an operation and letters and writes letters: "R abcd =" asks for the reverse,
"RN abcd =" for the reverse with every letter moved on by one. It is pretrained for a short time on all operations and on
pairs of them. LoRA experts are trained on one operation each, alone and in pairs; they differ in rank, alpha, modules and
length of training. Three pairs are never trained on: the unseen tasks. Questions go to train, dev or test by a hash of
their text.

    python benchmarks/small_level.py            # base and 64 experts into ~/.cache/evox-evogm/small_level
    python benchmarks/small_level.py --show     # what the base and every expert score on every operation
"""

import argparse
import json
import math
import random
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path

import torch
from answer_loss import answer_loss
from controls import random_adapters, shuffled_answers

from evox_evogm.problems import Example, LoRAMergeProblem, Task
from evox_evogm.problems.inference.language_model import LanguageModel, Request
from evox_evogm.problems.tasks.readers import split_of

FOLDER = Path.home() / ".cache" / "evox-evogm" / "small_level"
LETTERS = "abcdefghij"


def moved(by: int) -> Callable[[str], str]:
    """Every letter moved on in the alphabet of ten, which closes to a ring."""
    return lambda text: "".join(LETTERS[(LETTERS.index(letter) + by) % 10] for letter in text)


def running(choose: Callable) -> Callable[[str], str]:
    """The largest or smallest letter so far."""
    return lambda text: "".join(choose(text[: end + 1]) for end in range(len(text)))


OPERATIONS: dict[str, Callable[[str], str]] = {
    "R": lambda text: text[::-1],
    "S": lambda text: "".join(sorted(text)),
    "N": moved(1),
    "L": lambda text: text[1:] + text[0],
    "D": lambda text: "".join(sorted(text, reverse=True)),
    "M": lambda text: "".join(LETTERS[9 - LETTERS.index(letter)] for letter in text),
    "W": lambda text: text[-1] + text[1:-1] + text[0],
    "V": moved(-2),
    "I": running(max),
    "Q": lambda text: max(text) * len(text),
    "T": lambda text: text[-1] + text[:-1],
    "P": moved(-1),
    "X": lambda text: "".join(text[i : i + 2][::-1] for i in range(0, len(text), 2)),
    "J": running(min),
    "G": moved(2),
    "Y": lambda text: min(text) * len(text),
    "A": lambda text: text[0] * len(text),
    "Z": lambda text: text[-1] * len(text),
    "B": lambda text: text[0] + text[:-1],
    "C": lambda text: text[1:] + text[-1],
}
UNSEEN = ("RN", "LS", "MW")
TARGETS = (
    ["q_proj", "k_proj", "v_proj", "o_proj"],
    ["q_proj", "v_proj"],
    ["gate_proj", "up_proj", "down_proj"],
    ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
)
N_EXPERTS = 64


def questions(names: list[str], split: str, generator: random.Random) -> Iterator[tuple[str, str]]:
    """Questions of one split and their answers without end, the operations drawn from `names`."""
    while True:
        name = generator.choice(names)
        text = "".join(generator.choices(LETTERS, k=generator.randint(3, 6)))
        question = f"{name} {text} ="
        if split_of(question) == split:
            answer = text
            for letter in name:
                answer = OPERATIONS[letter](answer)
            yield question, answer


def make_task(name: str, split: str, count: int, draw: int | None = None) -> Task:
    """`count` different questions, the same at every call with the same draw."""
    asked: dict[str, str] = {}
    key = f"{name} {split}" if draw is None else f"{name} {split} {draw}"
    for question, answer in questions([name], split, random.Random(key)):
        asked[question] = answer
        if len(asked) == count:
            break
    examples = tuple(Example(f"{split} {index}", *pair) for index, pair in enumerate(asked.items()))
    source = "small level 1" if draw is None else f"small level 1, draw {draw}"
    return Task(name, source, "exact_match", examples)


def build_tokenizer():
    """One token per character; blanks are none."""
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {token: index for index, token in enumerate(["<end>", "=", *OPERATIONS, *LETTERS])}
    core = Tokenizer(models.WordLevel(vocabulary, unk_token="<end>"))
    core.normalizer = normalizers.Replace(" ", "")
    core.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    core.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<end>")


def build_base():
    """A Llama with fresh weights."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(build_tokenizer()),
        hidden_size=96,
        intermediate_size=256,
        num_hidden_layers=4,
        num_attention_heads=4,
        max_position_embeddings=32,
        tie_word_embeddings=True,
        eos_token_id=0,
        bos_token_id=None,
        pad_token_id=None,
    )
    return LlamaForCausalLM(config)


def train(
    model: torch.nn.Module,
    tokenizer,
    names: list[str],
    *,
    steps: int,
    batch: int,
    lr: float,
    seed: int,
    label: str,
) -> None:
    """AdamW on fresh questions, with a linear decay after a short rise."""
    reader, generator = LanguageModel(model, tokenizer), random.Random(seed)
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=lr, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / 50, 1 - step / steps)
    )
    source, start = questions(names, "train", generator), time.time()
    for step in range(steps):
        requests: list[Request] = [
            (
                reader.prompt_tokens(question),
                (*reader.continuation_tokens(answer), reader.end_token),
            )
            for question, answer in (next(source) for _ in range(batch))
        ]
        loss = answer_loss(model, requests)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        schedule.step()
        if (step + 1) % 200 == 0 or step + 1 == steps:
            print(
                f"{label}: step {step + 1}/{steps} loss {loss.item():.3f} {time.time() - start:.0f} s",
                flush=True,
            )


def make_base(folder: Path) -> None:
    """Pretrain the base for a short time, so that there is something left for experts to learn."""
    singles = list(OPERATIONS)
    pairs = [a + b for a in singles for b in singles if a + b not in UNSEEN]
    names = (
        singles * (len(pairs) // len(singles)) + pairs
    )  # half of the questions are of one operation
    model, tokenizer = build_base(), build_tokenizer()
    train(model, tokenizer, names, steps=260, batch=192, lr=2e-3, seed=0, label="base")
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def make_expert(index: int, base: torch.nn.Module, tokenizer, folder: Path) -> None:
    """Expert `index` of operation `index` mod 20; the later ones of an operation differ in seed, form and training."""
    from peft import LoraConfig, get_peft_model

    names = list(OPERATIONS)
    name = names[index % len(names)]
    pairs = [
        a + b for other in names for a, b in ((name, other), (other, name)) if a + b not in UNSEEN
    ]
    draw = random.Random(index)
    rank = draw.choice((2, 4, 6, 8))
    config = LoraConfig(
        r=rank,
        lora_alpha=draw.choice((1, 2, 4)) * rank,
        target_modules=TARGETS[index % len(TARGETS)],
        task_type="CAUSAL_LM",
    )
    torch.manual_seed(index)
    wrapped = get_peft_model(base, config)
    steps = draw.choice((40, 80, 120))
    train(
        wrapped,
        tokenizer,
        [name] * len(pairs) + pairs,
        steps=steps,
        batch=64,
        lr=5e-3,
        seed=index,
        label=folder.name,
    )
    wrapped.save_pretrained(folder)
    wrapped.unload()
    base.requires_grad_(True)


def expert_folders(n: int, folder: Path = FOLDER) -> list[Path]:
    """The first n experts."""
    names = list(OPERATIONS)
    return [
        folder / "experts" / f"{names[index % len(names)]}{index // len(names)}"
        for index in range(n)
    ]


def build(folder: Path = FOLDER) -> None:
    """Make what is missing."""
    from transformers import AutoModelForCausalLM

    if not (folder / "base" / "config.json").exists():
        make_base(folder / "base")
    tokenizer = build_tokenizer()
    for index, path in enumerate(expert_folders(N_EXPERTS, folder)):
        if not (path / "adapter_model.safetensors").exists():
            model = AutoModelForCausalLM.from_pretrained(folder / "base", dtype=torch.float32)
            make_expert(index, model, tokenizer, path)


def tasks(n: int, split: str, draw: int | None = None) -> list[Task]:
    """The operations of the first n experts (or of ten, so that fewer are compared on the same), and the unseen pairs; about
    160 questions in dev, 40 a task in test, or 200 of a draw: the less the score of one choice depends on them, the fewer
    draws are needed."""
    names = [*list(OPERATIONS)[: max(n, 10)], *UNSEEN]
    count = (40 if draw is None else 200) if split == "test" else math.ceil(160 / len(names))
    return [make_task(name, split, count, draw) for name in names]


def make_problem(
    n: int = 10,
    *,
    control: str = "",
    draw: int | None = None,
    regmean: bool = False,
    folder: Path = FOLDER,
    **settings,
) -> LoRAMergeProblem:
    """Merges of the first n experts, on dev.

    :param control: `"random"` or `"shuffled"`, see `controls.py`.
    :param draw: number of a set of questions; `None` is the set of the first benchmarks.
    :param regmean: regress every expert on the questions of its own operation, as they are asked in dev.
    :param settings: of `LoRAMergeProblem`.
    """
    folders = expert_folders(n, folder)
    if not folders[-1].exists():
        raise SystemExit(
            f"{folder}: expected the small level there, found none; run python benchmarks/small_level.py"
        )
    asked = [
        shuffled_answers(task) if control == "shuffled" else task for task in tasks(n, "dev", draw)
    ]
    if regmean:
        settings["regmean"] = {
            path.name: [task for task in asked if task.name == path.name[0]] for path in folders
        }
    settings = {
        "dtype": torch.float32,
        "batch_tokens": 2_048,
        "candidates_at_once": 64,
        "mode": "merged",
    } | settings
    with random_adapters(folders) if control == "random" else nullcontext(folders) as experts:
        return LoRAMergeProblem(folder / "base", experts, asked, **settings)


def show(folder: Path) -> None:
    """Print the scores on dev of the base, the average and every single expert."""
    problem = make_problem(N_EXPERTS, folder=folder)
    names = [task.name for task in problem.tasks]
    rows = {"base": torch.zeros(N_EXPERTS), "average": torch.full((N_EXPERTS,), 1 / N_EXPERTS)}
    rows |= {
        expert.name: one_hot
        for expert, one_hot in zip(problem.experts, torch.eye(N_EXPERTS), strict=True)
    }
    scores = problem.score_together(torch.stack(list(rows.values())))
    print("| merge | mean | " + " | ".join(names) + " |\n|" + " --- |" * (len(names) + 2))
    for row, name in enumerate(rows):
        values = [float(scores[task][row].mean()) for task in names]
        print(
            f"| {name} | {sum(values) / len(values):.3f} | "
            + " | ".join(f"{value:.2f}" for value in values)
            + " |"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, default=FOLDER)
    parser.add_argument(
        "--show", action="store_true", help="print scores of the base and the experts"
    )
    arguments = parser.parse_args()
    if arguments.show:
        show(arguments.folder)
        return
    start = time.time()
    build(arguments.folder)
    parameters = sum(p.numel() for p in build_base().parameters())
    print(
        json.dumps(
            {"parameters": parameters, "experts": N_EXPERTS, "seconds": round(time.time() - start)}
        )
    )


if __name__ == "__main__":
    main()
