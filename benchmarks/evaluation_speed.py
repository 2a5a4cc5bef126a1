"""How fast are P merges of a language model evaluated, beside the published procedure and plain peft?

Four regimes on SmolLM2-135M with the shipped experts: about 500 and at least 5,000 prompt tokens per candidate scored by the
log-probability of the right answer, and 8 and 64 generated answers. Every procedure scores the same random candidates on the
same examples; repeats are interleaved, medians reported, and scores compared example by example.

    python benchmarks/evaluation_speed.py [--candidates 20] [--repeats 5] [--dtype bfloat16] [--regimes short long ...]

    published   dense task vectors, summed on the CPU, `load_state_dict`; padded batches in file order, logits of all positions
    peft        `add_weighted_adapter("cat")` and `set_adapter`, otherwise as published
    factored    ours: candidates share the base, and batches
    merged      ours: one candidate after another in the weights
"""

import argparse
import statistics
import time
from pathlib import Path

import torch

import evox_evogm
from evox_evogm.problems import LoRAMergeProblem, Task, read_reasoning_gym
from evox_evogm.problems.base_model import SMOLLM2, load_base
from evox_evogm.problems.experts import read_expert
from evox_evogm.problems.scoring import agrees, gold_text

EXPERTS = sorted(path for path in (Path(evox_evogm.__file__).parent / "demo/experts").iterdir() if path.is_dir())
REGIMES = {  # reasoning-gym sources, examples of each, rule
    "short": (("gcd", "chain_sum"), 6, "gold_log_probability"),
    "long": (("gcd", "chain_sum", "family_relationships", "syllogism"), 24, "gold_log_probability"),
    "generated 8": (("chain_sum",), 8, "exact_match"),
    "generated 64": (("chain_sum",), 64, "exact_match"),
}
NEW_TOKENS, BATCH = 16, 8


def make_tasks(regime: str) -> list[Task]:
    sources, examples, rule = REGIMES[regime]
    return [read_reasoning_gym(name, dev=examples, test=1, rule=rule, max_new_tokens=NEW_TOKENS)[0] for name in sources]


@torch.no_grad()
def plain_scores(model, tokenizer, tasks: list[Task]) -> torch.Tensor:
    """Scores of all examples as anybody would compute them first."""
    scores = []
    for task in tasks:
        for start in range(0, len(task.examples), BATCH):
            examples = task.examples[start : start + BATCH]
            prompts = [tokenizer(example.prompt)["input_ids"] for example in examples]
            golds = [tokenizer(f" {gold_text(task, e)}", add_special_tokens=False)["input_ids"] for e in examples]
            if task.rule == "exact_match":
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
    scores = model(input_ids=tokens, attention_mask=mask, position_ids=positions).logits.float().log_softmax(-1)
    targets = scores[:, :-1].gather(-1, tokens[:, 1:, None])[..., 0]
    return [float(row[-len(gold) :].mean()) for row, gold in zip(targets, golds, strict=True)]


def generated_scores(model, tokenizer, task, examples, prompts) -> list[float]:
    tokens, mask = pad_left(tokenizer, prompts)
    settings = {"max_new_tokens": NEW_TOKENS, "do_sample": False, "pad_token_id": tokenizer.eos_token_id}
    replies = model.generate(input_ids=tokens, attention_mask=mask, eos_token_id=tokenizer.eos_token_id, **settings)
    texts = tokenizer.batch_decode(replies[:, tokens.shape[1] :], skip_special_tokens=True)
    return [float(agrees(text, gold_text(task, e), task.match)) for text, e in zip(texts, examples, strict=True)]


class Published:
    """Dense task vectors of every expert; each candidate is a new state dict."""

    def __init__(self, model, tokenizer):
        self.model, self.tokenizer = model, tokenizer
        self.base = {name: weight.clone() for name, weight in model.state_dict().items()}
        self.vectors = []
        for expert in map(read_expert, EXPERTS):
            deltas = {f"{name}.weight": factors.scale * factors.b @ factors.a for name, factors in expert.modules.items()}
            self.vectors.append({name: delta.to(model.dtype) for name, delta in deltas.items()})

    def __call__(self, pop, tasks):
        scores = []
        for coefficients in pop.tolist():
            merged = {name: weight.clone() for name, weight in self.base.items()}
            for coefficient, vector in zip(coefficients, self.vectors, strict=True):
                for name, delta in vector.items():
                    merged[name] += coefficient * delta
            self.model.load_state_dict(merged)
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
            self.model.add_weighted_adapter(self.names, coefficients, "candidate", combination_type="cat")
            self.model.set_adapter("candidate")
            scores.append(plain_scores(self.model, self.tokenizer, tasks))
            self.model.delete_adapter("candidate")
        return torch.stack(scores)


class Ours:
    """`LoRAMergeProblem` by one of its paths; the problem is set up once per set of tasks, as in a search."""

    def __init__(self, model, tokenizer, path):
        self.settings = {"base": model, "tokenizer": tokenizer, "experts": EXPERTS, "path": path}
        self.problem = None

    def __call__(self, pop, tasks):
        if self.problem is None or self.problem.tasks != tasks:
            self.problem = LoRAMergeProblem(tasks=tasks, **self.settings)
        by_task = self.problem.score_together(pop, tasks)
        return torch.cat([by_task[task.name] for task in tasks], 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--candidates", type=int, default=20)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--dtype", choices=["bfloat16", "float32"], default="bfloat16")
    parser.add_argument("--regimes", nargs="+", choices=list(REGIMES), default=list(REGIMES))
    arguments = parser.parse_args()
    dtype = getattr(torch, arguments.dtype)

    def fresh():
        return load_base(SMOLLM2, dtype=dtype, device=torch.device("cpu"))

    procedures = {
        "published": Published(*fresh()),
        "peft": Peft(*fresh()),
        "factored": Ours(*fresh(), "factored"),
        "merged": Ours(*fresh(), "merged"),
    }
    torch.manual_seed(0)
    pop = 0.4 * torch.rand(arguments.candidates, len(EXPERTS))
    print(f"{arguments.dtype}, P {len(pop)}, {torch.get_num_threads()} threads, {arguments.repeats} repeats\n")
    print("| regime | procedure | prompt tokens | ms per candidate | spread | faster than published | scores that differ |")
    print("| --- | --- | ---: | ---: | ---: | ---: | ---: |", flush=True)
    _, tokenizer = fresh()
    for regime in arguments.regimes:
        tasks = make_tasks(regime)
        tokens = sum(len(tokenizer(example.prompt)["input_ids"]) for task in tasks for example in task.examples)
        times, scores = {name: [] for name in procedures}, {}
        for procedure in procedures.values():  # warm up
            procedure(pop[:1], tasks)
        for _ in range(arguments.repeats):
            for name, procedure in procedures.items():
                start = time.perf_counter()
                scores[name] = procedure(pop, tasks)
                times[name].append(1e3 * (time.perf_counter() - start) / len(pop))
        tolerance = 1e-3 if dtype == torch.float32 else 0.1
        for name, values in times.items():
            median, ratio = statistics.median(values), statistics.median(times["published"]) / statistics.median(values)
            differ = int(((scores[name] - scores["published"]).abs() > tolerance).sum())
            spread = f"{min(values):.0f}-{max(values):.0f}"
            row = [regime, name, tokens, f"{median:.0f}", spread, f"{ratio:.1f}", f"{differ} of {scores[name].numel()}"]
            print("| " + " | ".join(map(str, row)) + " |", flush=True)


if __name__ == "__main__":
    main()
