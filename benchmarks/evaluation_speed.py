"""How fast are P merges of a language model evaluated, beside the published procedure and plain peft?

Four regimes on SmolLM2-135M with the shipped experts: about 500 and at least 5,000 prompt tokens per candidate scored by the
log-probability of the right answer, and 8 and 64 generated answers. Every procedure scores the same random candidates on the
same examples; repeats are interleaved, medians reported, and scores compared example by example.

    python benchmarks/evaluation_speed.py [--candidates 20] [--repeats 5] [--regimes short long ...]

    published   dense task vectors, summed on the CPU, `load_state_dict`; padded batches in file order, logits of all positions
    peft        `add_weighted_adapter("cat")` and `set_adapter`, otherwise as published
    unmerged    ours: candidates share the base, and batches
    merged      ours: one candidate after another in the weights

Published and peft take one candidate after another, so that a few of them (`--alone`) give their time per candidate.
"""

import argparse
import statistics
import time
import warnings
from pathlib import Path

import torch
from scipy.stats import spearmanr

import evox_evogm
from evox_evogm.problems import LoRAMergeProblem, Task, read_reasoning_gym
from evox_evogm.problems.adapters.merging import merged
from evox_evogm.problems.adapters.read_adapter import read_expert
from evox_evogm.problems.inference.base_model import SMOLLM2, load_base
from evox_evogm.problems.tasks.metrics import agrees, gold_text

EXPERTS = sorted(
    path for path in (Path(evox_evogm.__file__).parent / "demo/experts").iterdir() if path.is_dir()
)
REGIMES = {  # reasoning-gym sources, examples of each, rule
    "short": (("gcd", "chain_sum"), 6, "gold_log_probability"),
    "long": (("gcd", "chain_sum", "family_relationships", "syllogism"), 31, "gold_log_probability"),
    "generated 8": (("chain_sum",), 8, "exact_match"),
    "generated 64": (("chain_sum",), 64, "exact_match"),
}
NEW_TOKENS, BATCH = 16, 8


def make_tasks(regime: str) -> list[Task]:
    sources, examples, rule = REGIMES[regime]
    return [
        read_reasoning_gym(name, dev=examples, test=1, metric=rule, max_new_tokens=NEW_TOKENS)[0]
        for name in sources
    ]


@torch.no_grad()
def plain_scores(model, tokenizer, tasks: list[Task]) -> torch.Tensor:
    """Scores of all examples as anybody would compute them first."""
    scores = []
    for task in tasks:
        for start in range(0, len(task.examples), BATCH):
            examples = task.examples[start : start + BATCH]
            prompts = [tokenizer(example.prompt)["input_ids"] for example in examples]
            golds = [
                tokenizer(f" {gold_text(task, e)}", add_special_tokens=False)["input_ids"]
                for e in examples
            ]
            if task.metric == "exact_match":
                scores += generated_scores(model, tokenizer, task, examples, prompts)
            else:
                scores += gold_scores(model, tokenizer, prompts, golds)
    return torch.tensor(scores)


def pad_left(tokenizer, rows: list[list[int]]) -> tuple[torch.Tensor, torch.Tensor]:
    width = max(map(len, rows))
    tokens = torch.tensor([[tokenizer.eos_token_id] * (width - len(row)) + row for row in rows])
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
    return tokens, mask


def gold_scores(model, tokenizer, prompts, golds) -> list[float]:
    tokens, mask = pad_left(tokenizer, [p + g for p, g in zip(prompts, golds, strict=True)])
    positions = (mask.cumsum(1) - 1).clamp_min(0)
    scores = (
        model(input_ids=tokens, attention_mask=mask, position_ids=positions)
        .logits.float()
        .log_softmax(-1)
    )
    targets = scores[:, :-1].gather(-1, tokens[:, 1:, None])[..., 0]
    return [float(row[-len(gold) :].mean()) for row, gold in zip(targets, golds, strict=True)]


def generated_scores(model, tokenizer, task, examples, prompts) -> list[float]:
    tokens, mask = pad_left(tokenizer, prompts)
    settings = {
        "max_new_tokens": NEW_TOKENS,
        "do_sample": False,
        "pad_token_id": tokenizer.eos_token_id,
    }
    replies = model.generate(
        input_ids=tokens, attention_mask=mask, eos_token_id=tokenizer.eos_token_id, **settings
    )
    texts = tokenizer.batch_decode(replies[:, tokens.shape[1] :], skip_special_tokens=True)
    return [
        float(agrees(text, gold_text(task, e), task.match))
        for text, e in zip(texts, examples, strict=True)
    ]


