"""Scores, texts and exports of merges are those of plain peft, for every architecture.

Right values come from plain transformers and peft: adapters are added up by `add_weighted_adapter`,
and every row runs alone, in float32, without padding, mask or cache.
"""

import copy

import pytest
import torch
from architectures import (
    ARCHITECTURES,
    END_TOKENS,
    build,
    build_character_tokenizer,
    write_adapters,
)

from evox_evogm.problems import Example, LoRAMergeProblem, Task
from evox_evogm.problems.adapters.merging import merged
from evox_evogm.problems.adapters.weight_merger import merged_in_place
from evox_evogm.problems.inference.forward import reset_rope

pytestmark = [pytest.mark.language_model, pytest.mark.slow]

SHOTS = "1+1=2. 2+2=4. 5+5=?"
PROMPTS = (
    f"{SHOTS} 10. 3+4=?",
    f"{SHOTS} 10. what of 11+12?",
    "Q",
    "A question that is longer than every window of these bases: which river is the longest?",
    f"{SHOTS} 10. 8-8=?",
    "Two?",
)
CHOICES = (("A", "yes"), ("B", "not at all"), ("C", "no"))
POPULATION = torch.tensor([[0.7, -0.4], [-0.5, 0.9], [0.0, 1.1]])
NEW_TOKENS = 5
LEAST_LEAD = 2e-4  # of greedy tokens, so that rounding cannot change a text


class Twin:
    """The plain way: a merge by peft that reads one row at a time.

    :param model: the base.
    :param folders: of two adapters.
    :param coefficients: of the merge.
    """

    def __init__(self, model, folders, coefficients):
        self.model = merge_by_peft(model, folders, coefficients)
        self.least_lead = float("inf")

    @torch.no_grad()
    def logits(self, tokens):
        for module in self.model.modules():
            if hasattr(module, "max_seq_len_cached"):  # a RoPE that grew with an earlier row
                reset_rope(module)
        return self.model(input_ids=torch.tensor([tokens]), use_cache=False).logits[0].float()

    def log_probability(self, prompt, answer):
        """Of the tokens of an answer behind its prompt, in nats."""
        logits = self.logits(prompt + answer).log_softmax(-1)
        total = 0.0
        for index, token in enumerate(answer):
            total += float(logits[len(prompt) - 1 + index, token])
        return total

    def greedy(self, prompt, count):
        """The tokens of a greedy text."""
        reply = []
        while len(reply) < count:
            values, tokens = self.logits(prompt + reply)[-1].topk(2)
            self.least_lead = min(self.least_lead, float(values[0] - values[1]))
            token = int(tokens[0])
            if token in END_TOKENS:
                break
            reply.append(token)
        return reply


def merge_by_peft(model, folders, coefficients):
    from peft import PeftModel

    wrapped = PeftModel.from_pretrained(copy.deepcopy(model), folders[0], adapter_name="a0")
    if wrapped.peft_config["a0"].target_parameters:
        return merge_by_hand(model, folders, coefficients)
    wrapped.load_adapter(folders[1], adapter_name="a1")
    weights = coefficients.tolist()
    wrapped.add_weighted_adapter(["a0", "a1"], weights, "sum", combination_type="cat")
    wrapped.set_adapter("sum")
    return wrapped.eval()


@torch.no_grad()
def merge_by_hand(model, folders, coefficients):
    """theta + sum_k lambda_k s_k B_k A_k, where peft cannot add adapters of parameters up."""
    from peft import PeftModel

    whole = copy.deepcopy(model)
    sums = dict(whole.named_parameters())
    originals = dict(model.named_parameters())
    for folder, coefficient in zip(folders, coefficients.tolist(), strict=True):
        single = PeftModel.from_pretrained(copy.deepcopy(model), folder).merge_and_unload()
        for name, parameter in single.named_parameters():
            sums[name] += coefficient * (parameter - originals[name])
    return whole


def tasks_of(texts):
    """A task of choices, and two of texts whose targets are right for some candidates."""
    choices, equal, contained = [], [], []
    for index, prompt in enumerate(PROMPTS):
        id = str(index)
        choices.append(Example(id, prompt, "ABC"[index % 3], CHOICES))
        own = texts[index % len(POPULATION)][index]
        equal.append(Example(id, prompt, own.strip() or "none"))
        contained.append(Example(id, prompt, own.strip()[-1:] or "none"))
    settings = {"metric": "exact_match", "max_new_tokens": NEW_TOKENS}
    return [
        Task("choices", "1", "choice_likelihood", tuple(choices), continuation="text"),
        Task("equal", "1", examples=tuple(equal), **settings),
        Task("contains", "1", examples=tuple(contained), match="contains", **settings),
    ]


