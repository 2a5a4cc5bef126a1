"""RegMean from prompts or from weights alone, computed here from whole weights in float64."""

import copy
from dataclasses import replace

import pytest
import torch
from builders import build_model

from evox_evogm.problems import Example, LoRAMergeProblem, Task
from evox_evogm.problems.adapters import passes as passes_file
from evox_evogm.problems.adapters.passes import passes
from evox_evogm.problems.adapters.read_adapter import read_expert
from evox_evogm.problems.adapters.regmean_unlabelled import regress_on_prompts, regress_on_weights
from evox_evogm.problems.inference.language_model import LanguageModel


def make_task(name, sign):
    examples = [Example(f"{name} {i}", f"{name}{i}{sign}", str(3 * i)) for i in range(4)]
    return Task(name, "1", "gold_log_probability", tuple(examples))


TASKS = [make_task("first", "+"), make_task("second", "?")]
OTHER = {"r": 2, "lora_alpha": 5, "target_modules": ["v_proj", "up_proj"]}


@pytest.fixture
def folders(make_adapter):
    """Both have factors of v_proj, the first alone of q_proj, the second alone of up_proj."""
    return [make_adapter("first", seed=1), make_adapter("second", seed=2, **OTHER)]


@pytest.fixture
def experts(folders):
    return [read_expert(folder) for folder in folders]


def delta(expert, module):
    """s B A `(D_out, D_in)` of an expert in float64, 0 for a module that it does not touch."""
    if module not in expert.modules:
        return torch.zeros(())
    factors = expert.modules[module]
    return factors.scale * factors.b.double() @ factors.a.double()


def modules_of(experts):
    return sorted({module for expert in experts for module in expert.modules})


def with_embeddings(make_adapter):
    folders = []
    for seed, name in enumerate(["first", "second"]):
        folders.append(make_adapter(name, seed=seed, target_modules=["embed_tokens"]))
    return [read_expert(folder) for folder in folders]


# From the weights


def regression_mean(base, deltas, grams):
    """W of W^T = (sum_k G_k)^-1 sum_k G_k W_k^T."""
    target = 0.0
    for one, gram in zip(deltas, grams, strict=True):
        target = target + gram @ (base + one).mT
    return torch.linalg.solve(sum(grams), target).mT  # (D_out, D_in)


def test_from_weights_their_sum_is_the_merge_by_the_formula(model, experts):
    regressed = regress_on_weights(experts)
    for module in modules_of(experts):
        having = [expert for expert in experts if module in expert.modules]
        base = model.get_submodule(module).weight.detach().double()
        grams = []
        for expert in having:
            a = expert.modules[module].a.double()
            eigenvalues = torch.linalg.svdvals(a).square()  # r of them, those that are not 0
            grams.append(torch.eye(a.shape[1]) + a.mT @ a / eigenvalues.mean())
        expected = regression_mean(base, [delta(expert, module) for expert in having], grams)
        found = base + sum(delta(expert, module) for expert in regressed)
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)


def test_from_weights_an_expert_alone_in_a_module_stays_as_it_is(experts):
    regressed = regress_on_weights(experts)
    shared = 0
    for expert, other, found in zip(experts, experts[::-1], regressed, strict=True):
        assert found.modules.keys() == expert.modules.keys()
        for module, factors in expert.modules.items():
            is_equal = torch.equal(found.modules[module].a, factors.a)
            assert is_equal == (module not in other.modules)
            shared += not is_equal
    assert shared == 4  # v_proj of two layers


def test_from_weights_twins_are_halved_and_the_size_of_a_says_nothing(make_adapter):
    twin = read_expert(make_adapter("first", seed=1))
    larger = {}
    for module, factors in twin.modules.items():
        larger[module] = replace(factors, a=8 * factors.a, b=factors.b / 8)
    for expert in regress_on_weights([twin, replace(twin, name="second", modules=larger)]):
        for module in twin.modules:
            half = delta(twin, module) / 2
            torch.testing.assert_close(delta(expert, module), half, rtol=1e-5, atol=1e-6)


def test_from_weights_on_separate_inputs_an_expert_counts_twice_on_its_own(experts):
    (module,) = experts[0].modules.keys() & {"model.layers.0.self_attn.v_proj"}
    width = experts[0].modules[module].a.shape[1]
    first, second = torch.eye(width)[:2], torch.eye(width)[2:6]
    separate = []
    for expert, a in zip(experts, (first, second), strict=True):
        factors = replace(expert.modules[module], a=a, b=torch.ones(4, len(a)))
        separate.append(replace(expert, modules={module: factors}))
    for found, a in zip(regress_on_weights(separate), (first, second), strict=True):
        torch.testing.assert_close(found.modules[module].a, a * 2 / 3)  # the other counts once


