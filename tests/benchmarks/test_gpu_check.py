"""The check of a device: what it measures against, its table, its time, and all of it in small."""

import json
import time
import weakref
from types import SimpleNamespace

import pytest
import torch

from benchmarks import gpu_check
from benchmarks.gpu import checks
from benchmarks.gpu import record as record_module
from benchmarks.gpu.random_bases import (
    REGIMES,
    SHAPES,
    TINY,
    Regime,
    build_config,
    build_model,
    build_tokenizer,
)
from benchmarks.gpu.rates import DeviceRates, Work
from benchmarks.gpu.record import JSON, OutOfTime, Record
from benchmarks.gpu.speed import SpeedCheck
from benchmarks.gpu.table import checks_of, table_of
from evox_evogm.problems import LoRAMergeProblem

CPU = torch.device("cpu")


def speed(procedure, ms, regime="long", **more):
    return {
        "part": "speed",
        "base": "small",
        "regime": regime,
        "procedure": procedure,
        "ms": ms,
        **more,
    }


def test_the_table_compares_the_chosen_mode():
    ours = {"tokens_per_second": 1234.0, "roofline": 0.5, "peak_gib": 3.0, "allowed_gib": 8.0}
    rows = [
        speed("unmerged", 20.0, chosen=False, **ours),
        speed("merged", 10.0, chosen=True, **ours),
        speed("published", 150.0),
        speed("peft", 250.0),
        speed("unmerged", 5.0, regime="short", chosen=True, **{**ours, "peak_gib": None}),
        speed("load", 7.0, regime="-"),
    ]
    table = table_of(rows).splitlines()
    assert table[2:] == [
        "| small | long | 10 | merged | 20 | 150 | 250 | 15.0 | 25.0 | 1,234 | 50 % | 3 | 8 |",
        "| small | short | 5 | unmerged | - | - | - | - | - | 1,234 | 50 % | - | 8 |",
    ]
    assert len({line.count("|") for line in table}) == 1


def test_checks_that_are_wrong_are_named():
    rows = [
        {"part": "scores", "base": "B", "difference": 2.0, "ok": False},
        {"part": "scores", "base": "B", "difference": 0.0, "ok": True},
        {"part": "step", "algorithm": "EvoGM", "device": "cpu", "n": 10, "runs": 1, "ms": 12.3},
        {"part": "step", "algorithm": "EvoGM", "device": "cuda", "n": 10, "runs": 16, "ms": 80.0},
        speed("growing cache", 20.0, tokens_per_second=50.0),
        speed("static cache", 2.0, tokens_per_second=500.0),
        {"part": "speed", "base": "B", "regime": "r", "procedure": "16 GiB", "ok": False},
    ]
    assert checks_of(rows).splitlines() == [
        "- scores: 1 of 2 right",
        "  - base B, difference 2.0, ok False",
        "- contract: 0 of 0 right",
        "- a step of EvoGM on cpu: 12 ms",
        "- a step of EvoGM on cuda for 16 runs in one vmap: 80 ms",
        "- small, long: 500 tokens/s with a static cache, 50 with a growing one",
        "- B on 16 GiB, r: ran out of memory",
    ]


def test_a_part_that_fails_or_takes_too_long_is_noted_and_the_next_goes_on(tmp_path):
    record = Record(tmp_path, minutes=1)

    def fail():
        record.add("one", value=1.0)
        raise RuntimeError("no such kernel")

    def hang():
        try:
            time.sleep(60)
        except Exception:  # as retries do
            time.sleep(60)

    start = time.monotonic()
    record.run("one", 0.5, fail)
    record.run("two", 0.002, hang)  # 0.12 s
    record.run("three", 0.5, lambda: record.add("three", value=3.0))
    assert time.monotonic() - start < 10
    found = json.loads((tmp_path / JSON).read_text())
    assert [row["part"] for row in found["rows"]] == ["one", "three"]
    assert [note["note"] for note in found["notes"]] == [
        "failed: RuntimeError: no such kernel",
        "ended after its 0 s",
    ]
    assert "in fail" in found["notes"][0]["details"]


