"""Whole image models as experts: merges are sums of weights, whatever classifiers they have."""

import copy

import pytest
import torch
from builders_checkpoints import changed
from builders_images import build_image_model, features_of, merge_by_hand

from evox_evogm.problems import LoRAMergeProblem, image_task

pytestmark = pytest.mark.language_model
POP = torch.tensor([[0.6, -0.4], [0.0, 0.0], [1.0, 0.0]])


def draw(count=5, seed=0):
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(count, 3, 8, 8, generator=generator)
    return images, torch.randint(3, (count,), generator=generator)


def head_of(width, classes=3):
    torch.manual_seed(5)
    return torch.nn.Linear(width, classes)


def summed(models, base, coefficients):
    """The base plus the sum of weighted differences, without the classifiers."""
    merged = copy.deepcopy(base)
    own = dict(merged.named_parameters())
    for coefficient, model in zip(coefficients.tolist(), models, strict=True):
        for name, weight in model.named_parameters():
            if not name.startswith("classifier."):
                start = dict(base.named_parameters())[name]
                own[name].data += coefficient * (weight.data - start.data)
    return merged


@pytest.mark.parametrize("architecture", ["vit", pytest.param("convnext", marks=pytest.mark.slow)])
def test_scores_are_those_of_summed_weights(tmp_path, architecture):
    base = build_image_model(architecture)
    models = [changed(build_image_model(architecture), seed) for seed in range(2)]
    width = features_of(base, draw(1)[0]).shape[1]
    models[0].classifier = head_of(width, 7)  # each has its own, for its own classes
    models[0].config.num_labels = 7
    for number, model in enumerate(models):
        model.save_pretrained(tmp_path / str(number))
    images, labels = draw()
    head = head_of(width)
    task = image_task("birds", images, labels, head)
    experts = [tmp_path / "0", tmp_path / "1"]
    problem = LoRAMergeProblem(base, experts, [task], objectives="outcomes")
    assert problem.modes == {}
    found = problem.evaluate(POP)
    assert problem.modes == {"birds": "merged"}
    with torch.no_grad():
        for row, point in enumerate(POP):
            logits = head(features_of(summed(models, base, point), images))
            right = logits.gather(1, labels[:, None])[:, 0]
            others = logits.scatter(1, labels[:, None], -torch.inf).max(1).values
            torch.testing.assert_close(found[row, 1:], right - others, atol=2e-5, rtol=1e-4)


def test_of_a_model_of_images_and_texts_the_part_for_images_is_the_base(tmp_path):
    from transformers import CLIPConfig, CLIPModel, CLIPVisionModel

    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2}
    sizes |= {"num_attention_heads": 2}
    texts = {**sizes, "vocab_size": 20, "eos_token_id": 2, "bos_token_id": 1}
    images = {**sizes, "image_size": 8, "patch_size": 4}
    torch.manual_seed(0)
    config = CLIPConfig(text_config=texts, vision_config=images, projection_dim=8)
    CLIPModel(config).save_pretrained(tmp_path / "clip")
    part = CLIPVisionModel.from_pretrained(tmp_path / "clip")
    changed(part, 1).save_pretrained(tmp_path / "expert")
    pixels, labels = draw()
    task = image_task("birds", pixels, labels, head_of(16))
    problem = LoRAMergeProblem(
        str(tmp_path / "clip"),
        [tmp_path / "expert"],
        [task],
        objectives="outcomes",
        dtype=torch.float32,
    )
    assert type(problem.language_model.model) is CLIPVisionModel
    found = problem.evaluate(torch.ones(1, 1))[0, 1:]
    plain = CLIPVisionModel.from_pretrained(tmp_path / "expert").eval()
    with torch.no_grad():
        logits = task.head.logits(plain(pixel_values=pixels).pooler_output)
    right = logits.gather(1, labels[:, None])[:, 0]
    others = logits.scatter(1, labels[:, None], -torch.inf).max(1).values
    torch.testing.assert_close(found, right - others, atol=1e-5, rtol=1e-4)


@pytest.mark.slow
def test_adapters_and_whole_models_are_merged_together(tmp_path, make_adapter):
    base = build_image_model()
    whole = changed(build_image_model(), 0)
    whole.save_pretrained(tmp_path / "whole")
    lora = make_adapter("lora", build_image_model(), task_type=None)
    images, labels = draw()
    task = image_task("birds", images, labels, head_of(16))
    problem = LoRAMergeProblem(base, [tmp_path / "whole", lora], [task], objectives="outcomes")
    both = problem.evaluate(POP)[0, 1:]
    merged = merge_by_hand(summed([whole], base, POP[0, :1]), [lora], POP[0, 1:])
    with torch.no_grad():
        logits = task.head.logits(features_of(merged, images))
    right = logits.gather(1, labels[:, None])[:, 0]
    others = logits.scatter(1, labels[:, None], -torch.inf).max(1).values
    torch.testing.assert_close(both, right - others, atol=2e-5, rtol=1e-4)
