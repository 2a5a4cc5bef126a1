"""Merges of experts of a T5: scores, margins and gradients are those of transformers and peft."""

import pytest
import torch
from builders_checkpoints import changed
from builders_t5 import build_t5, build_t5_tokenizer, save_t5
from harness_tasks import write_task
from safetensors.torch import load_file, save_file

from evox_evogm.command.exports import export_full_model
from evox_evogm.problems import LoRAMergeProblem, fitness_tasks, for_population, read_lm_eval
from evox_evogm.problems.racing import Racing
from evox_evogm.problems.tasks.spearman import SpearmanTask
from evox_evogm.problems.tasks.task import Example, Task
from evox_evogm.problems.trained_lora import Training, fresh_adapter

pytestmark = pytest.mark.language_model
POP = torch.tensor([[0.6, -0.4, 0.3], [0.0, 0.0, 0.0], [1.0, 0.5, -0.7]])
EXPERTS = [  # in encoder, decoder and between them
    {"r": 2, "lora_alpha": 4, "target_modules": ["q", "v"]},
    {"r": 3, "lora_alpha": 3, "target_modules": ["wi_0", "wo", "k"], "use_rslora": True},
    {"r": 2, "lora_alpha": 2, "target_modules": r"decoder.*EncDecAttention\.(k|o)|lm_head"},
]
PROMPTS = ["ab cd", "reverse 1 2 3 4 5 6 7", "x", "What is 3 and 4? Answer:", "Hello you"]
CHOICES = (("A", "yes"), ("B", "no it is"), ("C", "7"))


def examples(*, choices):
    found = []
    for place, prompt in enumerate(PROMPTS):
        target = "ABC"[place % 3] if choices else ["k(!", "G v", "x", "4 4", "LV"][place]
        found.append(Example(str(place), prompt, target, CHOICES if choices else ()))
    return tuple(found)


TASKS = [
    Task("choices", "1", "choice_likelihood", examples(choices=True), continuation="text"),
    Task("keys", "1", "choice_likelihood", examples(choices=True)),
    Task("gold", "1", "gold_log_probability", examples(choices=False)),
    Task("match", "1", "exact_match", examples(choices=False), max_new_tokens=6),
    Task("said", "1", "exact_match", examples(choices=False), max_new_tokens=6, match="contains"),
]


@pytest.fixture
def adapters(make_adapter):
    """The folders of three adapters of `build_t5()`."""
    folders = []
    for index, settings in enumerate(EXPERTS):
        config = {**settings, "task_type": "SEQ_2_SEQ_LM"}
        folders.append(make_adapter(f"t5_{index}", build_t5(), seed=index, **config))
    return folders


def problem_of(folders, tasks=TASKS, **options):
    return LoRAMergeProblem(
        build_t5(), folders, tasks, tokenizer=build_t5_tokenizer(), dtype=torch.float32, **options
    )


def merged_by_peft(folders, coefficients):
    """Plain peft's own sum of the adapters, in float32; the bare model where all are 0."""
    from peft import PeftModel

    model = build_t5()
    used = [place for place, value in enumerate(coefficients) if value]
    if not used:
        return model
    for place in used:
        if place == used[0]:
            wrapped = PeftModel.from_pretrained(model, folders[place], adapter_name=f"e{place}")
        else:
            wrapped.load_adapter(folders[place], adapter_name=f"e{place}")
    for layer in wrapped.modules():  # a sum of scaled adapters
        if hasattr(layer, "lora_A"):
            for place in used:
                if f"e{place}" in layer.lora_A:
                    layer.scaling[f"e{place}"] *= float(coefficients[place])
    wrapped.base_model.set_adapter([f"e{place}" for place in used])
    return wrapped.eval()