def test_a_part_that_loses_its_end_in_a_finalizer_is_ended_again(tmp_path, monkeypatch):
    monkeypatch.setattr(record_module, "AGAIN", 0.05)
    record = Record(tmp_path, minutes=0.1 / 60)

    def lose_the_first():
        try:
            time.sleep(5)
        except OutOfTime:
            time.sleep(5)

    start = time.monotonic()
    record.run("stubborn", 1.0, lose_the_first)
    assert record.notes[0]["note"] == "ended after its 0 s"
    assert time.monotonic() - start < 2
    time.sleep(0.1)  # behind the part nothing is raised


def test_a_package_without_metadata_has_no_version():
    assert gpu_check.version_of("torch") == torch.__version__
    assert gpu_check.version_of("not-installed-anywhere") == "unknown"


def test_a_device_gets_the_number_that_limits_of_memory_need(monkeypatch):
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 3)
    assert gpu_check.with_index(torch.device("cuda")) == torch.device("cuda:3")
    assert gpu_check.with_index(torch.device("cuda:1")) == torch.device("cuda:1")
    assert gpu_check.with_index(CPU) == CPU


def test_without_time_nothing_runs(tmp_path):
    record = Record(tmp_path, minutes=0)
    record.run("one", 0.5, lambda: pytest.fail("it ran"))
    assert record.notes == [{"part": "one", "note": "not run: no time is left"}]


# Parameters on the hub, in billions: Qwen2.5 without its 0.14 and 0.23 of the embedding, Llama with
# embedding and output layer.
@pytest.mark.parametrize(
    ("name", "billions"), [("Qwen2.5-0.5B", 0.494), ("Qwen2.5-1.5B", 1.54), ("Llama-3.1-8B", 8.03)]
)
def test_shapes_have_the_parameters_of_the_models_that_they_are_named_after(name, billions):
    model = build_model(build_config(name, tiny=False), torch.bfloat16, torch.device("meta"))
    parameters = sum(parameter.numel() for parameter in model.parameters())
    assert parameters / 1e9 == pytest.approx(billions, rel=0.005)


def test_a_prompt_has_the_stated_tokens_and_no_answer_ends_early():
    config = build_config("Qwen2.5-0.5B", tiny=True)
    tokenizer = build_tokenizer(config.vocab_size)
    task = Regime(3, 7, 5).task("t", config.vocab_size)
    assert [len(tokenizer(example.prompt)["input_ids"]) for example in task.examples] == [7, 7, 7]
    assert (task.max_new_tokens, task.match) == (5, "last_10_words")
    assert tokenizer.eos_token_id == config.vocab_size  # no row of the embedding
    assert {regime.new_tokens for regime in REGIMES.values()} == {0, 10, 200}


def test_the_roofline_is_the_larger_limit_of_products_and_of_memory():
    """By hand, for two layers of width 64: q and o 64 x 64, k and v 64 x 32, three of 64 x 128."""
    config = build_config("Llama-3.1-8B", tiny=True)
    model = build_model(config, torch.bfloat16, CPU)
    assert set(SHAPES) >= {"Llama-3.1-8B"} and TINY["hidden_size"] == 64
    layers = 2 * (2 * 64 * 64 + 2 * 64 * 32 + 3 * 64 * 128)
    output = 64 * 512
    prompts = Work(model, Regime(5, 10), 2)
    assert prompts.seconds(DeviceRates(1e6, 1e6)) == pytest.approx(
        2 * 10 * (10 * layers + 3 * output) / 1e6
    )
    assert prompts.tokens == 100
    decoding = Work(model, Regime(5, 10, 3), 2)
    by_prompts = 2 * 10 * (10 * layers + output) / 1e9
    cached = 10 * 2 * 2 * 32  # of ten rows, a token: keys and values of two layers
    by_bytes = sum(2 * (layers + output + (10 + step) * cached) for step in (1, 2)) / 1e3
    assert decoding.seconds(DeviceRates(1e9, 1e3)) == pytest.approx(by_prompts + by_bytes)
    by_products = by_prompts + 2 * 2 * 10 * (layers + output) / 1e9
    assert decoding.seconds(DeviceRates(1e9, 1e15)) == pytest.approx(by_products)
    assert decoding.tokens == 130


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--device", "cpu"], "--device: expected a GPU, found cpu"),
        (["--tiny", "--device", "cpu", "--minutes", "0"], "--minutes: expected a number above 0"),
        (
            ["--tiny", "--device", "cpu", "--parts", "cards", "--bases", "Llama-3.1-8B"],
            "--parts cards: expected --bases with Qwen2.5-1.5B",
        ),
    ],
)
def test_what_cannot_run_is_refused(words, message, capsys):
    with pytest.raises(SystemExit):
        gpu_check.main(words)
    assert message in capsys.readouterr().err