class Published:
    """Dense task vectors of every expert; each candidate is a new state dict."""

    def __init__(self, model, tokenizer):
        self.model, self.tokenizer = model, tokenizer
        self.base = {name: weight.clone() for name, weight in model.state_dict().items()}
        self.vectors = []
        for expert in map(read_expert, EXPERTS):
            deltas = {
                f"{name}.weight": factors.scale * factors.b @ factors.a
                for name, factors in expert.modules.items()
            }
            self.vectors.append({name: delta.to(model.dtype) for name, delta in deltas.items()})

    def merge(self, coefficients):
        weights = {name: weight.clone() for name, weight in self.base.items()}
        for coefficient, vector in zip(coefficients.tolist(), self.vectors, strict=True):
            for name, delta in vector.items():
                weights[name] += coefficient * delta
        self.model.load_state_dict(weights)

    def __call__(self, pop, tasks):
        scores = []
        for coefficients in pop:
            self.merge(coefficients)
            scores.append(plain_scores(self.model, self.tokenizer, tasks))
        self.model.load_state_dict(self.base)
        return torch.stack(scores)


class Peft:
    """peft's exact combination, one adapter per candidate."""

    def __init__(self, model, tokenizer):
        from peft import PeftModel

        self.tokenizer = tokenizer
        self.names = [path.name for path in EXPERTS]
        self.model = PeftModel.from_pretrained(model, EXPERTS[0], adapter_name=self.names[0])
        for path in EXPERTS[1:]:
            self.model.load_adapter(path, adapter_name=path.name)
        self.model.to(model.dtype)

    def __call__(self, pop, tasks):
        scores = []
        for coefficients in pop.tolist():
            self.model.add_weighted_adapter(
                self.names, coefficients, "candidate", combination_type="cat"
            )
            self.model.set_adapter("candidate")
            scores.append(plain_scores(self.model, self.tokenizer, tasks))
            self.model.delete_adapter("candidate")
        return torch.stack(scores)


class Ours:
    """`LoRAMergeProblem` by one of its paths; the problem is set up once per set of tasks, as in a search."""

    def __init__(self, model, tokenizer, path):
        self.settings = {"base": model, "tokenizer": tokenizer, "experts": EXPERTS, "mode": path}
        self.problem = None
        self.seconds: dict[str, float] = {}  # by task, of the last call

    def __call__(self, pop, tasks):
        if self.problem is None or self.problem.tasks != tasks:
            self.problem = LoRAMergeProblem(tasks=tasks, **self.settings)
        self.seconds = {}
        scores = []
        for task in tasks:
            start = time.perf_counter()
            scores.append(self.problem.score_together(pop, [task])[task.name])
            self.seconds[task.name] = time.perf_counter() - start
        return torch.cat(scores, 1)


def needed_multiply_adds(model, tokenizer, tasks: list[Task]) -> float:
    """Of one candidate: every token of prompts and answers through the layers, and the answers through the output layer."""
    output = model.get_output_embeddings()
    layers = sum(
        m.weight.numel()
        for m in model.modules()
        if isinstance(m, torch.nn.Linear) and m is not output
    )
    needed = 0
    for task in tasks:
        for example in task.examples:
            answer = len(
                tokenizer(f" {gold_text(task, example)}", add_special_tokens=False)["input_ids"]
            )
            needed += (
                len(tokenizer(example.prompt)["input_ids"]) + answer
            ) * layers + answer * output.weight.numel()
    return needed


def product_rate(dtype: torch.dtype, size: int = 2048) -> float:
    """Multiply-adds per second of large matrix products."""
    a, b = torch.randn(2, size, size, dtype=dtype)
    for _ in range(3):
        a @ b
    start = time.perf_counter()
    for _ in range(20):
        a @ b
    return 20 * size**3 / (time.perf_counter() - start)


def preparing(
    published: Published, unmerged: Ours, merged_path: Ours, pop: torch.Tensor
) -> dict[str, float]:
    """Seconds per candidate before its first forward pass."""
    seconds = {}
    start = time.perf_counter()
    published.merge(pop[0])
    seconds["published"] = time.perf_counter() - start
    problem = unmerged.problem
    start = time.perf_counter()
    with merged(problem.language_model.model, problem.stacked, pop):
        seconds["unmerged"] = (time.perf_counter() - start) / len(pop)
    merger = merged_path.problem._weight_merger()
    start = time.perf_counter()
    merger.load(pop[0])
    seconds["merged"] = time.perf_counter() - start
    merger.restore()
    return seconds


