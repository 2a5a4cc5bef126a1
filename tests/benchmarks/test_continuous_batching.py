"""The comparison with continuous batching: a way that raises does not end it."""

import sys
from contextlib import nullcontext
from types import SimpleNamespace

from benchmarks.speed import continuous_batching


def raises(model, prompts, tokens):
    raise RuntimeError("no memory")


def test_texts_are_compared_with_the_first_way_that_wrote_any(monkeypatch, capsys):
    ways = {
        "ours": raises,
        "generate_batch": lambda model, prompts, tokens: ["a", "b"],
        "one by one": lambda model, prompts, tokens: ["a", "c"],
    }
    parts = {
        "WAYS": ways,
        "load_base": lambda *given, **settings: (None,),
        "LanguageModel": lambda model: SimpleNamespace(model=model),
        "prompts_of": lambda model, count: [[1], [1, 2]],
        "ready_to_score": nullcontext,
    }
    for name, part in parts.items():
        monkeypatch.setattr(continuous_batching, name, part)
    monkeypatch.setattr("torch.set_num_threads", lambda count: None)
    monkeypatch.setattr(sys, "argv", ["continuous_batching"])
    continuous_batching.main()
    _, ours, batched, single = capsys.readouterr().out.splitlines()
    assert ours.split() == ["ours", "RuntimeError:", "no", "memory"]
    assert batched.endswith("2 of 2 texts as by generate_batch")
    assert single.endswith("1 of 2 texts as by generate_batch")
