"""What do tasks of the LM Evaluation Harness cost beside the model?

For each kind of request 1,000 documents, made up here, and one candidate. The answers are those of
a forward pass that computes nothing. Timed are the harness's filters and metrics, and the margins:
what follows the answers. Processor times of one thread, least of the repeats.

    python -m benchmarks.speed.harness_overhead [--documents 1000] [--repeats 5]
"""

import argparse
import json
import logging
import tempfile
import time
from pathlib import Path

import torch
import yaml

from evox_evogm.problems import read_lm_eval
from evox_evogm.problems.cost_model import CountingForward, punctuation_mark
from evox_evogm.problems.inference.base_model import load_model
from evox_evogm.problems.inference.language_model import LanguageModel
from evox_evogm.problems.tasks.harness.answers import ask
from evox_evogm.problems.tasks.harness.example import tokens_of
from evox_evogm.problems.tasks.harness.metric import CHOICE
from evox_evogm.problems.tasks.harness.scoring import score_answers
from evox_evogm.problems.tasks.requests import candidates_of, cases_or_all

QUESTION = "Question: {{question}}\nAnswer:"
MEAN = {"aggregation": "mean", "higher_is_better": True}
KINDS: dict[str, dict] = {
    "multiple_choice": {
        "doc_to_text": QUESTION,
        "doc_to_choice": "choices",
        "doc_to_target": "gold",
        "metric_list": [{"metric": "acc_norm", **MEAN}],
    },
    "loglikelihood": {
        "doc_to_text": QUESTION,
        "doc_to_target": " {{answer}}",
        "metric_list": [{"metric": "acc", **MEAN}],
    },
    "loglikelihood_rolling": {
        "doc_to_text": "",
        "doc_to_target": "question",
        "metric_list": [
            {"metric": "bits_per_byte", "aggregation": "bits_per_byte", "higher_is_better": False}
        ],
    },
    "generate_until": {
        "doc_to_text": QUESTION,
        "doc_to_target": "answer",
        "generation_kwargs": {"until": ["\n"], "max_gen_toks": 32},
        "metric_list": [{"metric": "exact_match", **MEAN}],
        "filter_list": [
            {
                "name": "number",
                "filter": [
                    {"function": "regex", "regex_pattern": r"(\d+)"},
                    {"function": "take_first"},
                ],
            }
        ],
    },
}


def write_tasks(folder: Path, documents: int) -> None:
    """Write the documents of both splits, and a task of each kind."""
    files = {}
    for split, start in (("validation", 0), ("test", documents)):
        rows = []
        for number in range(start, start + documents):
            choices = [f"{number + add} apples" for add in range(4)]
            row = {"question": f"How many apples are {number} and none?", "choices": choices}
            rows.append(json.dumps({**row, "gold": 0, "answer": str(number)}))
        files[split] = str(folder / f"{split}.jsonl")
        Path(files[split]).write_text("\n".join(rows))
    for kind, settings in KINDS.items():
        config = {"task": kind, "output_type": kind, "dataset_path": "json", **settings}
        config["dataset_kwargs"] = {"data_files": files, "cache_dir": str(folder / "cache")}
        config |= {"validation_split": "validation", "test_split": "test"}
        (folder / f"{kind}.yaml").write_text(yaml.safe_dump(config))


def seconds_beside_the_model(kind: str, folder: Path, model: LanguageModel, repeats: int) -> float:
    """The seconds of one candidate on the dev documents."""
    dev, _ = read_lm_eval(kind, include_path=str(folder), test=1)
    counting = model.with_forward(CountingForward(model.model, punctuation_mark(model)))
    cases = cases_or_all(dev, None)
    documents = tokens_of(counting, cases)
    only_values = dev.examples[0].source.metric.kind == CHOICE
    answered = ask(counting, documents, candidates_of(cases), only_values=only_values)
    margins = torch.zeros(len(cases))
    seconds = []
    for _ in range(1 + repeats):
        start = time.process_time()
        score_answers(cases, tokens_of(counting, cases), answered, margins)
        seconds.append(time.process_time() - start)
    return min(seconds[1:])  # the first renders the documents


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--documents", type=int, default=1000)
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    base, tokenizer = load_model("smollm2-135m-instruct", None, None, None, False)
    model = LanguageModel(base, tokenizer, batch_tokens=16_384)
    with tempfile.TemporaryDirectory() as folder:
        write_tasks(Path(folder), arguments.documents)
        for kind in KINDS:
            found = seconds_beside_the_model(kind, Path(folder), model, arguments.repeats)
            print(f"{kind:22} {found:6.3f} s for {arguments.documents} documents")


if __name__ == "__main__":
    main()
