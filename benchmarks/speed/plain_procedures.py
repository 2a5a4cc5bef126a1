"""The published procedure and plain peft: P merges evaluated as one would do it first.

- `Published`: dense task vectors, summed on the CPU, `load_state_dict`; padded batches in file
  order, logits of all positions.
- `Peft`: `add_weighted_adapter("cat")` and `set_adapter`, otherwise as published.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch

from evox_evogm.problems import Example, Task
from evox_evogm.problems.adapters.read_adapter import Expert, read_expert
from evox_evogm.problems.tasks.exact_match import agrees
from evox_evogm.problems.tasks.requests import gold_text

NEW_TOKENS, BATCH = 16, 8


class Published:
    """Dense task vectors of every expert; each candidate is a new state dict."""

    def __init__(self, model: torch.nn.Module, tokenizer, experts: Sequence[Path]):
        self.model = model
        self.tokenizer = tokenizer
        self.base = {name: weight.clone() for name, weight in model.state_dict().items()}
        self.vectors = [task_vector(read_expert(folder), model.dtype) for folder in experts]

    def merge(self, coefficients: torch.Tensor) -> None:
        """Put a candidate into the weights."""
        weights = {name: weight.clone() for name, weight in self.base.items()}
        for coefficient, vector in zip(coefficients.tolist(), self.vectors, strict=True):
            for name, delta in vector.items():
                weights[name] += coefficient * delta
        self.model.load_state_dict(weights)

    def __call__(self, pop: torch.Tensor, tasks: Sequence[Task]) -> torch.Tensor:
        """Scores `(P, S)` of all examples."""
        scores = []
        for coefficients in pop:
            self.merge(coefficients)
            scores.append(plain_scores(self.model, self.tokenizer, tasks))
        self.model.load_state_dict(self.base)
        return torch.stack(scores)


def task_vector(expert: Expert, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """The dense deltas of an expert, by the name of the weight."""
    deltas = {}
    for name, factors in expert.modules.items():
        delta = factors.scale * factors.b @ factors.a
        deltas[f"{name}.weight"] = delta.to(dtype)
    return deltas


class Peft:
    """peft's exact combination, one adapter per candidate."""

    def __init__(self, model: torch.nn.Module, tokenizer, experts: Sequence[Path]):
        from peft import PeftModel

        self.tokenizer = tokenizer
        self.names = [folder.name for folder in experts]
        self.model = PeftModel.from_pretrained(model, experts[0], adapter_name=self.names[0])
        for folder in experts[1:]:
            self.model.load_adapter(folder, adapter_name=folder.name)
        self.model.to(model.dtype)

    def __call__(self, pop: torch.Tensor, tasks: Sequence[Task]) -> torch.Tensor:
        """Scores `(P, S)` of all examples."""
        scores = []
        for coefficients in pop.tolist():
            with self.candidate(coefficients):
                scores.append(plain_scores(self.model, self.tokenizer, tasks))
        return torch.stack(scores)

    @contextmanager
    def candidate(self, coefficients: list[float]) -> Iterator[None]:
        """Inside the block the model is a candidate."""
        self.model.add_weighted_adapter(
            self.names, coefficients, "candidate", combination_type="cat"
        )
        self.model.set_adapter("candidate")
        yield
        self.model.delete_adapter("candidate")


@torch.no_grad()
def plain_scores(model: torch.nn.Module, tokenizer, tasks: Sequence[Task]) -> torch.Tensor:
    """Scores `(S,)` of all examples of all tasks."""
    scores = []
    for task in tasks:
        score = generated_scores if task.metric == "exact_match" else gold_scores
        for start in range(0, len(task.examples), BATCH):
            scores += score(model, tokenizer, task, task.examples[start : start + BATCH])
    return torch.tensor(scores)


def prompt_tokens(tokenizer, example: Example) -> list[int]:
    return tokenizer(example.prompt)["input_ids"]


def gold_tokens(tokenizer, task: Task, example: Example) -> list[int]:
    return tokenizer(f" {gold_text(task, example)}", add_special_tokens=False)["input_ids"]


def pad_left(tokenizer, rows: list[list[int]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens and attention mask of rows of one length, two `(N, C)` tensors."""
    width = max(map(len, rows))
    filler = padding_token(tokenizer)
    tokens = torch.tensor([[filler] * (width - len(row)) + row for row in rows])
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
    return tokens, mask


def padding_token(tokenizer) -> int:
    """A token that fills rows up: the tokenizer's own, or the end of text."""
    own = tokenizer.pad_token_id
    return tokenizer.eos_token_id if own is None else own


def gold_scores(
    model: torch.nn.Module, tokenizer, task: Task, examples: Sequence[Example]
) -> list[float]:
    """Mean log-probability of the right answers' tokens."""
    golds = [gold_tokens(tokenizer, task, example) for example in examples]
    rows = []
    for example, gold in zip(examples, golds, strict=True):
        rows.append(prompt_tokens(tokenizer, example) + gold)
    tokens, mask = [part.to(model.device) for part in pad_left(tokenizer, rows)]
    positions = (mask.cumsum(1) - 1).clamp_min(0)
    output = model(input_ids=tokens, attention_mask=mask, position_ids=positions)
    log_probabilities = output.logits.float().log_softmax(-1)
    of_tokens = log_probabilities[:, :-1].gather(-1, tokens[:, 1:, None])[..., 0]
    return [float(row[-len(gold) :].mean()) for row, gold in zip(of_tokens, golds, strict=True)]


def generated_scores(
    model: torch.nn.Module, tokenizer, task: Task, examples: Sequence[Example]
) -> list[float]:
    """Whether generated answers agree with the right ones."""
    texts = generated_texts(model, tokenizer, task, examples)
    scores = []
    for text, example in zip(texts, examples, strict=True):
        scores.append(float(agrees(text, gold_text(task, example), task.match)))
    return scores


def generated_texts(
    model: torch.nn.Module, tokenizer, task: Task, examples: Sequence[Example]
) -> list[str]:
    """The likeliest answers, token by token."""
    rows = [prompt_tokens(tokenizer, example) for example in examples]
    tokens, mask = [part.to(model.device) for part in pad_left(tokenizer, rows)]
    replies = model.generate(
        input_ids=tokens,
        attention_mask=mask,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=padding_token(tokenizer),
        max_new_tokens=task.max_new_tokens,
        do_sample=False,
    )
    return tokenizer.batch_decode(replies[:, tokens.shape[1] :], skip_special_tokens=True)
