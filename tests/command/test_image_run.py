"""Runs on images: adapters and whole models with a head per task, merged, scored and exported."""

import json
import shutil

import pytest
import torch
import yaml
from builders_checkpoints import changed
from builders_images import (
    CLASSES,
    TARGETS,
    build_image_model,
    features_of,
    merge_by_hand,
    write_image_base,
    write_images,
)
from fake_hub import COMMIT, LATER, add_to_cache
from PIL import Image
from safetensors.torch import load_file, save_file

from evox_evogm.command import cli
from evox_evogm.command.sources import saved_commits

pytestmark = pytest.mark.language_model


@pytest.fixture
def images(tmp_path, make_adapter):
    """A folder with a ViT, an expert for each of two tasks, their images and a settings file."""
    write_image_base(tmp_path)
    write_images(tmp_path)
    tasks = []
    for number, (task, classes) in enumerate(CLASSES.items()):
        options = {"target_modules": TARGETS["vit"][number], "task_type": None}
        make_adapter(task, build_image_model(), seed=number, **options)
        torch.manual_seed(number)
        head = {"weight": torch.randn(len(classes), 16), "bias": torch.randn(len(classes))}
        save_file(head, tmp_path / f"{task}.safetensors")
        entry = {"images": f"{task}/dev", "test_images": f"{task}/test"}
        tasks.append({**entry, "head": f"{task}.safetensors"})
    settings = {"base": "base", "experts": "experts", "budget": 9, "pop_size": 3, "tasks": tasks}
    settings |= {"dtype": "float32", "device": "cpu", "contributions": False}
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(settings))
    return tmp_path


def plain_accuracy(model, folder, task):
    """The accuracy of a model on the test images of a task, by transformers and Pillow."""
    from transformers import AutoImageProcessor

    process = AutoImageProcessor.from_pretrained(folder / "base", backend="pil")
    head = load_file(folder / f"{task}.safetensors")
    right = []
    for path in sorted((folder / task / "test").rglob("*.png")):
        pixels = process(images=[Image.open(path)], return_tensors="pt")["pixel_values"]
        logits = features_of(model, pixels) @ head["weight"].T + head["bias"]
        right.append(CLASSES[task][int(logits.argmax())] == path.parent.name)
    return sum(right) / len(right)


def run(folder, *words, out="out"):
    return cli.main(["merge", str(folder / "run.yaml"), *words, "--out", str(folder / out)])


def read(folder, out="out"):
    return json.loads((folder / out / "result.json").read_text())


@pytest.mark.lengthy
def test_scores_of_a_run_are_those_of_plain_transformers_and_its_adapter_is_the_merge(images):
    assert run(images) in (0, 3)
    result = read(images)
    assert {name: task["metric"] for name, task in result["tasks"].items()} == dict.fromkeys(
        CLASSES, "image_accuracy"
    )
    experts = [images / "experts" / name for name in CLASSES]
    merge = [result["coefficients"][name] for name in CLASSES]
    points = {"base": [0, 0], "birds": [1, 0], "boats": [0, 1], "average": [0.5, 0.5]}
    points["SurrogateEvoGM"] = merge
    for row in result["scores"]:
        plain = merge_by_hand(build_image_model(), experts, points[row["name"]])
        for task in CLASSES:
            assert row["test"][task] == pytest.approx(plain_accuracy(plain, images, task))
    assert result["adapter"]["error"] is None
    adapter = images / "out" / "adapter"
    loaded = merge_by_hand(build_image_model(), [adapter], [1.0])
    expected = merge_by_hand(build_image_model(), experts, merge)
    for name, weight in expected.named_parameters():
        torch.testing.assert_close(dict(loaded.named_parameters())[name], weight)
    card = (adapter / "README.md").read_text()
    assert "AutoModelForImageClassification.from_pretrained" in card
    assert "pipeline_tag: image-classification" in card
    assert (images / "out" / "report.html").is_file()


