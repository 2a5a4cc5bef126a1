"""The benchmark of a small T5: its tasks, its training, and its three merges."""

import json

import pytest

from benchmarks.encoder_decoder import __main__ as benchmark
from benchmarks.encoder_decoder.tasks import TASKS, questions, split_of, write_json_lines
from benchmarks.encoder_decoder.train import make_base, make_tokenizer


def test_answers_are_right_and_splits_share_no_question(tmp_path):
    write_json_lines(tmp_path, {"dev": 20, "test": 30})
    for task in TASKS:
        prompts = {"train": set()}
        for split, size in (("dev", 20), ("test", 30)):
            lines = (tmp_path / f"{task}_{split}.jsonl").read_text().splitlines()
            rows = [json.loads(line) for line in lines]
            prompts[split] = {row["prompt"] for row in rows}
            assert len(prompts[split]) == size
            for row in rows:
                words = row["prompt"].split()
                expected = {
                    "reverse": lambda text: "".join(reversed(text)),
                    "sort": lambda text: "".join(sorted(text)),
                    "add": lambda *numbers: str(sum(map(int, numbers))),
                }[words[0]](*words[1:])
                assert row["answer"] == expected
        stream = questions(task, "train", seed=1)
        prompts["train"] = {next(stream)[0] for _ in range(300)}
        assert not (prompts["train"] | prompts["dev"]) & prompts["test"]
        assert not prompts["train"] & prompts["dev"]
        assert {split_of(prompt) for prompt in prompts["test"]} == {"test"}


@pytest.mark.language_model
def test_every_text_of_the_tasks_has_tokens():
    tokenizer = make_tokenizer()
    assert len(tokenizer) == make_base(0).config.vocab_size
    for task in TASKS:
        stream = questions(task, "train", seed=0)
        for _ in range(50):
            for text in next(stream):
                tokens = tokenizer(text).input_ids
                assert tokenizer.unk_token_id not in tokens
                assert tokenizer.decode(tokens, skip_special_tokens=True) == text


@pytest.mark.slow
def test_adapters_whole_models_and_both_are_trained_and_merged(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(benchmark, "SIZES", {"dev": 6, "test": 8})
    steps = json.dumps({"base": 2, "lora": 1, "full": 1})
    benchmark.main(["--out", str(tmp_path), "--budget", "10", "--steps", steps, "--check"])
    for name in benchmark.SETS:
        result = json.loads((tmp_path / f"merge_{name}" / "result.json").read_text())
        assert [row["kind"] for row in result["scores"]][:2] == ["base", "expert"]
        assert list(result["tasks"]) == list(TASKS)
    assert (tmp_path / "merge_lora" / "adapter" / "adapter_config.json").is_file()
    assert not (tmp_path / "merge_mixed" / "adapter").exists()
    printed = capsys.readouterr().out
    assert "| model | dev | test | reverse | sort | add |" in printed
    assert printed.count("0 of 24 test scores differ from plain transformers") == 3
