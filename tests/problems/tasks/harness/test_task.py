"""Scores of harness tasks equal those of the harness's own HFLM on the merged model."""

import json
from types import SimpleNamespace

import pytest
import torch
from builders import build_model, build_tokenizer, record_passes
from harness_tasks import QUESTION, write_adapter, write_rows, write_task

from evox_evogm.problems import Example, LoRAMergeProblem, Task, read_lm_eval
from evox_evogm.problems.inference.language_model import LanguageModel
from evox_evogm.problems.tasks.metrics import group_tasks, score_task
from evox_evogm.problems.tasks.requests import requests_of, tokenize_task

pytestmark = [pytest.mark.language_model, pytest.mark.lengthy]
IN_YAML = ("gen_prefix", "target_delimiter")  # settings that are the task's own
POP = torch.tensor([[0.7, -0.4], [0.2, 0.9]])
CHAT = (
    "{% for m in messages %}[{{ m['role'] }}]{{ m['content'] }}"
    "{% if not (loop.last and m['role'] == 'assistant') %}|{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)
# Name: kind, what is asked of the harness, and settings.
ASKED = {
    "choices": ("choices", {"metric": "acc_norm", "num_fewshot": 2}),
    "greedy": ("choices", {"metric": "exact_match", "target_delimiter": ""}),
    "letters": ("letters", {"metric": "acc"}),
    "targets": ("targets", {"metric": "acc"}),
    "perplexity": ("targets", {"metric": "perplexity", "num_fewshot": 1}),
    "rolling": ("rolling", {"metric": "bits_per_byte"}),
    "answers": ("answers", {"metric": "exact_match", "filter": "first-letter"}),
    "lengths": ("lengths", {"metric": "length", "num_fewshot": 3}),
}
CHATS = {
    "choices": ("choices", {"metric": "acc", "num_fewshot": 2, "system_instruction": "Be brief."}),
    "lengths": ("lengths", {"metric": "length", "num_fewshot": 1, "gen_prefix": "It is"}),
}


def merged_model(folder):
    from peft import PeftModel

    return PeftModel.from_pretrained(build_model(), folder).merge_and_unload().eval()


def hflm_of(model, tokenizer):
    from lm_eval.models.huggingface import HFLM

    return HFLM(pretrained=model, tokenizer=tokenizer, batch_size=3, device="cpu")


def by_harness(hflm, folder, name, *, metric, filter="none", chat=False, **settings):
    """The score that the harness's own `evaluate` gives on the test documents."""
    from lm_eval.evaluator import evaluate
    from lm_eval.tasks import TaskManager, get_task_dict

    manager = TaskManager(include_path=str(folder), include_defaults=False)
    tasks = get_task_dict([name], manager)
    tasks[name].set_config("num_fewshot", settings.get("num_fewshot", 0))
    tasks[name].set_fewshot_seed(seed=1234)
    found = evaluate(
        hflm,
        tasks,
        bootstrap_iters=0,
        log_samples=False,
        apply_chat_template=chat,
        fewshot_as_multiturn=chat,
        system_instruction=settings.get("system_instruction"),
    )
    return found["results"][name][f"{metric},{filter}"]


@torch.no_grad()
def answer_as_the_model(path, model, tokenizer):
    """Have the right answers of half the documents be what a model writes."""
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    for number, row in enumerate(rows):
        prompt = QUESTION.replace("{{question}}", row["question"])
        ids = torch.tensor([tokenizer(prompt)["input_ids"]])
        token = model(ids).logits[0, -1, :].argmax()
        written = model.generate(ids, max_new_tokens=9, do_sample=False, pad_token_id=0)[0]
        text = tokenizer.decode(written[ids.shape[1] :])
        letters = [character for character in text if "a" <= character <= "z"]
        if number % 2 and letters:
            row["letter"] = letters[0]
        piece = tokenizer.decode([token])
        if number % 2 and piece.isascii():
            row["answer"] = piece
            row["choices"] = ["zebra", piece]
    path.write_text("\n".join(json.dumps(row) for row in rows))


@pytest.fixture(scope="module")
def harness(tmp_path_factory):
    """Adapters, their merges as plain models, and documents that the first one answers in part."""
    folder = tmp_path_factory.mktemp("harness")
    folders = [write_adapter(folder / "one", 1), write_adapter(folder / "two", 2, r=2)]
    plain = Task("plain", "1", "gold_log_probability", (Example("0", "1 + 1 =", "2"),))
    problem = LoRAMergeProblem(build_model(), folders, [plain], tokenizer=build_tokenizer())
    models = []
    for number, row in enumerate(POP):
        problem.export(row, folder / f"merge{number}")
        models.append(merged_model(folder / f"merge{number}"))
    tasks = folder / "tasks"
    tasks.mkdir()
    write_rows(tasks / "validation.jsonl", 5)
    write_rows(tasks / "test.jsonl", 12, start=100)
    answer_as_the_model(tasks / "test.jsonl", models[0], build_tokenizer())
    return SimpleNamespace(tasks=tasks, folders=folders, models=models)


def read_all(harness, asked, **settings):
    tests = []
    for name, (kind, own) in asked.items():
        changes = {key: value for key, value in own.items() if key in IN_YAML}
        write_task(harness.tasks, name, kind, **changes)
        given = {key: value for key, value in own.items() if key not in IN_YAML}
        _, test = read_lm_eval(name, include_path=str(harness.tasks), **given, **settings)
        tests.append(test)
    return tests


@pytest.mark.parametrize("mode", ["unmerged", "merged"])
def test_scores_are_those_of_the_harness_in_both_modes(harness, mode):
    tests = read_all(harness, ASKED)
    problem = LoRAMergeProblem(
        build_model(), harness.folders, tests, tokenizer=build_tokenizer(), mode=mode
    )
    margins = {}
    found = problem.score_together(POP, margins=margins)
    partly = set()
    for row, model in enumerate(harness.models):
        hflm = hflm_of(model, build_tokenizer())
        for task, (_, settings) in zip(tests, ASKED.values(), strict=True):
            expected = by_harness(hflm, harness.tasks, task.name, **settings)
            sign = -1 if task.name in ("rolling", "perplexity") else 1
            score = found[task.name][row].double().mean().item()
            assert score == pytest.approx(sign * expected, rel=1e-5), task.name
            if 0 < score < 1:
                partly.add(task.name)
            if task.counts_by_sign:
                above = margins[task.name][row] > 0
                assert torch.equal(above, found[task.name][row] > 0.5), task.name
    assert {"choices", "letters", "targets", "answers", "greedy", "lengths"} <= partly


def test_chats_are_those_of_the_harness(harness):
    tokenizer = build_tokenizer()
    tokenizer.chat_template = CHAT
    tests = read_all(harness, CHATS, chat=True)
    model = LanguageModel(harness.models[0], tokenizer)
    hflm = hflm_of(harness.models[0], tokenizer)
    for task, (_, settings) in zip(tests, CHATS.values(), strict=True):
        tokenize_task(task, model)
        expected = by_harness(hflm, harness.tasks, task.name, chat=True, **settings)
        assert score_task(task, model).mean().item() == pytest.approx(expected, rel=1e-5)
        text = tokenizer.decode(task.prompts(model, [SimpleNamespace(example=task.examples[0])])[0])
        assert text.startswith("[system]Be brief.|[user]" if task.name == "choices" else "[user]")
        assert text.endswith("[assistant]" if task.name == "choices" else "[assistant]It is")


def test_long_texts_lose_their_beginning_as_with_the_harness(harness):
    """GPT-2 has no position for a token more than the harness gives it."""
    asked = {name: ASKED[name] for name in ("choices", "rolling", "lengths")}
    tests = read_all(harness, asked)
    for base in (build_model("gpt2", n_positions=48), build_model(max_position_embeddings=48)):
        model = LanguageModel(base, build_tokenizer())
        hflm = hflm_of(base, build_tokenizer())
        for task, (_, settings) in zip(tests, asked.values(), strict=True):
            tokenize_task(task, model)
            expected = by_harness(hflm, harness.tasks, task.name, **settings)
            assert abs(score_task(task, model).mean().item()) == pytest.approx(expected, rel=1e-5)


def test_tokens_before_a_text_are_not_doubled(harness):
    from tokenizers.processors import TemplateProcessing

    tokenizer = build_tokenizer()
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<end> $A", special_tokens=[("<end>", 0)]
    )
    tokenizer.bos_token = "<end>"
    asked = {name: ASKED[name] for name in ("choices", "rolling", "lengths")}
    tests = read_all(harness, asked)
    model = LanguageModel(harness.models[0], tokenizer)
    hflm = hflm_of(harness.models[0], tokenizer)
    for task, (_, settings) in zip(tests, asked.values(), strict=True):
        tokenize_task(task, model)
        expected = by_harness(hflm, harness.tasks, task.name, **settings)
        assert abs(score_task(task, model).mean().item()) == pytest.approx(expected, rel=1e-5)