@pytest.mark.slow
def test_whole_models_are_merged_and_exported_with_the_image_processor(images, capsys):
    whole = changed(build_image_model(), 4)
    whole.save_pretrained(images / "experts" / "birds_whole")
    assert run(images) in (0, 3)
    result = read(images)
    assert result["checkpoints"] == ["birds_whole"] and result["adapter"] is None
    (row,) = [row for row in result["scores"] if row["name"] == "birds_whole"]
    for task in CLASSES:
        assert row["test"][task] == pytest.approx(plain_accuracy(whole, images, task))
    capsys.readouterr()
    assert cli.main(["export", str(images / "out")]) == 0
    out = images / "out" / "export-model"
    assert "AutoModelForImageClassification.from_pretrained" in capsys.readouterr().out
    from transformers import AutoImageProcessor, AutoModelForImageClassification

    merged = AutoModelForImageClassification.from_pretrained(out).eval()
    assert AutoImageProcessor.from_pretrained(out, backend="pil").size == {"height": 8, "width": 8}
    for task in CLASSES:
        expected = result["scores"][-1]["test"][task]
        assert plain_accuracy(merged, images, task) == pytest.approx(expected)


@pytest.mark.slow
def test_check_score_confirm_and_a_second_start(images, capsys):
    assert cli.main(["check", str(images / "run.yaml"), "--prompts"]) == 0
    assert "task: birds, image_accuracy, 8 dev and 6 test examples" in capsys.readouterr().out
    words = ["tasks.0.dev=4", "tasks.1.dev=6", "confirm=2", "confirm_examples=3"]
    assert run(images, *words) in (0, 3)
    assert read(images)["confirm"]["examples"] == {"birds": 3, "boats": 3}
    history = (images / "out" / "history.jsonl").read_bytes()
    assert run(images, *words) in (0, 3)
    assert (images / "out" / "history.jsonl").read_bytes() == history
    Image.new("RGB", (9, 11)).save(images / "birds" / "test" / "crow" / "0.png")
    capsys.readouterr()
    assert run(images, *words) == 2
    assert "task birds (test)" in capsys.readouterr().err
    assert cli.main(["score", str(images / "run.yaml"), "base", "birds"]) == 0
    assert "birds" in capsys.readouterr().out


@pytest.mark.lengthy
def test_the_commit_of_a_head_that_no_expert_comes_with_is_written_down(images, hub_cache):
    heads = images / "heads"
    (heads / "birds").mkdir(parents=True)
    shutil.copy(images / "experts" / "birds" / "adapter_config.json", heads / "birds")
    tensors = load_file(images / "birds.safetensors")
    saved = {f"base_model.model.classifier.{name}": tensor for name, tensor in tensors.items()}
    save_file(saved, heads / "birds" / "adapter_model.safetensors")
    add_to_cache(hub_cache, "org/heads", heads)
    assert run(images, "budget=3", "tasks.0.head=org/heads/birds") in (0, 3)
    result = read(images)
    assert result["sources"] == {"head of birds": f"org/heads@{COMMIT}/birds"}
    note = f"from the hub: head of birds org/heads@{COMMIT[:12]}/birds"
    assert note in result["notes"]
    assert saved_commits(images / "out") == {"org/heads": COMMIT}
    # The branch moves on, and the run does not.
    tensors["bias"] += 1
    saved = {f"base_model.model.classifier.{name}": tensor for name, tensor in tensors.items()}
    save_file(saved, heads / "birds" / "adapter_model.safetensors")
    add_to_cache(hub_cache, "org/heads", heads, LATER)
    assert run(images, "budget=6", "tasks.0.head=org/heads/birds") in (0, 3)
    assert read(images)["sources"] == result["sources"]


@pytest.mark.slow
def test_a_run_that_learns_nothing_says_what_usually_causes_it(images, capsys):
    for task, classes in CLASSES.items():  # one class always has the largest logit
        head = {"weight": torch.zeros(len(classes), 16), "bias": torch.eye(len(classes))[0]}
        save_file(head, images / f"{task}.safetensors")
    assert run(images) == 3
    assert "The classes are not in the order of the head's rows" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"test_images": ...}, "task 'birds/dev': expected test_images beside images, found none"),
        ({"head": ...}, "task 'birds/dev': expected head beside images, found none"),
        ({"metric": "exact_match"}, "found the unknown setting 'metric'"),
        ({"head": "none"}, "task 'birds/dev': head: expected a file, a folder or a hub id"),
        ({"classes": ["crow"]}, "found a folder 'duck'"),
    ],
)
def test_settings_that_cannot_be_used_are_refused(images, capsys, change, message):
    path = images / "run.yaml"
    settings = yaml.safe_load(path.read_text())
    entry = {**settings["tasks"][0], **change}
    settings["tasks"][0] = {name: value for name, value in entry.items() if value is not ...}
    path.write_text(yaml.safe_dump(settings))
    assert run(images) == 2
    assert message in capsys.readouterr().err