@torch.no_grad()
def plain_scores(model, task):
    """Scores and margins of a task by transformers' own loss, logits and generate."""
    tokenizer = build_t5_tokenizer()
    scores, margins = [], []

    def log_probability(prompt, answer):
        labels = torch.tensor([tokenizer(answer).input_ids[:-1]])
        out = model(**tokenizer(prompt, return_tensors="pt"), labels=labels)
        return -float(out.loss) * labels.shape[1], labels.shape[1]

    for example in task.examples:
        if task.metric == "choice_likelihood":
            texts = [text if task.continuation == "text" else key for key, text in CHOICES]
            values = [log_probability(example.prompt, text)[0] for text in texts]
            gold = values.pop("ABC".index(example.target))
            scores.append(float(gold > max(values)))
            margins.append(gold - max(values))
        elif task.metric == "gold_log_probability":
            total, count = log_probability(example.prompt, example.target)
            scores.append(total / count)
            margins.append(total / count)
        else:
            given = tokenizer(example.prompt, return_tensors="pt")
            tokens = model.generate(**given, max_new_tokens=6, do_sample=False, num_beams=1)[0]
            text = tokenizer.decode(tokens, skip_special_tokens=True)
            contains = task.match == "contains"
            same = example.target in text if contains else text.strip() == example.target
            scores.append(float(same))
            labels = torch.tensor([tokenizer(example.target).input_ids])
            logits = model(**given, labels=labels).logits[0]
            right = logits.gather(-1, labels[0][:, None])[:, 0]
            others = logits.scatter(-1, labels[0][:, None], -torch.inf).amax(-1)
            sign = 2 * scores[-1] - 1
            lead = abs(float((right - others).min()))  # the text may be right in other tokens
            margins.append(sign if contains else sign * lead)
    return torch.tensor(scores), torch.tensor(margins)


@pytest.mark.parametrize(("mode", "rows"), [("unmerged", (0, 1)), ("merged", (2,))])
def test_scores_and_margins_of_a_population_are_those_of_plain_peft(adapters, mode, rows):
    problem = problem_of(adapters, mode=mode)
    margins = {}
    found = problem.score_together(POP, margins=margins)
    for row in rows:
        model = merged_by_peft(adapters, POP[row])
        for task in TASKS:
            scores, expected = plain_scores(model, task)
            torch.testing.assert_close(found[task.name][row], scores, rtol=1e-4, atol=1e-4)
            torch.testing.assert_close(margins[task.name][row], expected, rtol=1e-3, atol=1e-3)
    assert problem.capabilities.switched_off == []
    assert found["match"][1, 0] == 1.0  # of the base


def test_candidates_of_a_batch_do_not_influence_each_other(adapters):
    problem = problem_of(adapters, mode="unmerged")
    other = POP.clone()
    other[1:] = torch.tensor([[-1.0, 1.0, 1.0], [0.2, 0.9, -1.0]])
    margins, margins_beside_others = {}, {}
    problem.score_together(POP, margins=margins)
    problem.score_together(other, margins=margins_beside_others)
    for name, values in margins.items():
        torch.testing.assert_close(values[0], margins_beside_others[name][0], rtol=1e-5, atol=1e-5)
        assert not torch.allclose(values[2], margins_beside_others[name][2]) or name == "said"


def test_derivatives_are_those_of_autograd_through_merged_weights(adapters):
    tasks = [task for task in TASKS if task.name in ("choices", "keys", "gold", "match")]
    problem = problem_of(adapters, tasks, objectives="gradients")
    found = problem.scorer.differentiate(POP[:1], tasks).derivatives
    model = build_t5()
    lambdas = POP[0].clone().requires_grad_()
    weights = dict(model.named_parameters())
    for index, expert in enumerate(problem.experts):
        for name, factors in expert.modules.items():
            delta = factors.scale * factors.b @ factors.a
            weights[f"{name}.weight"] = weights[f"{name}.weight"] + lambdas[index] * delta
    tokenizer = build_t5_tokenizer()

    def logits_of(prompt, labels):
        given = dict(tokenizer(prompt, return_tensors="pt"), labels=labels)
        return torch.func.functional_call(model, weights, (), given).logits[0].log_softmax(-1)

    def of_text(prompt, text):
        labels = torch.tensor([tokenizer(text).input_ids[:-1]])
        return logits_of(prompt, labels).gather(-1, labels[0][:, None]).sum(), labels.shape[1]

    for task in tasks:
        for place, example in enumerate(task.examples):
            if task.metric == "choice_likelihood":
                texts = [text if task.continuation == "text" else key for key, text in CHOICES]
                values = [of_text(example.prompt, text)[0] for text in texts]
                gold = values.pop("ABC".index(example.target))
                value = gold - torch.stack(values).logsumexp(0)
            elif task.metric == "gold_log_probability":
                total, count = of_text(example.prompt, example.target)
                value = total / count
            else:
                labels = torch.tensor([tokenizer(example.target).input_ids])
                logs = logits_of(example.prompt, labels).gather(-1, labels[0][:, None])[:, 0]
                odds = logs - (1 - logs.exp()).log()  # of each token
                value = -(-odds).logsumexp(0)
            (expected,) = torch.autograd.grad(value, lambdas, retain_graph=True)
            torch.testing.assert_close(
                found[task.name][0, place], expected, rtol=2e-3, atol=2e-3, msg=task.name
            )


