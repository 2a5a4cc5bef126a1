"""One merge as the model that answers, in both modes, against plain peft."""

import copy
from dataclasses import replace

import pytest
import torch
from builders import two_adapters

from evox_evogm.problems import LoRAMergeProblem
from evox_evogm.problems.one_merge import as_one_merge
from evox_evogm.problems.tasks.answers import answers_of
from evox_evogm.problems.tasks.task import Example, Task

TEXTS = Task(
    "texts",
    "1",
    "exact_match",
    (Example("0", "ab", "c"), Example("1", "xyz", "c")),
    max_new_tokens=8,
)
CHOICES = Task(
    "choices",
    "1",
    "choice_likelihood",
    (Example("0", "ab", "B", (("A", "yes"), ("B", "no"))),),
)


@pytest.mark.parametrize("unmerged", [True, False])
def test_answers_are_those_of_plain_peft_and_the_base_is_as_it_was(
    model, tokenizer, make_adapter, unmerged
):
    from peft import PeftModel

    folders = two_adapters("llama", make_adapter)
    before = copy.deepcopy(model.state_dict())
    problem = LoRAMergeProblem(model, folders, [TEXTS, CHOICES], tokenizer=tokenizer)
    language_model = problem.language_model
    language_model.capabilities = replace(language_model.capabilities, unmerged=unmerged)
    with as_one_merge(problem.scorer, torch.tensor([0.75, -0.5])) as merge:
        texts = answers_of(TEXTS, merge, most_tokens=5)
        (choice,) = answers_of(CHOICES, merge, most_tokens=5)
    after = model.state_dict()
    assert all(torch.equal(after[name], before[name]) for name in before)

    plain = PeftModel.from_pretrained(copy.deepcopy(model), folders[0], "one")
    plain.load_adapter(folders[1], "two")
    plain.base_model.add_weighted_adapter(
        ["one", "two"], [0.75, -0.5], "sum", combination_type="cat"
    )
    plain.base_model.set_adapter("sum")
    for answer, example in zip(texts, TEXTS.examples, strict=True):
        tokens = torch.tensor([tokenizer.encode(example.prompt)])
        mask = torch.ones_like(tokens)
        found = plain.generate(
            input_ids=tokens, attention_mask=mask, max_new_tokens=5, do_sample=False
        )
        text = tokenizer.decode(found[0, tokens.shape[1] :], skip_special_tokens=True)
        assert answer.text == text
        assert answer.right is None  # it may be cut
    scores = []
    for key in "AB":
        tokens = tokenizer.encode(f"ab {key}")
        with torch.no_grad():
            logits = plain(torch.tensor([tokens])).logits[0, -3:-1].log_softmax(-1)
        scores.append(float(logits[[0, 1], tokens[-2:]].sum()))
    place = int(scores[1] > scores[0])
    assert choice.text == ("A: yes", "B: no")[place] and choice.right == (place == 1)
    assert choice.share == pytest.approx(float(torch.tensor(scores).softmax(0)[place]), abs=1e-5)


def test_a_whole_text_is_right_or_wrong(model, tokenizer, make_adapter):
    folders = two_adapters("llama", make_adapter)
    problem = LoRAMergeProblem(model, folders, [TEXTS], tokenizer=tokenizer)
    with as_one_merge(problem.scorer, torch.zeros(2)) as base:
        text = answers_of(TEXTS, base, most_tokens=8)[0].text
        example = Example("0", "ab", text)
        right = replace(TEXTS, examples=(example, replace(example, id="1", target=f"{text}?")))
        assert [answer.right for answer in answers_of(right, base, 8)] == [True, False]
