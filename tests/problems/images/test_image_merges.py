"""Merges of image experts: scores, margins and gradients are those of transformers and peft."""

import copy

import pytest
import torch
from builders_images import TARGETS, build_image_model, features_of, merge_by_hand
from safetensors.torch import load_file, save_file

from evox_evogm.problems import LoRAMergeProblem, Racing, fitness_tasks, image_task
from evox_evogm.problems.tasks.task import Example, Task

pytestmark = pytest.mark.language_model
POP = torch.tensor([[0.6, -0.4], [0.0, 0.0], [1.0, 0.5]])


@pytest.fixture
def experts(make_adapter):
    """A function that writes two adapters of a model as a trainer of classifiers does."""

    def make(architecture="vit", **changes):
        folders = []
        for index, targets in enumerate(TARGETS[architecture]):
            model = build_image_model(architecture)
            settings = {"r": 2 + index, "lora_alpha": 4, "target_modules": targets}
            settings |= {"task_type": None, **changes}
            if hasattr(model, "classifier"):
                settings["modules_to_save"] = ["classifier"]
                torch.manual_seed(100 + index)
                torch.nn.init.normal_(model.classifier.weight)
            folders.append(make_adapter(f"{architecture}_{index}", model, seed=index, **settings))
        return folders

    return make


def draw(count, seed=0):
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(count, 3, 8, 8, generator=generator)
    return images, torch.randint(3, (count,), generator=generator)


def draw_head(width, classes, seed=5):
    torch.manual_seed(seed)
    return torch.nn.Linear(width, classes)


def tasks_of(width, count=5):
    """Two tasks with heads for different numbers of classes."""
    first = image_task("first", *draw(count), draw_head(width, 3))
    return [first, image_task("second", *draw(count + 2, seed=1), draw_head(width, 7, seed=6))]


def plain_margins(model, task):
    """The logit of the right class less the largest other one, image after image."""
    images = torch.stack([example.image for example in task.examples])
    logits = features_of(model, images) @ task.head.weight.T + task.head.bias
    margins = []
    for row, example in zip(logits, task.examples, strict=True):
        others = [float(value) for place, value in enumerate(row) if place != example.label]
        margins.append(float(row[example.label]) - max(others))
    return torch.tensor(margins)


def width_of(architecture):
    return features_of(build_image_model(architecture), draw(1)[0]).shape[1]


@pytest.mark.parametrize(
    ("architecture", "mode"),
    [
        ("vit", "unmerged"),
        ("vit", "merged"),
        ("vit_alone", "unmerged"),
        ("dinov2", "merged"),
        ("swin", "unmerged"),  # windows of an image are rows of their own
        ("convnext", "unmerged"),
    ],
)
def test_scores_are_those_of_merged_weights(experts, architecture, mode):
    folders = experts(architecture)
    model = build_image_model(architecture)
    before = copy.deepcopy(model.state_dict())
    tasks = tasks_of(width_of(architecture))
    problem = LoRAMergeProblem(model, folders, tasks, mode=mode, objectives="outcomes")
    fitness = problem.evaluate(POP)
    for row, point in enumerate(POP):
        plain = merge_by_hand(build_image_model(architecture), folders, point)
        margins = [plain_margins(plain, task) for task in tasks]
        torch.testing.assert_close(fitness[row, 1:], torch.cat(margins), atol=2e-4, rtol=2e-4)
        accuracies = [(margin > 0).float().mean() for margin in margins]
        assert float(fitness[row, 0]) == pytest.approx(float(sum(accuracies)) / 2)
    assert fitness[:, 0].unique().numel() > 1
    assert problem.modes == {"first": mode, "second": mode}
    after = model.state_dict()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())


def test_an_expert_alone_is_the_adapter_with_its_own_head_as_peft_loads_it(experts):
    from peft import PeftModel

    folders = experts()
    images, labels = draw(6)
    tasks = [image_task(f"of_{index}", images, labels, folders[index]) for index in range(2)]
    problem = LoRAMergeProblem(build_image_model(), folders, tasks)
    scores = problem.score_together(torch.eye(2))
    for index in range(2):
        plain = PeftModel.from_pretrained(build_image_model(), folders[index]).eval()
        with torch.no_grad():
            found = [plain(pixel_values=image[None]).logits.argmax() for image in images]
        expected = (torch.stack(found) == labels).float()
        assert scores[f"of_{index}"][index].tolist() == expected.tolist()