def expected_leads(twin, tokenizer):
    """How far the right choice is ahead of the others, in nats, for each prompt."""
    leads = []
    for index, prompt in enumerate(PROMPTS):
        own = []
        for _, text in CHOICES:
            own.append(twin.log_probability(tokenizer.encode(prompt), tokenizer.encode(f" {text}")))
        gold = own.pop(index % 3)
        leads.append(gold - max(own))
    return torch.tensor(leads)


def expected_scores(task, texts, leads):
    """The scores `(P, S)` that the texts and leads of the plain way have."""
    if task.name == "choices":
        return (leads > 0).float()
    rows = []
    for own in texts:
        row = []
        for text, example in zip(own, task.examples, strict=True):
            if task.match == "equal":
                row.append(float(text.strip() == example.target))
            else:
                row.append(float(example.target in text))
        rows.append(row)
    return torch.tensor(rows)


def fast_texts(problem, mode):
    """The greedy texts of all candidates and prompts."""
    model = problem.language_model
    prompts = [model.prompt_tokens(prompt) for prompt in PROMPTS]
    count = len(prompts)
    if mode == "unmerged":
        candidates = [candidate for candidate in range(len(POPULATION)) for _ in prompts]
        hooks = merged(model.model, problem.stacked, POPULATION)
        with hooks as population, model.candidates(population.select):
            found = model.generate(prompts * len(POPULATION), NEW_TOKENS, candidates)
        return [found[row : row + count] for row in range(0, len(found), count)]
    texts = []
    with merged_in_place(problem.scorer.weight_merger, POPULATION) as steps:
        for _ in steps:
            texts.append(model.generate(prompts, NEW_TOKENS))
    return texts


def names_in_this_transformers():
    from transformers import CONFIG_MAPPING

    names = []
    for name, one in ARCHITECTURES.items():
        if one.kind in CONFIG_MAPPING:
            names.append(name)
    assert len(names) >= 45, "this transformers lacks most of the architectures"
    return names


@pytest.mark.parametrize("name", names_in_this_transformers())
def test_merges_are_those_of_plain_peft(name, tmp_path):
    from peft import PeftModel

    architecture = ARCHITECTURES[name]
    tokenizer = build_character_tokenizer()
    model = build(architecture)
    folders = write_adapters(architecture, model, tmp_path)
    twins = [Twin(model, folders, row) for row in POPULATION]
    texts = []
    for twin in twins:
        replies = [twin.greedy(tokenizer.encode(prompt), NEW_TOKENS) for prompt in PROMPTS]
        texts.append([tokenizer.decode(reply) for reply in replies])
        assert twin.least_lead > LEAST_LEAD, "two tokens are nearly as likely: take another seed"
    leads = torch.stack([expected_leads(twin, tokenizer) for twin in twins])
    tasks = tasks_of(texts)
    for mode in ("unmerged", "merged"):
        problem = LoRAMergeProblem(
            copy.deepcopy(model), folders, tasks, tokenizer=tokenizer, mode=mode
        )
        able = problem.capabilities
        assert set(able.switched_off) == set(architecture.off), able.notes
        margins = {}
        scores = problem.score_together(POPULATION, margins=margins)
        torch.testing.assert_close(margins["choices"], leads, rtol=1e-4, atol=1e-3)
        for task in tasks:
            assert torch.equal(scores[task.name], expected_scores(task, texts, leads)), task.name
        assert fast_texts(problem, mode) == texts
    assert problem.export(POPULATION[0], tmp_path / "merge") < 1e-5
    reloaded = PeftModel.from_pretrained(copy.deepcopy(model), tmp_path / "merge").eval()
    tokens = tokenizer.encode(PROMPTS[0])
    with torch.no_grad():
        found = reloaded(input_ids=torch.tensor([tokens]), use_cache=False).logits[0]
    torch.testing.assert_close(found, twins[0].logits(tokens), rtol=1e-4, atol=1e-3)
