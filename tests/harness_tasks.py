"""Tasks for the LM Evaluation Harness: YAML files on local JSON lines, of each kind of request."""

import json

import yaml

ANIMALS = ("cat", "horse", "swan", "wren", "newt", "toad", "mole", "stork")
COLOURS = ("red", "dark green", "blue", "grey")


def write_rows(path, count, start=0):
    """Write documents with a question, choices, a right choice and a text."""
    rows = []
    for number in range(start, start + count):
        animal = ANIMALS[number % len(ANIMALS)]
        row = {
            "question": f"What colour has {animal} {number}?",
            "choices": list(COLOURS[: 2 + number % 3]),
            "gold": number % 2,
            "answer": f" {COLOURS[number % 2]}",
            "letter": "abc"[number % 3],
            "text": f"The {animal} number {number} is {COLOURS[number % 4]}, and sleeps. " * 2,
        }
        rows.append(json.dumps(row))
    path.write_text("\n".join(rows))


def base_config(folder, name, splits):
    """The part of a task's description that all have."""
    return {
        "task": name,
        "dataset_path": "json",
        "dataset_kwargs": {
            "data_files": {split: str(folder / f"{split}.jsonl") for split in splits},
            "cache_dir": str(folder / "cache"),
        },
        "metadata": {"version": 1.0},
        **{f"{key}_split": key for key in ("training", "validation", "test") if key in splits},
    }


QUESTION = "Question: {{question}}\nAnswer:"


def metrics(*names, higher=True):
    """A list of metrics that are averaged over documents."""
    entries = []
    for name in names:
        entries.append({"metric": name, "aggregation": "mean", "higher_is_better": higher})
    return entries


def perplexities(**aggregations):
    """A list of metrics that are better when lower, by their names."""
    entries = []
    for name, aggregation in aggregations.items():
        entry = {"metric": name, "aggregation": aggregation, "higher_is_better": False}
        entries.append(entry)
    return entries


KINDS = {
    "choices": {
        "output_type": "multiple_choice",
        "doc_to_text": QUESTION,
        "doc_to_choice": "choices",
        "doc_to_target": "gold",
        "metric_list": metrics("acc", "acc_norm", "acc_bytes", "exact_match"),
    },
    "letters": {
        "output_type": "multiple_choice",
        "doc_to_text": QUESTION,
        "doc_to_choice": ["a", "b", "c", "d"],
        "doc_to_target": "gold",
        "target_delimiter": "",
        "metric_list": metrics("acc"),
    },
    "targets": {
        "output_type": "loglikelihood",
        "doc_to_text": QUESTION,
        "doc_to_target": "answer",
        "metric_list": [*perplexities(perplexity="perplexity"), *metrics("acc")],
    },
    "rolling": {
        "output_type": "loglikelihood_rolling",
        "doc_to_text": "",
        "doc_to_target": "text",
        "metric_list": perplexities(
            word_perplexity="weighted_perplexity", bits_per_byte="bits_per_byte"
        ),
    },
    "answers": {
        "output_type": "generate_until",
        "doc_to_text": QUESTION,
        "doc_to_target": "letter",
        "generation_kwargs": {"until": ["q", "\n"], "max_gen_toks": 9},
        "metric_list": metrics("exact_match"),
        "filter_list": [
            {"name": "whole", "filter": [{"function": "take_first"}]},
            {
                "name": "first-letter",
                "filter": [
                    {"function": "regex", "regex_pattern": "([a-z])"},
                    {"function": "take_first"},
                ],
            },
        ],
    },
    "lengths": {
        "output_type": "generate_until",
        "doc_to_text": QUESTION,
        "doc_to_target": "letter",
        "generation_kwargs": {"until": ["e", "xx"], "max_gen_toks": 12, "do_sample": False},
        "process_results": "FUNCTION scoring.length",
        "metric_list": metrics("length"),
    },
}
SCORING = """
def length(doc, results):
    return {"length": len(results[0]) / 100}
"""


def write_adapter(folder, seed, **settings):
    """Write a random adapter of `build_model()`; its folder."""
    import torch
    from builders import build_model
    from peft import LoraConfig, get_peft_model

    config = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj", "down_proj"]}
    wrapped = get_peft_model(
        build_model(), LoraConfig(**{**config, **settings}, task_type="CAUSAL_LM")
    )
    torch.manual_seed(seed)
    for name, parameter in wrapped.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    wrapped.save_pretrained(folder)
    return folder


def write_task(folder, name, kind, splits=("validation", "test"), count=6, **changes):
    """Write the YAML file of a task, and its documents where they are missing."""
    folder.mkdir(exist_ok=True)
    for number, split in enumerate(splits):
        path = folder / f"{split}.jsonl"
        if not path.exists():
            write_rows(path, count, start=100 * number)
    config = {**base_config(folder, name, splits), **KINDS[kind], **changes}
    text = yaml.safe_dump(config, sort_keys=False)
    (folder / f"{name}.yaml").write_text(text.replace("FUNCTION ", "!function "))
    (folder / "scoring.py").write_text(SCORING)
    return name