class Parts(Record):
    """Notes the parts that it is asked to run, and runs none."""

    def run(self, part, share, work):
        self.note(part, f"{share}")


def test_contract_comes_before_the_speeds_which_take_all_the_time(tmp_path):
    record = Parts(tmp_path, minutes=1)
    gpu_check.check_device(record, CPU, tiny=True)
    shares = {note["part"]: float(note["note"]) for note in record.notes}
    parts = list(shares)
    before = [part for part in parts if not part.startswith(("speed", "cards"))]
    base, *others = gpu_check.BASES
    assert parts[len(before) :] == [
        f"speed of {base}",
        f"cards with {base}",
        *[f"speed of {other}" for other in others],
    ]
    assert {"scores", "contract"} < set(before)
    assert sum(shares[part] for part in before) <= 0.6


def test_parts_that_are_asked_for_run_alone_and_may_take_all_the_time(tmp_path):
    record = Parts(tmp_path, minutes=1)
    gpu_check.check_device(record, CPU, tiny=True, parts=["speed"], bases=["Llama-3.1-8B"])
    assert record.notes == [
        {"part": "rates", "note": "1.0"},
        {"part": "speed of Llama-3.1-8B", "note": "1.0"},
    ]


def wrong(record):
    record.add("contract", ok=False)


def out_of_memory(record):
    record.add("speed", base="b", regime="r", procedure="16 GiB", ok=False)


def failing(record):
    record.run("speed of b", 1, lambda: 1 / 0)


def unfinished(record):
    record.note("contract", "not run: no time is left")


def right(record):
    record.add("contract", ok=True)
    record.note("speed of b", "ended after its 3 s")


@pytest.mark.parametrize(
    ("outcome", "status"),
    [(right, 0), (wrong, 1), (out_of_memory, 1), (failing, 1), (unfinished, 1)],
)
def test_the_status_says_whether_all_is_right(tmp_path, monkeypatch, outcome, status):
    def check_device(record, device, **_):
        record.machine = gpu_check.describe_machine(device)
        outcome(record)

    monkeypatch.setattr(gpu_check, "check_device", check_device)
    words = ["--tiny", "--device", "cpu", "--out", str(tmp_path)]
    assert gpu_check.main(words) == status


def test_runs_side_by_side_show_what_each_search_has_found():
    assert checks._run_vmap("SurrogateEvoGM", CPU, {})["algorithm.points"].shape == (3, 3, 3)
    assert checks._run_vmap("GradientSearch", CPU, {})["algorithm.iterate"].shape == (3, 3)


def test_generated_scores_that_are_all_the_same_are_refused():
    generated = Regime(2, 3, 4).task("generated", 50)
    scored = Regime(2, 3).task("scored", 50)
    reference = {"generated": torch.zeros(2, 2), "scored": torch.zeros(2, 2)}
    with pytest.raises(ValueError, match=r"expected the scores 0 and 1, found only \[0.0\]"):
        checks.check_reference(reference, [scored, generated])
    reference["generated"][1, 0] = 1
    checks.check_reference(reference, [scored, generated])


