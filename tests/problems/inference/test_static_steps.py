"""Decoding with a static cache gives what plain passes give, also as a graph that is replayed."""

import copy
import logging
from contextlib import contextmanager, nullcontext
from dataclasses import replace

import pytest
import torch
from builders import build_model, stack_folders, two_adapters
from pretend_device import pretend_accelerator

from evox_evogm.problems.adapters.merging import merged
from evox_evogm.problems.inference import static_steps
from evox_evogm.problems.inference.batch_sizes import BatchSizes
from evox_evogm.problems.inference.language_model import LanguageModel
from evox_evogm.problems.inference.measure_batches import WIDTH, RandomBatches
from evox_evogm.problems.inference.measure_static import pays_from, time_static
from evox_evogm.problems.inference.probe import probe_base
from evox_evogm.problems.inference.static_steps import StaticSteps, may_be_static

pytestmark = pytest.mark.language_model

PROMPTS = ["ask", "ask me", "ask me now", "tell me all of it", "so", "what is that"]
SHARED = [f"a question with a long beginning: {end}" for end in ("a", "bc", "def", "g")]
NEW = 7
DYNAMIC = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}
STATIC = BatchSizes(rows=100, static_from=1)


def plain_texts(model, tokenizer, prompts, limits=None):
    """What `generate` of transformers gives, one prompt at a time.

    :param limits: how many tokens of each reply are wanted; all by default.
    """
    texts = []
    for prompt, limit in zip(prompts, limits or [NEW] * len(prompts), strict=True):
        settings = {"do_sample": False, "eos_token_id": 0, "pad_token_id": 0}
        reply = model.generate(torch.tensor([prompt]), max_new_tokens=NEW, **settings)
        reply = reply[0, len(prompt) :][:limit]
        texts.append(tokenizer.decode(reply, skip_special_tokens=True))
    return texts


def stop_at(limits):
    """Says that a text ends after so many tokens."""
    left = list(limits)

    def should_stop(number, _):
        left[number] -= 1
        return left[number] == 0

    return should_stop


def count_static(monkeypatch):
    """The rows of each static step that is made from now on."""
    rows, call = [], StaticSteps.__call__

    def counting(steps, tokens):
        rows.append(len(tokens))
        return call(steps, tokens)

    monkeypatch.setattr(StaticSteps, "__call__", counting)
    return rows


@pytest.mark.parametrize(
    ("architecture", "texts"),
    [
        ("llama", PROMPTS),
        ("qwen3", SHARED),
        pytest.param("gpt2", PROMPTS, marks=pytest.mark.slow),
        pytest.param("gemma", SHARED, marks=pytest.mark.slow),
    ],
)
def test_replies_are_those_of_plain_generate(architecture, texts, tokenizer, monkeypatch):
    """The replies end one after another, so that rows leave."""
    model = build_model(architecture)
    scorer = LanguageModel(model, tokenizer, batch_tokens=STATIC)
    prompts = [scorer.prompt_tokens(text) for text in texts]
    limits = [NEW - number for number in range(len(texts))]
    expected = plain_texts(model, tokenizer, prompts, limits)
    rows = count_static(monkeypatch)
    assert scorer.generate(prompts, NEW, should_stop=stop_at(limits)) == expected
    assert any(expected) and len(rows) >= NEW - 1 and min(rows) < max(rows)
    assert scorer.forward.static_use.failed is None


def test_rows_of_two_merges_decode_as_each_alone(make_adapter, tokenizer, monkeypatch):
    model = build_model()
    modules = stack_folders(two_adapters("llama", make_adapter))
    pop = torch.tensor([[0.7, -1.2], [-0.4, 0.9]])
    scorer = LanguageModel(model, tokenizer, batch_tokens=STATIC)
    prompts = [scorer.prompt_tokens(text) for text in PROMPTS]
    owners = [0, 1, 1, 0, 1, 0]
    expected = []
    for prompt, owner in zip(prompts, owners, strict=True):
        with merged(model, modules, pop[owner]):
            expected += plain_texts(model, tokenizer, [prompt])
    rows = count_static(monkeypatch)
    with merged(model, modules, pop) as population, scorer.candidates(population.select):
        assert scorer.generate(prompts, NEW, owners) == expected
    assert rows[0] == len(prompts) and len(set(expected)) > 2