def test_a_population_in_shared_batches_equals_merges_one_by_one(experts):
    folders = experts()
    tasks = tasks_of(16)
    problem = LoRAMergeProblem(build_image_model(), folders, tasks, mode="unmerged")
    sizes = []
    forward = problem.language_model.forward.run_model

    def record(given):
        sizes.append(len(given["pixel_values"]))
        return forward(given)

    problem.language_model.forward.run_model = record
    margins = {}
    together = problem.score_together(POP, margins=margins)
    assert sizes == [36]  # three merges with 5 and 7 images: one pass
    for row, point in enumerate(POP):
        alone = {}
        scores = problem.score_together(point[None], margins=alone)
        for task in tasks:
            torch.testing.assert_close(margins[task.name][row], alone[task.name][0])
            assert together[task.name][row].tolist() == scores[task.name][0].tolist()


def test_small_batches_give_the_same(experts):
    folders = experts()
    tasks = tasks_of(16)
    whole = LoRAMergeProblem(build_image_model(), folders, tasks, objectives="outcomes")
    small = LoRAMergeProblem(
        build_image_model(), folders, tasks, objectives="outcomes", batch_tokens=40
    )
    assert small.language_model.images_of_pass((3, 8, 8)) == 2
    torch.testing.assert_close(small.evaluate(POP), whole.evaluate(POP))


def test_gradients_are_those_of_finite_differences(experts):
    folders = experts()
    task = image_task("one", *draw(4), draw_head(16, 3))
    problem = LoRAMergeProblem(build_image_model(), folders, [task], objectives="gradients")
    assert problem.evaluate(POP[:1]).shape == (1, 1 + 4 + 2)
    found = problem.scorer.differentiate(POP[:1], [task]).derivatives["one"][0]  # (4, 2)

    def log_odds(point):
        plain = merge_by_hand(build_image_model(), folders, point).double()
        images = torch.stack([example.image for example in task.examples]).double()
        head = task.head
        logits = features_of(plain, images) @ head.weight.double().T + head.bias.double()
        odds = torch.logit(logits.softmax(-1))
        labels = [example.label for example in task.examples]
        return odds[range(4), labels]

    for place in range(2):
        step = torch.zeros(2)
        step[place] = 1e-3
        expected = (log_odds(POP[0] + step) - log_odds(POP[0] - step)) / 2e-3
        torch.testing.assert_close(found[:, place].double(), expected, atol=5e-3, rtol=5e-3)