def test_from_weights_tokens_of_embeddings_are_shared_by_the_size_of_their_columns(make_adapter):
    experts = with_embeddings(make_adapter)
    regressed = regress_on_weights(experts)
    diagonals = []
    for expert in experts:
        a = expert.modules["model.embed_tokens"].a.double()
        squares = (a.mT @ a).diagonal()  # (V,)
        diagonals.append(1 + squares / squares.mean())
    for expert, found, diagonal in zip(experts, regressed, diagonals, strict=True):
        expected = expert.modules["model.embed_tokens"].a * diagonal / sum(diagonals)
        torch.testing.assert_close(
            found.modules["model.embed_tokens"].a.double(), expected, rtol=1e-6, atol=1e-6
        )


def test_from_weights_factors_of_0_stay_0(experts):
    module = "model.layers.0.self_attn.v_proj"
    zero = replace(experts[1].modules[module], a=torch.zeros_like(experts[1].modules[module].a))
    given = [experts[0], replace(experts[1], modules={module: zero})]
    for expert in regress_on_weights(given):
        assert expert.modules[module].a.isfinite().all()


# From prompts


@torch.no_grad()
def read_prompts(model, expert, modules, prompts):
    """By whole weights: the inputs `(N, D)` of every module a prompt, and the entropies behind."""
    dense = copy.deepcopy(model)
    for module in expert.modules:
        change = delta(expert, module).float()
        is_embedding = expert.modules[module].embedding  # the base has its rows by token
        dense.get_submodule(module).weight.data += change.mT if is_embedding else change
    inputs = {module: [] for module in modules}
    for module in modules:

        def record(layer, arguments, module=module):
            inputs[module].append(arguments[0].squeeze(0).double())

        dense.get_submodule(module).register_forward_pre_hook(record)
    entropies = []
    for prompt in prompts:
        logits = dense(input_ids=torch.tensor([prompt])).logits[0, -1].double()
        entropies.append(torch.distributions.Categorical(logits=logits).entropy())
    return inputs, torch.stack(entropies)


def shares_of(entropies):
    """exp(-H / 0.2) of every expert, over their sum `(n, N)`."""
    sizes = torch.exp(-torch.stack(entropies) / 0.2)
    return sizes / sizes.sum(0)


def all_prompts(tokenizer):
    return [tokenizer.encode(example.prompt) for task in TASKS for example in task.examples]


def test_from_prompts_their_sum_is_the_merge_by_the_formula(model, experts, tokenizer):
    model.lm_head.weight.data *= 20  # so that models are surer, and differ in it
    modules = modules_of(experts)
    prompts = all_prompts(tokenizer)
    read = [read_prompts(model, expert, modules, prompts) for expert in experts]
    shares = shares_of([entropies for _, entropies in read])
    assert shares.min() < 0.1 and shares.max() > 0.9
    regressed = regress_on_prompts(LanguageModel(model, tokenizer), experts, TASKS)
    for module in modules:
        base = model.get_submodule(module).weight.detach().double()
        grams = []
        for (inputs, _), share in zip(read, shares, strict=True):
            gram = 0.0
            for weight, rows in zip(share, inputs[module], strict=True):
                gram = gram + weight * rows.mT @ rows
            grams.append(0.9 * gram + 0.1 * gram.diagonal().diag())
        target = sum(
            gram @ (base + delta(expert, module)).mT
            for gram, expert in zip(grams, experts, strict=True)
        )
        total = sum(grams)
        ridge = 1e-6 * total.diagonal().mean() * torch.eye(len(total))
        expected = torch.linalg.solve(total + ridge, target).mT
        found = base + sum(delta(expert, module) for expert in regressed)
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)


def test_from_prompts_tokens_of_embeddings_are_counted_by_prompts(make_adapter, model, tokenizer):
    experts = with_embeddings(make_adapter)
    prompts = all_prompts(tokenizer)
    entropies = [read_prompts(model, expert, [], prompts)[1] for expert in experts]
    shares = shares_of([row.double() for row in entropies])
    counts = torch.full((2, 257), 1e-6, dtype=torch.float64)
    for row, share in zip(counts, shares, strict=True):
        for weight, prompt in zip(share, prompts, strict=True):
            for token in prompt:
                row[token] += weight
    regressed = regress_on_prompts(LanguageModel(model, tokenizer), experts, TASKS)
    for expert, found, row in zip(experts, regressed, counts, strict=True):
        expected = expert.modules["model.embed_tokens"].a * row / counts.sum(0)
        torch.testing.assert_close(
            found.modules["model.embed_tokens"].a.double(), expected, rtol=1e-3, atol=1e-4
        )


