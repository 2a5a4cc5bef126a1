"""Score merges again by plain transformers and peft, one example at a time."""

import json
from pathlib import Path

import torch

from benchmarks.encoder_decoder.tasks import TASKS
from evox_evogm.command import cli


def load_merge(out: Path, name: str):
    """The merge of a run, as plain transformers or peft loads it.

    :param out: the folder of base and runs.
    :param name: of the set of experts. Where whole models are among them the merge is exported as
        one; otherwise its adapter is put on the base.
    """
    from peft import PeftModel
    from transformers import AutoModelForSeq2SeqLM

    run = out / f"merge_{name}"
    if (run / "adapter").is_dir():
        base = AutoModelForSeq2SeqLM.from_pretrained(out / "base", dtype=torch.float32)
        return PeftModel.from_pretrained(base, run / "adapter").eval()
    whole = out / f"whole_{name}"
    if not whole.is_dir():
        cli.main(["export", str(run), "--as", "model", "--out", str(whole)])
    return AutoModelForSeq2SeqLM.from_pretrained(whole, dtype=torch.float32).eval()


@torch.no_grad()
def differing_scores(out: Path, name: str) -> tuple[int, int]:
    """How many test scores of a merge are not those of plain greedy answers, and of how many."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(out / "base")
    model = load_merge(out, name)
    table = json.loads((out / f"merge_{name}" / "scores_by_example.json").read_text())
    differing, count = 0, 0
    for task in TASKS:
        lines = (out / "data" / f"{task}_test.jsonl").read_text().splitlines()
        for line, score in zip(lines, table["rows"][-1]["test"][task], strict=True):
            row = json.loads(line)
            given = tokenizer(row["prompt"], return_tensors="pt")
            answer = model.generate(**given, max_new_tokens=8, do_sample=False, num_beams=1)[0]
            text = tokenizer.decode(answer, skip_special_tokens=True)
            differing += float(text == row["answer"]) != score
            count += 1
    return differing, count