def test_the_export_is_an_adapter_that_plain_peft_loads(adapters, tmp_path):
    from peft import AutoPeftModelForSeq2SeqLM, PeftModel

    save_t5(tmp_path / "base", build_t5())
    problem = LoRAMergeProblem(str(tmp_path / "base"), adapters, TASKS[:1], dtype=torch.float32)
    out = tmp_path / "merge"
    assert problem.export(POP[0], out) < 1e-6
    loaded = AutoPeftModelForSeq2SeqLM.from_pretrained(out)
    assert type(loaded).__name__ == "PeftModelForSeq2SeqLM"
    expected, _ = plain_scores(merged_by_peft(adapters, POP[0]), TASKS[2])
    scores, _ = plain_scores(loaded.eval(), TASKS[2])
    torch.testing.assert_close(scores, expected, rtol=1e-4, atol=1e-4)
    again = PeftModel.from_pretrained(build_t5(), out)
    assert again.peft_config["default"].task_type == "SEQ_2_SEQ_LM"


@pytest.mark.parametrize("flan", [True, False], ids=["flan", "first"])
def test_whole_models_are_merged_and_a_single_one_is_itself(tmp_path, flan):
    base = save_t5(tmp_path / "base", build_t5(flan=flan))
    folders = []
    for seed in range(2):
        expert = changed(build_t5(flan=flan), seed + 20)
        folders.append(save_t5(tmp_path / f"full{seed}", expert))
    problem = LoRAMergeProblem(str(base), folders, TASKS[2:4], dtype=torch.float32)
    pop = torch.tensor([[1.0, 0.0], [0.5, 0.7]])
    found = problem.score_together(pop)
    assert problem.modes == {} or set(problem.modes.values()) == {"merged"}
    models = [changed(build_t5(flan=flan), seed + 20) for seed in range(2)]
    mixed = build_t5(flan=flan)
    parameters = dict(mixed.named_parameters())
    with torch.no_grad():
        for name, weight in build_t5(flan=flan).named_parameters():
            for coefficient, model in zip(pop[1], models, strict=True):
                own = dict(model.named_parameters())[name]
                parameters[name] += coefficient * (own - weight)
    for row, model in enumerate((models[0], mixed)):
        for task in TASKS[2:4]:
            scores, _ = plain_scores(model, task)
            torch.testing.assert_close(found[task.name][row], scores, rtol=1e-4, atol=1e-4)


def test_what_transformers_leaves_unread_in_an_old_t5_is_left_unread(tmp_path):
    base = save_t5(tmp_path / "base", build_t5())
    old = save_t5(tmp_path / "old", changed(build_t5(), 20))
    tensors = load_file(old / "model.safetensors")
    attention = "decoder.block.0.layer.1.EncDecAttention"
    tensors[f"{attention}.relative_attention_bias.weight"] = torch.ones(32, 4)
    save_file(tensors, old / "model.safetensors", metadata={"format": "pt"})
    LoRAMergeProblem(str(base), [old], TASKS[2:3], dtype=torch.float32)
    tensors[f"{attention}.relative.weight"] = torch.ones(32, 4)
    save_file(tensors, old / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match="1 that the base does not have, as .*relative.weight"):
        LoRAMergeProblem(str(base), [old], TASKS[2:3], dtype=torch.float32)


def test_what_is_not_supported_is_refused_in_a_sentence(adapters):
    regmean = "expected a causal base, found the encoder-decoder 't5'; take \"weights\""
    with pytest.raises(ValueError, match=regmean):
        problem_of(adapters, regmean="prompts")
    chat = [Task("chat", "1", "exact_match", examples(choices=False), chat=True)]
    with pytest.raises(ValueError, match="task 'chat', example '0': chat: expected plain prompts"):
        problem_of(adapters, chat)
    numbers = tuple(Example(str(n), f"how much is {n}", str(n)) for n in range(4))
    together = [SpearmanTask("rank", "1", "spearman", numbers)]
    with pytest.raises(ValueError, match="racing: expected tasks that are scored example by exam"):
        problem_of(adapters, together, racing=Racing())
    with pytest.raises(ValueError, match="'rank': expected a task with derivatives for gradients"):
        problem_of(adapters, together, objectives="gradients")