def test_choices_of_one_token_take_one_pass_and_worked_examples_run_once(harness):
    (letters,) = read_all(harness, {"letters": ASKED["letters"]})
    model = LanguageModel(harness.models[0], build_tokenizer(), share_prefixes=False)
    sizes = record_passes(model)
    score_task(letters, model)
    assert sum(rows for rows, _ in sizes) == len(letters.examples)

    first = {"sampler": "first_n"}
    write_task(harness.tasks, "shown", "choices", fewshot_config=first)
    _, shown = read_lm_eval("shown", include_path=str(harness.tasks), num_fewshot=4)
    model = LanguageModel(harness.models[0], build_tokenizer())
    tokens = tokenize_task(shown, model)
    sizes = record_passes(model)
    score_task(shown, model)
    assert sum(rows * width for rows, width in sizes) < tokens / 3


def test_tasks_of_one_way_of_asking_share_batches(harness):
    """The beginning of 12 questions is too short to run alone."""
    names = ("greedy", "letters", "answers", "lengths")
    tests = read_all(harness, {name: ASKED[name] for name in names})
    _, twin = read_lm_eval("letters", name="twin", include_path=str(harness.tasks))
    model = LanguageModel(harness.models[0], build_tokenizer())
    groups = [[task.name for task in group] for group in group_tasks([*tests, twin], model)]
    assert ["letters", "twin"] in groups
    assert len(groups) == 4


def test_right_answers_are_read_for_regmean(harness):
    """The prompt, the right choice or text, and the end of the text."""
    tokenizer = build_tokenizer()
    model = LanguageModel(harness.models[0], tokenizer)
    tests = read_all(harness, {name: ASKED[name] for name in ("greedy", "answers")})
    rows = [json.loads(line) for line in (harness.tasks / "test.jsonl").read_text().splitlines()]
    for task, field in zip(tests, ("choices", "letter"), strict=True):
        for (prompt, answer), row in zip(requests_of(task, model), rows, strict=True):
            expected = row["choices"][row["gold"]] if field == "choices" else f" {row['letter']}"
            assert tokenizer.decode(answer) == f"{expected}<end>"
            assert tokenizer.decode(prompt) == f"Question: {row['question']}\nAnswer:"
