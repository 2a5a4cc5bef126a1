"""Other chat templates, ends and tokenizers in experts' folders are noted."""

import copy
import json

import pytest
from tokenizers import pre_tokenizers

from evox_evogm.problems import Example, LoRAMergeProblem, Task
from evox_evogm.problems.adapters.read_adapter import read_expert
from evox_evogm.problems.adapters.tokenizer_notes import chat_template_of, notes_on_tokenizers

CHATML = "{% for m in messages %}<|im_start|>{{ m.content }}{% endfor %}"
ADVICE = "chat_template_file takes the folder of an expert"


@pytest.fixture
def experts(make_adapter):
    return [read_expert(make_adapter(name, seed=seed)) for seed, name in enumerate("abc")]


def write_settings(expert, **settings):
    (expert.folder / "tokenizer_config.json").write_text(json.dumps(settings))


def with_template(tokenizer, template):
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.chat_template = template
    return tokenizer


def test_the_base_s_own_tokenizer_beside_an_adapter_is_not_noted(experts, tokenizer):
    tokenizer = with_template(tokenizer, CHATML)
    for expert in experts:
        tokenizer.save_pretrained(expert.folder)
    assert notes_on_tokenizers(experts, tokenizer) == []
    assert chat_template_of(experts[0].folder) == CHATML
    assert notes_on_tokenizers(experts, None) == []


@pytest.mark.parametrize("form", ["file", "text", "list"])
def test_another_chat_template_is_noted_once_for_all(experts, tokenizer, form):
    for expert in experts[:2]:
        if form == "file":
            (expert.folder / "chat_template.jinja").write_text(CHATML)
        elif form == "text":
            write_settings(expert, chat_template=CHATML)
        else:
            named = [{"name": "default", "template": CHATML}, {"name": "tool", "template": "x"}]
            write_settings(expert, chat_template=named)
    used = "which tasks with chat: true are asked by"
    expected = f"chat template: that of a, b differs from that of the base, {used}; {ADVICE}"
    assert notes_on_tokenizers(experts, with_template(tokenizer, "{{ messages }}")) == [expected]
    expected = f"chat template: found one with a, b, and none with the base; {ADVICE}"
    assert notes_on_tokenizers(experts, tokenizer) == [expected]
    assert notes_on_tokenizers(experts, with_template(tokenizer, CHATML + "\n")) == []


def test_another_end_of_answers_is_noted(experts, tokenizer):
    write_settings(experts[1], eos_token={"content": "<|im_end|>"}, bos_token=None)
    expected = "expert 'b': its eos_token is '<|im_end|>', that of the base is '<end>'"
    assert notes_on_tokenizers(experts, tokenizer) == [expected]


def test_tokens_that_the_base_lacks_are_counted(experts, tokenizer):
    """Of tokenizers whose vocabulary is in no `tokenizer.json`."""
    decoder = {"0": {"content": "<end>"}, "300": {"content": "<|im_start|>"}}
    write_settings(experts[2], added_tokens_decoder=decoder)
    (experts[2].folder / "added_tokens.json").write_text('{"<tool>": 301}')
    message = "its tokenizer has 2 tokens that the base lacks, such as '<tool>'"
    assert notes_on_tokenizers(experts, tokenizer) == [f"expert 'c': {message}"]


def test_a_tokenizer_that_splits_text_otherwise_is_noted(experts, tokenizer):
    other = copy.deepcopy(tokenizer)
    other.backend_tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    other.save_pretrained(experts[0].folder)
    (note,) = notes_on_tokenizers(experts, tokenizer)
    assert note.startswith("expert 'a': its tokenizer splits text into other tokens than the base")


def test_damaged_files_say_nothing(experts, tokenizer):
    (experts[0].folder / "tokenizer_config.json").write_text("{")
    (experts[1].folder / "tokenizer_config.json").write_text("[1]")
    (experts[2].folder / "chat_template.jinja").write_bytes(b"\xff\xfe")
    assert notes_on_tokenizers(experts, tokenizer) == []


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        (["abc"], None),
        ([{"name": ["x"], "template": "a"}], None),
        ([{"name": "default"}], None),
        ([7, None, {"name": ["x"], "template": "a"}, {"name": "default", "template": "b"}], "b"),
        ({"default": ["a"]}, None),
    ],
)
def test_of_damaged_templates_what_can_be_read_is_taken(experts, tokenizer, template, expected):
    write_settings(experts[0], chat_template=template)
    assert chat_template_of(experts[0].folder) == expected
    assert len(notes_on_tokenizers(experts, tokenizer)) == (expected is not None)


def test_a_problem_has_the_notes(experts, model, tokenizer):
    write_settings(experts[1], chat_template=CHATML)
    task = Task("sums", "1", "gold_log_probability", (Example("0", "1 + 1 =", "2"),))
    folders = [expert.folder for expert in experts]
    problem = LoRAMergeProblem(model, folders, [task], tokenizer=tokenizer)
    note = f"chat template: found one with b, and none with the base; {ADVICE}"
    assert note in problem.notes