def test_from_prompts_no_answer_is_read(model, experts, tokenizer):
    swapped = []
    for task in TASKS:
        examples = [replace(example, target="99") for example in task.examples]
        swapped.append(replace(task, examples=tuple(examples)))
    one = regress_on_prompts(LanguageModel(model, tokenizer), experts, TASKS)
    other = regress_on_prompts(LanguageModel(model, tokenizer), experts, swapped)
    for ours, theirs in zip(one, other, strict=True):
        for module, factors in ours.modules.items():
            assert torch.equal(factors.a, theirs.modules[module].a)


def test_from_prompts_predictions_that_are_not_finite_are_refused(model, experts, tokenizer):
    model.model.norm.weight.data[0] = float("nan")
    message = "regmean: expected finite predictions of the next token, found others with .*'first'"
    with pytest.raises(ValueError, match=message):
        regress_on_prompts(LanguageModel(model, tokenizer), experts, TASKS)


# Problems


@pytest.mark.parametrize("regmean", ["weights", "prompts"])
@pytest.mark.parametrize("architecture", ["llama", "gpt2"])  # gpt2 keeps its weights transposed
def test_a_problem_takes_them_by_name_and_exports_their_merge(
    make_adapter, tokenizer, tmp_path, architecture, regmean
):
    model = build_model(architecture)
    settings = {}
    if architecture == "gpt2":
        settings = {"target_modules": ["c_attn"], "fan_in_fan_out": True}
    folders = [make_adapter(f"expert{seed}", model, seed=seed, **settings) for seed in (1, 2)]
    settings = {"tokenizer": tokenizer, "mode": "unmerged"}
    problem = LoRAMergeProblem(model, folders, TASKS, regmean=regmean, **settings)
    plain = LoRAMergeProblem(model, folders, TASKS, **settings)
    assert problem.regressed and problem.regmean == regmean
    assert problem.box[0].tolist() == [-0.5, -0.5]
    assert problem.export(torch.ones(2), tmp_path / "out") < 1e-5
    found = problem.evaluate(torch.ones(1, 2))
    assert found.isfinite().all() and found != plain.evaluate(torch.ones(1, 2))
    given = problem.with_experts_as_given()
    assert not given.regressed
    assert torch.equal(given.evaluate(torch.eye(2)), plain.evaluate(torch.eye(2)))


def test_another_name_is_refused(model, folders, tokenizer):
    message = "regmean: expected 'weights', 'prompts' or a mapping of .*, found 'wieghts'"
    with pytest.raises(ValueError, match=message):
        LoRAMergeProblem(model, folders, TASKS, tokenizer=tokenizer, regmean="wieghts")


# Passes of several texts


def test_texts_of_one_length_share_passes_in_their_places(monkeypatch):
    monkeypatch.setattr(passes_file, "PASS_TOKENS", 6)
    texts = [(1, 2, 3), (4,), (5, 6, 7), (8, 9, 10), (11,)]
    found = [(places, tokens.tolist()) for places, tokens in passes(texts)]
    assert found == [
        ([0, 2], [[1, 2, 3], [5, 6, 7]]),
        ([3], [[8, 9, 10]]),
        ([1, 4], [[4], [11]]),
    ]


@pytest.mark.parametrize("embeddings", [False, True])
def test_prompts_together_give_what_they_give_one_by_one(
    make_adapter, model, experts, tokenizer, monkeypatch, embeddings
):
    if embeddings:
        experts = with_embeddings(make_adapter)
    language_model = LanguageModel(model, tokenizer)
    together = regress_on_prompts(language_model, experts, TASKS)
    monkeypatch.setattr(passes_file, "PASS_TOKENS", 1)
    check_same_factors(together, regress_on_prompts(language_model, experts, TASKS))


@pytest.mark.parametrize("dimensions", [2, 3])
def test_a_module_that_sees_the_tokens_of_all_texts_in_one_row_gets_each_text_alone(
    model, experts, tokenizer, monkeypatch, dimensions
):
    """As the modules behind a router do; one text has a length of its own."""
    longer = Example("longer", "first and longer", "7")
    tasks = [replace(TASKS[0], examples=(*TASKS[0].examples, longer)), TASKS[1]]
    language_model = LanguageModel(model, tokenizer)
    expected = regress_on_prompts(language_model, experts, tasks)
    for layer in model.model.layers:
        forward = layer.mlp.forward

        def in_one_row(hidden, forward=forward):
            row = hidden.flatten(0, 1).flip(0)
            if dimensions == 3:
                row = row[None]
            return forward(row).flatten(0, -2).flip(0).view_as(hidden)

        monkeypatch.setattr(layer.mlp, "forward", in_one_row)
    check_same_factors(regress_on_prompts(language_model, experts, tasks), expected)


def check_same_factors(found, expected):
    for one, other in zip(found, expected, strict=True):
        assert one.modules.keys() == other.modules.keys()
        for name, factors in one.modules.items():
            torch.testing.assert_close(factors.a, other.modules[name].a, rtol=1e-4, atol=1e-5)