def test_the_export_is_an_adapter_that_plain_peft_loads(experts, tmp_path):
    from peft import PeftModel

    folders = experts()
    (task,) = tasks_of(16)[:1]
    problem = LoRAMergeProblem(build_image_model(), folders, [task])
    assert problem.export(POP[0], tmp_path / "merge") < 1e-5
    plain = PeftModel.from_pretrained(build_image_model(), tmp_path / "merge").eval()
    merged = merge_by_hand(build_image_model(), folders, POP[0])
    images = draw(3)[0]
    with torch.no_grad():
        found = plain(pixel_values=images).logits
        torch.testing.assert_close(found, merged(pixel_values=images).logits, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("architecture", ["vit", "vit_alone"])
def test_a_folder_is_loaded_as_the_experts_were_trained(experts, tmp_path, architecture):
    folders = experts(architecture)
    backbone = build_image_model(architecture)
    backbone = getattr(backbone, "vit", backbone)
    backbone.save_pretrained(tmp_path / "base")  # a backbone, as most bases on the hub are
    task = image_task("one", *draw(5), draw_head(16, 3))
    problem = LoRAMergeProblem(
        tmp_path / "base", folders, [task], dtype=torch.float32, objectives="outcomes"
    )
    assert hasattr(problem.language_model.model, "classifier") == (architecture == "vit")
    if architecture == "vit":  # its pooler was not saved with the classifier's model
        plain = merge_by_hand(build_image_model(architecture), folders, POP[0])
        torch.testing.assert_close(
            problem.evaluate(POP[:1])[0, 1:], plain_margins(plain, task), atol=2e-4, rtol=2e-4
        )


def test_racing_groups_cache_and_functions_work_as_with_texts(experts):
    folders = experts()

    def spread(merge):
        return float(merge.model(pixel_values=draw(1)[0]).logits.std())

    function, _ = fitness_tasks(spread)
    tasks = tasks_of(16, count=20)
    problem = LoRAMergeProblem(build_image_model(), folders, [*tasks, function], groups="layer")
    assert problem.groups.names == ("vit.layers.0", "vit.layers.1")
    first = problem.evaluate(problem.groups.expand(POP))
    assert problem.budget_used == 3
    assert problem.evaluate(problem.groups.expand(POP)).tolist() == first.tolist()
    plain = merge_by_hand(build_image_model(), folders, POP[0])
    expected = float(plain(pixel_values=draw(1)[0]).logits.std())
    spreads = problem.score_tasks(problem.groups.expand(POP[0]), [function])["spread"]
    assert float(spreads[0]) == pytest.approx(expected, rel=1e-4)
    raced = LoRAMergeProblem(build_image_model(), folders, tasks, racing=Racing())
    assert raced.evaluate(POP).isfinite().all()


def test_a_merge_without_finite_features_fails_alone(experts, edit_tensors):
    folders = experts()
    problem = LoRAMergeProblem(build_image_model(), folders, tasks_of(16))
    fitness = problem.evaluate(torch.tensor([[0.5, 0.5], [1e30, 1e30]]))
    assert fitness[0].isfinite() and fitness[1] == -torch.inf


def test_images_that_change_each_other_get_passes_of_their_own(experts):
    folders = experts()
    task = image_task("one", *draw(5), draw_head(16, 3))

    def build():
        model = build_image_model()
        model.vit.embeddings.register_forward_hook(lambda *all: all[2] - all[2].mean(0) / 2)
        return model

    problem = LoRAMergeProblem(build(), folders, [task], objectives="outcomes")
    assert problem.capabilities.switched_off == ["batch_rows"]
    plain = merge_by_hand(build(), folders, POP[0])
    torch.testing.assert_close(
        problem.evaluate(POP[:1])[0, 1:], plain_margins(plain, task), atol=2e-4, rtol=2e-4
    )


def test_modes_are_chosen_by_counting(experts, caplog):
    folders = experts()
    # A token in two layers and the classifier of 4 x 16. Experts: rank 2 in q and v, rank 3 in fc1
    # and o, in two layers. An image has 17 tokens.
    base = 2 * (4 * 16 * 16 + 2 * 16 * 32) + 64
    in_hooks = 2 * (2 * 2 * 32 + 3 * 48 + 3 * 32)
    in_weights = 2 * (2 * 2 * 256 + 3 * 512 + 3 * 256)
    for images, expected in ((2, "unmerged"), (600, "merged")):
        task = image_task("one", *draw(images), draw_head(16, 3))
        problem = LoRAMergeProblem(build_image_model(), folders, [task])
        passes = -(-images // 120)  # of 2,048 tokens
        together = 4 * images * 17 * (base + in_hooks) + -(-4 * images // 120) * 128 * base
        apart = 4 * (images * 17 * base + passes * 128 * base + in_weights)
        assert ("merged" if apart < together else "unmerged") == expected
        with caplog.at_level("INFO"):
            problem.scorer.choose_modes([task], 4)
        assert problem.modes == {"one": expected}
        assert f"unmerged {together:.3g}, merged {apart:.3g}" in caplog.text


def write_head(folder, tensors):
    path = folder / "head.safetensors"
    save_file(tensors, path)
    return path


def test_heads_come_from_layers_tensors_files_and_folders(experts, tmp_path):
    folder = experts()[0]
    saved = load_file(folder / "adapter_model.safetensors")
    weight = saved["base_model.model.classifier.weight"]
    bias = saved["base_model.model.classifier.bias"]
    layer = torch.nn.Linear(16, 4)
    layer.load_state_dict({"weight": weight, "bias": bias})
    whole = build_image_model()
    whole.classifier = layer
    whole.save_pretrained(tmp_path / "whole")
    alone = write_head(tmp_path, {"weight": weight, "bias": bias})
    for source in (layer, folder, tmp_path / "whole", alone, str(alone)):
        head = image_task("one", *draw(2), source).head
        assert torch.equal(head.weight, weight) and torch.equal(head.bias, bias)
    head = image_task("one", *draw(2), weight).head
    assert torch.equal(head.weight, weight) and not head.bias.any()


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"images": torch.zeros(3, 8, 8)}, "found \\(3, 8, 8\\) in torch.float32"),
        ({"images": torch.zeros(3, 3, 8, 8, dtype=torch.uint8)}, "torch.uint8"),
        ({"images": torch.full((3, 3, 8, 8), torch.nan)}, "expected finite pixel values"),
        ({"labels": [0, 1]}, "expected a label for each of 3 images, found 2"),
        ({"labels": [0, 1, 4]}, "labels from 0 to 3, .* found 4 of image 2"),
        ({"head": torch.zeros(4)}, "a row for each of at least two classes in the tensor"),
        ({"head": "nowhere"}, "found none at nowhere"),
        ({"head": 3}, "expected a linear layer, .* found int"),
    ],
)
def test_what_is_no_task_is_refused(change, sentence):
    given = {"images": draw(3)[0], "labels": [0, 1, 2], "head": torch.zeros(4, 16), **change}
    with pytest.raises(ValueError, match=sentence):
        image_task("one", **given)


