"""The card of a merge, as the hub's own library reads it."""

from pathlib import Path

import pytest
from huggingface_hub import ModelCard

from evox_evogm.command.model_card import model_card

ROWS = [
    {"name": "base", "kind": "base", "dev": {"add": 0.25}, "test": {"add": 0.5}},
    {
        "name": "SurrogateEvoGM",
        "kind": "merge",
        "dev": {"add": 0.75},
        "test": {"add": 0.625},
        "errors": {"dev": {"add": 0.1}, "test": {"add": 0.05}},
    },
]
LICENCES = {
    "parts": {"base": "apache-2.0", "a": "gpl-3.0", "b|<x>": "unknown"},
    "conflicts": ["gpl-3.0 (a) and gemma (base) each ask for their own terms"],
    "unknown": ["b|<x>"],
    "licence": None,
}
RESULT = {
    "algorithm": "SurrogateEvoGM",
    "evaluations": 16,
    "versions": {"evox-evogm": "0.1.0"},
    "coefficients": {"a": 0.5, "b|<x>": -1.0},
    "scores": ROWS,
    "tasks": {"add": {"metric": "choice_likelihood", "dev": 4, "test": 8}},
    "licences": LICENCES,
}
EXPORT = {
    "kind": "compressed",
    "dtype": "float32",
    "rank": 16,
    "relative_error": 0.0321,
    "serve": "rank 16: vllm serve BASE --enable-lora --max-lora-rank 16",
    "scores": {"dev": {"add": 0.7}, "test": {"add": 0.6}},
    "errors": {"dev": {"add": 0.11}, "test": {"add": "nan"}},
    "merge_scores": {"dev": {"add": 0.75}, "test": {"add": 0.625}},
    "merge_errors": {"dev": {"add": 0.1}, "test": {}},
    "notes": ["the base was loaded in bfloat16"],
}


def card_of(**settings):
    result = settings.pop("result", RESULT)
    text = model_card(result, "org/base", Path("/nowhere"), **settings)
    return ModelCard(text), text


def test_the_hub_reads_base_scores_and_licences():
    card, text = card_of()
    assert card.data.base_model == "org/base"
    assert card.data.to_dict()["base_model_relation"] == "adapter"
    found = {(one.dataset_split, one.metric_type): one for one in card.data.eval_results}
    assert found["test", "accuracy"].metric_value == 0.625
    assert found["test", "accuracy"].metric_name == "choice likelihood (standard error 0.050)"
    assert found["dev", "accuracy"].dataset_name == "add"
    licences = card.data.to_dict()["merge_licences"]
    assert licences["unknown"] == ["b|<x>"] and licences["conflicts"] == LICENCES["conflicts"]
    assert card.data.license is None
    assert "**Conflict.** gpl-3.0 (a) and gemma (base)" in text
    assert "| a | +0.5000 | gpl-3.0 |" in text and "**Unknown.** No licence was found of b" in text


def test_a_licence_of_the_whole_is_in_the_metadata():
    licences = {"parts": {"base": "mit"}, "conflicts": [], "unknown": [], "licence": "mit"}
    card, text = card_of(result={**RESULT, "coefficients": {"a": 1.0}, "licences": licences})
    assert card.data.license == "mit" and "They can be had together under mit." in text
    assert "| a | +1.0000 | not in the merge |" in text


def test_an_export_has_its_own_scores_beside_those_of_the_merge():
    card, text = card_of(export=EXPORT)
    assert "with at most 16 channels in each module, and differs from it by 0.032" in text
    assert "| add | dev | .700 ± .110 | .750 ± .100 |" in text
    assert "| add | test | .600 | .625 |" in text
    assert "`rank 16: vllm serve BASE --enable-lora --max-lora-rank 16`" in text
    assert "the base was loaded in bfloat16" in text
    assert {one.metric_value for one in card.data.eval_results} == {0.7, 0.6}


@pytest.mark.parametrize(
    ("kind", "library", "words"),
    [
        ("adapter", "peft", "AutoPeftModelForCausalLM"),
        ("model", "transformers", "AutoModelForCausalLM.from_pretrained"),
        ("mergekit", "transformers", "mergekit-yaml recipe.yaml merged"),
    ],
)
def test_each_kind_says_how_it_is_loaded(kind, library, words):
    card, text = card_of(export={**EXPORT, "kind": kind})
    assert card.data.library_name == library and words in text


def test_what_is_not_known_is_left_out():
    result = {"coefficients": {"a": 1.0}}
    card, text = card_of(result=result)
    assert "## Scores" not in text and "## Licences" not in text and "found the weights" not in text
    assert card.data.eval_results is None
    assert "| a | +1.0000 |" in text


def test_no_line_of_a_table_is_broken():
    for settings in ({}, {"export": EXPORT}):
        _, text = card_of(**settings)
        lines = text.splitlines()
        for number, line in enumerate(lines):
            if line.startswith("| ---"):
                columns = line.count("|")
                assert lines[number - 1].replace("\\|", "").count("|") == columns
                assert lines[number + 1].replace("\\|", "").count("|") == columns


@pytest.mark.parametrize("kind", ["adapter", "model"])
def test_the_path_of_a_base_stays_on_this_machine(kind):
    for path in ("/home/me/secret/base", "C:\\me\\base", "models/base/"):
        text = model_card(RESULT, path, Path("/nowhere"), export={**EXPORT, "kind": kind})
        assert "of one base model, base." in text
        assert ("is the base with a weighted sum" in text) == (kind == "model")
        assert "secret" not in text and "models/" not in text and "me\\" not in text


def test_the_adapter_of_a_run_says_that_it_is_rounded():
    adapter = {"dtype": "bfloat16", "largest_relative_difference": 0.0031, "error": None}
    _, text = card_of(result={**RESULT, "adapter": adapter})
    assert "Its tensors are rounded to bfloat16, by at most 0.0031 in a module" in text
    for same in ({**adapter, "dtype": "float32"}, None):
        assert "rounded" not in card_of(result={**RESULT, "adapter": same})[1]


def test_a_licence_of_no_rule_is_named():
    licences = {"parts": {"base": "epl-2.0"}, "conflicts": [], "unknown": [], "licence": None}
    card, text = card_of(result={**RESULT, "licences": {**licences, "unruled": ["epl-2.0 (a)"]}})
    assert "**Not compared.** No rule here knows whether epl-2.0 (a)" in text
    assert card.data.to_dict()["merge_licences"]["unruled"] == ["epl-2.0 (a)"]