@pytest.mark.language_model
def test_answers_of_other_merges_are_found_to_be_wrong(tmp_path, monkeypatch):
    """In the merged mode the merges get each other's scores of generated answers."""

    class Swapping(LoRAMergeProblem):
        def score_together(self, pop, *arguments):
            scores = super().score_together(pop, *arguments)
            if set(self.modes.values()) == {"merged"}:
                scores["generated"] = scores["generated"].flip(0)
            return scores

    monkeypatch.setattr(checks, "LoRAMergeProblem", Swapping)
    monkeypatch.setattr(checks, "P", 2)
    monkeypatch.setattr(checks, "SHAPES", {"Llama-3.1-8B": SHAPES["Llama-3.1-8B"]})
    record = Record(tmp_path, minutes=1)
    checks.check_scores(record, CPU)
    assert [row["ok"] for row in record.rows] == [True, False, True, True]
    assert record.rows[1]["difference"] == 1


def test_a_smaller_card_holds_one_problem_at_a_time(tmp_path, monkeypatch):
    problems = []

    class Problem:
        batch_sizes = 1

        def choose_modes(self, candidates):
            pass

        def evaluate(self, pop):
            self.itself = self  # only the garbage collection frees it

    def make(*_, **__):
        assert all(reference() is None for reference in problems)
        problem = Problem()
        problems.append(weakref.ref(problem))
        return problem

    for name in ("set_per_process_memory_fraction", "memory_reserved"):
        monkeypatch.setattr(torch.cuda, name, lambda *_: 0)
    large = SimpleNamespace(total_memory=80 * 2**30)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: large)
    record = Record(tmp_path, minutes=1)
    rates = DeviceRates(1.0, 1.0)
    check = SpeedCheck(record, CPU, "Qwen2.5-1.5B", {}, rates, candidates=2, tiny=True)
    check.device = torch.device("cuda")
    monkeypatch.setattr(check, "_problem", make)
    check._score_with_less_memory(None, None, [], {"long": None, "generated 10": None}, (24, 16))
    assert [(row["procedure"], row["ok"]) for row in record.rows] == [
        ("24 GiB", True),
        ("16 GiB", True),
    ]


def test_a_merge_counts_once_however_many_examples_are_left_out(tmp_path, monkeypatch):
    record = Record(tmp_path, minutes=1)
    regime = Regime(32, 5)
    regimes = {"long": regime}
    rates = DeviceRates(1.0, 1.0)
    check = SpeedCheck(record, CPU, "Qwen2.5-1.5B", regimes, rates, candidates=2, tiny=True)
    scored = []

    def procedure(pop, tasks):
        scored.append([len(task.examples) for task in tasks])

    def seconds(work, *, warm=False):
        work()
        return 3.0 + sum(scored[-1])  # to merge, and a second for each example

    monkeypatch.setattr(check, "_seconds", seconds)
    check._measure_one_by_one("published", procedure, {"long": regime.task("long", 50)})
    assert [(row["procedure"], row["ms"]) for row in record.rows] == [
        ("published merge", 3000.0),
        ("published", 35_000.0),
    ]


@pytest.mark.slow
def test_all_parts_run_with_tiny_shapes(tmp_path, capsys):
    assert gpu_check.main(["--tiny", "--device", "cpu", "--out", str(tmp_path)]) == 0
    found = json.loads((tmp_path / JSON).read_text())
    assert found["notes"] == []
    checks = [row for row in found["rows"] if row["part"] in ("scores", "contract")]
    # Two bases by four comparisons of scores; three searches, eager and under vmap.
    assert len(checks) == 2 * 4 + 3 * 2 and all(row["ok"] for row in checks)
    table = (tmp_path / gpu_check.TABLE).read_text()
    assert table in capsys.readouterr().out
    rows = [line for line in table.splitlines() if line.startswith(("| Qwen", "| Llama"))]
    assert len(rows) == 12
    for row in rows:
        assert row.count("| - |") <= 1  # the peak of memory, which a CPU does not have