def main() -> None:
    warnings.filterwarnings(
        "ignore"
    )  # of transformers about peft, of peft about adapters that are deleted
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--candidates", type=int, default=20)
    parser.add_argument("--alone", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--regimes", nargs="+", choices=list(REGIMES), default=list(REGIMES))
    arguments = parser.parse_args()

    def fresh(dtype):
        return load_base(SMOLLM2, dtype=dtype, device=torch.device("cpu"))

    half, single = torch.bfloat16, torch.float32
    model, tokenizer = fresh(half)
    procedures = {
        "published, float32": Published(*fresh(single)),
        "published": Published(*fresh(half)),
        "peft": Peft(*fresh(half)),
        "unmerged": Ours(model, tokenizer, "unmerged"),
        "merged": Ours(*fresh(half), "merged"),
    }
    exact = {path: Ours(*fresh(single), path) for path in ("unmerged", "merged")}
    torch.manual_seed(0)
    pop = 0.4 * torch.rand(arguments.candidates, len(EXPERTS))
    few = pop[: arguments.alone]
    print(
        f"bfloat16 unless said, P {len(pop)}, {torch.get_num_threads()} threads, {arguments.repeats} repeats",
        flush=True,
    )
    for regime in arguments.regimes:
        tasks = make_tasks(regime)
        prompts = sum(
            len(tokenizer(example.prompt)["input_ids"])
            for task in tasks
            for example in task.examples
        )
        times = {name: [] for name in procedures}
        by_task = {name: {task.name: [] for task in tasks} for name in ("unmerged", "merged")}
        scores, rates, prepared = {}, [], []
        for procedure in procedures.values():  # warm up
            procedure(pop[:1], tasks[:1])
        for _ in range(arguments.repeats):
            rates.append(product_rate(half))
            for name, procedure in procedures.items():
                candidates = pop if isinstance(procedure, Ours) else few
                start = time.perf_counter()
                scores[name] = procedure(candidates, tasks)
                times[name].append(1e3 * (time.perf_counter() - start) / len(candidates))
                for task, seconds in getattr(procedure, "seconds", {}).items():
                    by_task[name][task].append(1e3 * seconds / len(candidates))
            prepared.append(
                preparing(
                    procedures["published"], procedures["unmerged"], procedures["merged"], pop
                )
            )
        median = {name: statistics.median(values) for name, values in times.items()}
        print(f"\n{regime}: {prompts} prompt tokens per candidate\n")
        print(
            "| procedure | ms per candidate | spread | faster than published | than it in float32 | than peft |"
        )
        print("| --- | ---: | ---: | ---: | ---: | ---: |")
        for name, values in times.items():
            ratios = [
                median[other] / median[name]
                for other in ("published", "published, float32", "peft")
            ]
            row = [
                name,
                f"{median[name]:.0f}",
                f"{min(values):.0f}-{max(values):.0f}",
                *(f"{ratio:.1f}" for ratio in ratios),
            ]
            print("| " + " | ".join(row) + " |")

        problem = LoRAMergeProblem(model, EXPERTS, tasks, tokenizer=tokenizer)
        problem.choose_modes(len(pop))
        cost = {
            name: {task: statistics.median(values) for task, values in by_task[name].items()}
            for name in by_task
        }
        chosen = sum(cost[path][task] for task, path in problem.modes.items())
        better = sum(min(cost[path][task.name] for path in cost) for task in tasks)
        forced = min(sum(values.values()) for values in cost.values())
        print(
            f"\nchosen: {problem.modes}: {chosen:.0f} ms, {chosen / forced:.2f} of the better forced path, ",
            end="",
        )
        print(f"{chosen / better:.2f} of the better one for every task")
        done = needed_multiply_adds(model, tokenizer, tasks) / (1e-3 * chosen)
        rate = statistics.median(rates)
        print(
            f"machine: {done / 1e9:.0f} of {rate / 1e9:.0f} G multiply-adds a second needed: {100 * done / rate:.0f} %"
        )
        seconds = {name: statistics.median(row[name] for row in prepared) for name in prepared[0]}
        for name in ("unmerged", "merged"):
            ratio = seconds["published"] / seconds[name]
            print(
                f"preparing a candidate: {name} {1e3 * seconds[name]:.2f} ms, published {ratio:.0f} times as long"
            )
        for path, ours in exact.items():
            found = ours(few, tasks)
            differ = ((found - scores["published, float32"]).abs() > 1e-3).nonzero().tolist()
            print(
                f"float32, {path}: {len(differ)} of {found.numel()} scores differ from the published ones {differ[:5]}"
            )
        exact_scores, rounded = exact["unmerged"](pop, tasks).mean(1), scores["unmerged"].mean(1)
        spearman = spearmanr(exact_scores, rounded).statistic
        print(
            f"float32 and bfloat16: rank correlation of {len(pop)} candidates {spearman:.3f}, "
            f"largest difference of a mean score {(exact_scores - rounded).abs().max():.3f} "
            f"(spread of scores {exact_scores.std():.3f})",
            flush=True,
        )


if __name__ == "__main__":
    main()