def test_a_base_whose_passes_depend_on_padding_is_refused(adapters, monkeypatch):
    from transformers.models.t5.modeling_t5 import T5Stack

    forward = T5Stack.forward

    def without_mask(self, **given):
        given["attention_mask"] = None
        return forward(self, **given)

    monkeypatch.setattr(T5Stack, "forward", without_mask)
    with pytest.raises(ValueError, match="base: expected passes that agree .* for padding"):
        problem_of(adapters)


def test_candidates_that_change_each_other_go_into_the_weights(adapters, monkeypatch):
    from evox_evogm.problems.adapters.population import Population

    own = Population.owners_of_rows

    def first_for_all(self, rows, device, *, output=False):
        found = own(self, rows, device, output=output)
        return found if isinstance(found, int) else torch.zeros_like(found)

    monkeypatch.setattr(Population, "owners_of_rows", first_for_all)
    problem = problem_of(adapters)
    assert not problem.capabilities.unmerged
    assert "for two candidates in one batch" in problem.capabilities.notes[-1]


def test_functions_and_racing_see_the_same_answers(adapters):
    def likely(model, split):
        prompts = [example.prompt for example in TASKS[2].examples]
        answers = [example.target for example in TASKS[2].examples]
        lengths = torch.tensor([len(model.tokenizer(answer).input_ids) - 1 for answer in answers])
        return model.log_probabilities(prompts, answers) / lengths

    function, _ = fitness_tasks(for_population(likely), name="likely")
    problem = problem_of(adapters, [TASKS[2], function], mode="unmerged")
    found = problem.score_together(POP)
    torch.testing.assert_close(found["likely"], found["gold"], rtol=1e-4, atol=1e-4)
    raced = problem_of(adapters, [TASKS[2]], racing=Racing((0.4,), 0.5), mode="unmerged")
    scores = raced.evaluate(POP)
    means = found["gold"].mean(1)
    assert int(scores.argmax()) == int(means.argmax())
    torch.testing.assert_close(scores.max(), means.max(), rtol=1e-4, atol=1e-4)


@pytest.mark.lengthy
def test_tasks_of_the_harness_are_refused(adapters, tmp_path):
    write_task(tmp_path / "tasks", "choices", "choices")
    dev, _ = read_lm_eval("choices", include_path=str(tmp_path / "tasks"))
    found = "expected a causal base, found the encoder-decoder 't5'; give its questions as json"
    with pytest.raises(ValueError, match=f"task 'choices': {found}"):
        problem_of(adapters, [dev])


def test_a_trained_lora_is_refused(adapters):
    problem = problem_of(adapters, TASKS[2:3])
    with (
        pytest.raises(
            ValueError, match="trained LoRA: expected a causal base, .*; leave the trial"
        ),
        fresh_adapter(problem.language_model, Training(1e-3, 1)),
    ):
        pass


def test_the_card_and_the_model_of_an_export_are_for_encoder_decoders(adapters, tmp_path):
    from transformers import AutoModelForSeq2SeqLM

    save_t5(tmp_path / "base", build_t5())
    problem = LoRAMergeProblem(
        str(tmp_path / "base"), adapters[:2], TASKS[2:3], dtype=torch.float32, mode="unmerged"
    )
    out = tmp_path / "whole"
    exported = export_full_model(problem, POP[0, :2], out)
    assert exported.serve == f"AutoModelForSeq2SeqLM.from_pretrained({str(out)!r})"
    card = (out / "README.md").read_text()
    assert "AutoModelForSeq2SeqLM" in card and "pipeline_tag: text2text-generation" in card
    loaded = AutoModelForSeq2SeqLM.from_pretrained(out).eval()
    expected, _ = plain_scores(merged_by_peft(adapters, [*POP[0, :2], 0.0]), TASKS[2])
    scores, _ = plain_scores(loaded, TASKS[2])
    torch.testing.assert_close(scores, expected, rtol=1e-4, atol=1e-4)
