"""A folder of evaluation sets in the layout of Model Swarms, with questions made up for tests."""

import json

CHOICE_SETS = {  # by set, the keys that its questions have
    "mmlu": "ABCD",
    "mmlu_pro": "ABCDEFGHIJ",
    "hellaswag": "ABCD",
    "knowledge_crosswords": "ABCD",
    "truthfulqa": "ABC",
    "medqa": "ABCD",
    "medmcqa": "ABCD",
    "hearsay": "AB",
    "citation_prediction_classification": "AB",
    "scifact": "AB",
    "stem": "ABCD",
    "normad_country": "ABC",
    "normad_value": "ABC",
}
FREE_ANSWER_SETS = {"gsm8k": "GSM8k", "nlgraph": "NLGraph"}  # and what they call themselves


def write_swarm_eval(folder, *, dev, test):
    """Write a file for every set, with so many questions of each split."""
    folder.mkdir()
    for name, keys in CHOICE_SETS.items():
        rows = []
        for index in range(dev + test):
            choices = {key: f"{key} times {index}" for key in keys}
            answer = keys[index % len(keys)]
            row = {"question": f"{name} {index}?", "choices": choices, "answer": answer}
            rows.append({**row, "id": index, "domain": "made up"})
        more = {}
        if name == "knowledge_crosswords":
            more = {"icl_prompt": "Question: Which?\nA: this\nB: that\nThe answer is B."}
        write(folder, name, rows, dev, dataset=name, **more)
    for name, dataset in FREE_ANSWER_SETS.items():
        rows = []
        for index in range(dev + test):
            rows.append({"question": f"{name} {index}?", "answer": "yin."[index % 4], "id": index})
        write(folder, name, rows, dev, dataset=dataset)


def write(folder, name, rows, dev, **more):
    """Write one file, the first rows of which are dev."""
    content = {**more, "dev": rows[:dev], "test": rows[dev:]}
    (folder / f"{name}.json").write_text(json.dumps(content))