def test_few_new_tokens_have_a_growing_cache(tokenizer, monkeypatch):
    rows = count_static(monkeypatch)
    scorer = LanguageModel(build_model(), tokenizer, batch_tokens=replace(STATIC, static_from=5))
    prompts = [scorer.prompt_tokens(text) for text in PROMPTS]
    scorer.generate(prompts, 4)
    assert rows == []
    scorer.generate(prompts, 5)
    assert rows


class PretendGraph:
    """A graph whose capture runs nothing, and whose replay runs the step that was captured.

    :param fails: whether the capture raises.
    """

    made: list["PretendGraph"] = []
    fails = False

    def __init__(self):
        self.replays = 0
        self.made.append(self)

    def replay(self):
        self.replays += 1
        self.steps.logits.copy_(self.steps._run())
        self.steps.forward.static_use.passes -= 1  # a replay is no pass of the host


class Idle(nullcontext):
    """In place of streams and devices: a class, as modules that are imported meanwhile expect."""

    def __init__(self, *_):
        super().__init__()


@pytest.fixture
def pretend_graphs(monkeypatch):
    """CUDA graphs on the CPU."""

    @contextmanager
    def capture(graph, **_):
        if PretendGraph.fails:
            raise RuntimeError("operation not permitted when stream is capturing")
        before = copy.deepcopy(graph.steps.cache)
        yield
        graph.steps.cache = before

    capture_step = StaticSteps._capture

    def capture_with_steps(steps):
        monkeypatch.setattr(PretendGraph, "steps", steps, raising=False)
        capture_step(steps)

    monkeypatch.setattr(StaticSteps, "_capture", capture_with_steps)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", PretendGraph)
    monkeypatch.setattr(torch.cuda, "graph", capture)
    for name in ("device", "stream", "current_stream", "Stream"):
        monkeypatch.setattr(torch.cuda, name, Idle)
    monkeypatch.setattr(static_steps, "waits_for_device", lambda: nullcontext([]))
    monkeypatch.setattr(
        StaticSteps, "_may_capture", lambda steps: steps.forward.static_use.failed is None
    )
    monkeypatch.setattr(PretendGraph, "made", [])
    monkeypatch.setattr(PretendGraph, "fails", False)
    return PretendGraph


def generate(model, tokenizer, limits=None):
    """A scorer, and whether its replies are the plain ones."""
    scorer = LanguageModel(model, tokenizer, batch_tokens=STATIC)
    prompts = [scorer.prompt_tokens(text) for text in PROMPTS]
    expected = plain_texts(model, tokenizer, prompts, limits)
    should_stop = None if limits is None else stop_at(limits)
    return scorer, scorer.generate(prompts, NEW, should_stop=should_stop) == expected


def test_the_second_step_is_captured_and_replayed_from_then_on(pretend_graphs, tokenizer):
    scorer, same = generate(build_model("gpt2"), tokenizer)
    assert same and [graph.replays for graph in pretend_graphs.made] == [NEW - 2]
    assert scorer.forward.static_use.failed is None


def test_rows_that_leave_have_a_graph_of_their_own(pretend_graphs, tokenizer):
    _, same = generate(build_model("gpt2"), tokenizer, [NEW, NEW, NEW, 4, 4, 4])
    assert same and [graph.replays for graph in pretend_graphs.made] == [2, 2]


def test_a_capture_that_fails_is_noted_once_and_changes_no_reply(pretend_graphs, tokenizer, caplog):
    pretend_graphs.fails = True
    with caplog.at_level(logging.WARNING):
        scorer, same = generate(build_model(), tokenizer)
    assert same and caplog.text.count("without a static cache: RuntimeError") == 1
    assert not any(graph.replays for graph in pretend_graphs.made)
    assert static_steps.make_static_steps(scorer.forward, [0], None, None, 1) is None