def test_what_does_not_fit_is_refused(experts, make_adapter, tokenizer, model, tmp_path):
    folders = experts()
    tasks = tasks_of(16)
    vit = build_image_model()
    text = Task("text", "1", "exact_match", (Example("0", "a", "b"),))
    with pytest.raises(ValueError, match=r"found images \(first, second\) and texts \(text\)"):
        LoRAMergeProblem(vit, folders, [*tasks, text])
    with pytest.raises(ValueError, match="each of the 16 features of the base, found 8"):
        LoRAMergeProblem(vit, folders, [image_task("one", *draw(2), torch.ones(4, 8))])
    with pytest.raises(ValueError, match="expected a transformers model of images"):
        LoRAMergeProblem(model, folders, tasks)
    with pytest.raises(ValueError, match='expected None or "weights" with tasks of images'):
        LoRAMergeProblem(vit, folders, tasks, regmean="prompts")
    vit.save_pretrained(tmp_path / "whole")
    with pytest.raises(ValueError, match="expected a model that differs from the base, found"):
        LoRAMergeProblem(vit, [*folders, tmp_path / "whole"], tasks)
    on_head = make_adapter("head", vit, target_modules=["classifier"], task_type=None)
    with pytest.raises(ValueError, match="expected no factors of the classifier"):
        LoRAMergeProblem(vit, [on_head], tasks)
    norms = make_adapter(
        "norms",
        vit,
        target_modules=["q_proj"],
        modules_to_save=["classifier", "layernorm"],
        task_type=None,
    )
    with pytest.raises(ValueError, match="found modules_to_save"):
        LoRAMergeProblem(vit, [norms], tasks)
    with pytest.raises(ValueError, match="found modules_to_save"):  # heads of texts are refused
        LoRAMergeProblem(model, folders, [text], tokenizer=tokenizer)


def test_regmean_by_weights_is_exact_for_one_expert(experts):
    folders = experts()[:1]
    tasks = tasks_of(16)
    problem = LoRAMergeProblem(
        build_image_model(), folders, tasks, regmean="weights", objectives="outcomes"
    )
    plain = merge_by_hand(build_image_model(), folders, [1.0])
    found = problem.evaluate(torch.ones(1, 1))[0, 1:]
    margins = torch.cat([plain_margins(plain, task) for task in tasks])
    torch.testing.assert_close(found, margins, atol=1e-3, rtol=1e-3)