def test_steps_that_wait_for_the_device_are_not_captured(
    pretend_graphs, tokenizer, monkeypatch, caplog
):
    monkeypatch.setattr(static_steps, "waits_for_device", lambda: nullcontext(["copy"]))
    _, same = generate(build_model(), tokenizer)
    assert same and pretend_graphs.made == [] and "waits for the device" in caplog.text


@torch.no_grad()
def test_another_pass_in_between_makes_a_graph_be_captured_anew(pretend_graphs, tokenizer):
    scorer = LanguageModel(build_model(), tokenizer)
    batches = RandomBatches(scorer, 1)
    cache, mask, tokens = batches.filled_cache(2)
    steps = StaticSteps(scorer.forward, [0, 0], cache, mask, 6)
    for step in range(6):
        steps(tokens)
        if step == 2:
            batches.prompts(2 * WIDTH)()
    assert [graph.replays for graph in pretend_graphs.made] == [2, 2]


@pytest.mark.parametrize(
    ("error", "notes"),
    [
        (torch.OutOfMemoryError("CUDA out of memory"), 0),  # a smaller batch may have room
        (NotImplementedError("no such cache"), 1),
    ],
)
def test_a_cache_that_cannot_be_had_goes_on_growing(error, notes, tokenizer, monkeypatch, caplog):
    def fail(*_):
        raise error

    monkeypatch.setattr(static_steps, "static_cache_of", fail)
    scorer, same = generate(build_model(), tokenizer)
    assert same and caplog.text.count("goes on without a static cache") == notes
    assert (scorer.forward.static_use.failed is None) == (notes == 0)
    able = probe_base(scorer, {}, 1, [tuple(range(1, 9)), tuple(range(3, 40))])
    assert able.cache and not able.static_cache  # as none could be compared


def test_windows_recurrent_layers_and_changing_frequencies_have_no_static_cache(tokenizer):
    from transformers import MambaConfig, MambaForCausalLM, MistralConfig, MistralForCausalLM

    shape = {"vocab_size": 257, "hidden_size": 16, "intermediate_size": 32, "head_dim": 4}
    shape |= {"num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
    window = MistralForCausalLM(MistralConfig(sliding_window=9, **shape))
    config = MambaConfig(vocab_size=257, hidden_size=16, state_size=4, num_hidden_layers=2)
    grows = build_model(rope_parameters=DYNAMIC)
    for model in (window, MambaForCausalLM(config), grows):
        assert not may_be_static(LanguageModel(model.eval(), tokenizer).forward)
    assert may_be_static(LanguageModel(build_model(), tokenizer).forward)


def test_the_probe_compares_it_where_it_may_be_used(tokenizer, monkeypatch):
    rows = count_static(monkeypatch)
    prompts = [tuple(range(1, 9)), tuple(range(3, 40))]
    scorer = LanguageModel(build_model(), tokenizer)
    assert probe_base(scorer, {}, 1, prompts).static_cache and rows == []
    scorer = LanguageModel(build_model(), tokenizer, batch_tokens=STATIC)
    able = probe_base(scorer, {}, 1, prompts)
    assert able.static_cache and able.notes == () and rows == [3, 2, 2, 3, 3, 3]


def test_the_probe_notes_bases_that_cannot_have_one(tokenizer):
    grows = build_model(rope_parameters=DYNAMIC)
    scorer = LanguageModel(grows, tokenizer, batch_tokens=STATIC)
    able = probe_base(scorer, {}, 1, [tuple(range(1, 9)), tuple(range(3, 40))])
    assert not able.static_cache
    assert sum("decodes with growing caches" in note for note in able.notes) == 1


def test_the_probe_switches_off_what_is_wrong(tokenizer, monkeypatch):
    run = StaticSteps.__call__

    def wrong_from_the_third_on(steps, tokens):
        logits = run(steps, tokens)
        return logits if steps.filled < steps.mask.shape[1] else logits.roll(1, -1)

    monkeypatch.setattr(StaticSteps, "__call__", wrong_from_the_third_on)
    scorer = LanguageModel(build_model(), tokenizer, batch_tokens=STATIC)
    able = probe_base(scorer, {}, 1, [tuple(range(1, 9)), tuple(range(3, 40))])
    assert able.switched_off == ["static_cache"]
    assert "decoding with a static cache: logits differ" in able.notes[0]


def experts_of_llama(make_adapter):
    """Two stacked experts and the prompts that the probe reads."""
    modules = stack_folders(two_adapters("llama", make_adapter))
    return modules, 2, [tuple(range(1, 9)), tuple(range(3, 40))]


def test_the_probe_compares_it_with_experts_too(make_adapter, tokenizer, monkeypatch):
    rows = count_static(monkeypatch)
    scorer = LanguageModel(build_model(), tokenizer, batch_tokens=STATIC)
    able = probe_base(scorer, *experts_of_llama(make_adapter))
    assert able.switched_off == [] and able.notes == ()
    # Of the base, then of two candidates: one row leaves, and all stay.
    assert rows == 2 * [3, 2, 2, 3, 3, 3]


def test_what_is_wrong_with_experts_alone_is_switched_off(make_adapter, tokenizer, monkeypatch):
    """Behind rows that left, those that stay get the coefficients of the first ones."""
    keep_rows = StaticSteps.keep_rows

    def forget_whose_they_are(steps, places):
        candidates = steps.candidates
        keep_rows(steps, places)
        steps.candidates = candidates[: len(places)]

    monkeypatch.setattr(StaticSteps, "keep_rows", forget_whose_they_are)
    modules, count, prompts = experts_of_llama(make_adapter)
    scorer = LanguageModel(build_model(), tokenizer, batch_tokens=STATIC)
    assert probe_base(scorer, {}, count, prompts).switched_off == []
    able = probe_base(scorer, modules, count, prompts)
    assert able.switched_off == ["static_cache"] and len(able.notes) == 1
    assert "decoding of two candidates with a static cache: logits differ by" in able.notes[0]


def test_no_tensor_is_on_another_device(tokenizer):
    model = build_model()
    scorer = LanguageModel(model, tokenizer)
    prompts = [scorer.prompt_tokens(text) for text in PROMPTS]
    expected = scorer.generate(prompts, NEW)
    with pretend_accelerator() as device:
        model.to(device)
        scorer = LanguageModel(model, tokenizer, batch_tokens=STATIC)
        assert scorer.generate(prompts, NEW) == expected
        assert scorer.forward.static_use.failed is None


@pytest.mark.parametrize(
    ("beginning", "static", "growing", "expected"),
    [(0.1, 1.0, 1.0, None), (0.1, 0.96, 1.0, None), (0.0, 0.5, 1.0, 3), (5.0, 0.5, 1.0, 43)],
)
def test_where_a_static_cache_pays(beginning, static, growing, expected):
    """Four beginnings of 5 seconds are paid by 40 steps that save half a second each."""
    assert pays_from(beginning, static, growing) == expected


def test_times_are_those_of_the_clock(tokenizer):
    """A clock that moves by 1 at every look: growing 1/4, static 1/4 a step."""
    scorer = LanguageModel(build_model(), tokenizer)
    looks = iter(range(100))
    assert time_static(scorer, RandomBatches(scorer, 2), 4, lambda: next(looks)) is None
    times = iter([0.0, 40.0, 40.0, 70.0, 72.0])  # 10 a growing step; 30 to begin; 0.5 a step
    found = time_static(scorer, RandomBatches(scorer, 2), 4, lambda: next(times))
    assert found == 1 + 2 + 5  # 4 beginnings of 30 - 2 * 10, by 9.5 a step
