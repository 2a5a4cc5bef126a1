"""`evogm init` for an image model: settings that `evogm merge` runs, and what it refuses."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from builders_images import CLASSES, TARGETS, build_image_model, write_image_base, write_images
from fake_hub import COMMIT, LATER, add_to_cache
from PIL import Image
from safetensors.torch import load_file, save_file

from evox_evogm.command import cli
from evox_evogm.command.tasks import read_task

pytestmark = pytest.mark.language_model
HEAD_WEIGHT = "base_model.model.classifier.weight"
TASKS = ("--task", "birds", "--task", "boats")


def with_head(count):
    """The image model with a head of its own."""
    torch.manual_seed(count)
    model = build_image_model()
    model.classifier = torch.nn.Linear(16, count)
    return model


@pytest.fixture
def images(tmp_path, make_adapter, monkeypatch):
    """A folder with a ViT, images of two tasks, and an adapter with its head for each."""
    write_image_base(tmp_path)
    write_images(tmp_path)
    for number, (task, classes) in enumerate(CLASSES.items()):
        options = {"target_modules": TARGETS["vit"][number], "task_type": None}
        options["modules_to_save"] = ["classifier"]
        make_adapter(task, with_head(len(classes)), seed=number, **options)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def init(*words):
    return cli.main(["init", "experts", "--base", "base", *words])


def settings_of(folder, name="run.yaml"):
    return yaml.safe_load((folder / name).read_text())


def plain_accuracy(task, classes):
    """The accuracy of an adapter and its head on the test images, by peft and Pillow."""
    from peft import PeftModel
    from transformers import AutoImageProcessor

    process = AutoImageProcessor.from_pretrained("base", backend="pil")
    model = PeftModel.from_pretrained(with_head(len(classes)), f"experts/{task}").eval()
    right = []
    for path in sorted(Path(task, "test").rglob("*.png")):
        pixels = process(images=[Image.open(path)], return_tensors="pt")["pixel_values"]
        with torch.no_grad():
            best = int(model(pixel_values=pixels).logits.argmax())
        right.append(classes[best] == path.parent.name)
    return sum(right) / len(right)


def test_merge_runs_what_init_writes(images, capsys):
    assert init(*TASKS) == 0
    printed = capsys.readouterr().out
    assert "task: boats: 12 dev and 9 test images, 3 classes: brig, dhow, yawl\n" in printed
    settings = settings_of(images)
    assert settings["tasks"] == [
        {"images": f"{task}/dev", "test_images": f"{task}/test", "head": f"experts/{task}"}
        for task in CLASSES
    ]
    assert "regmean" not in settings  # no prompts, which it would read
    words = ["budget=4", "contributions=false"]
    words += ["dtype=float32", "device=cpu"]
    assert cli.main(["merge", "run.yaml", *words, "--out", "out"]) in (0, 3)
    result = json.loads(Path("out", "result.json").read_text())
    assert result["adapter"]["error"] is None
    rows = {row["name"]: row["test"] for row in result["scores"]}
    for task, classes in CLASSES.items():
        assert rows[task][task] == pytest.approx(plain_accuracy(task, classes))


def test_images_may_be_named_in_all_ways(images):
    save_file({"weight": torch.zeros(2, 16)}, "birds/head.safetensors")
    save_file({"weight": torch.zeros(2, 16)}, "other.safetensors")
    for word, head in (
        ("birds", "birds/head.safetensors"),  # before that of the expert
        ("birds/dev", "birds/head.safetensors"),
        ("birds/dev,birds/test", "birds/head.safetensors"),
        ("birds,other.safetensors", "other.safetensors"),
        ("birds/dev,birds/test,experts/birds", "experts/birds"),
    ):
        assert init("--task", word, "--replace", "-o", "sub/mine.yaml") == 0
        (task,) = settings_of(images, "sub/mine.yaml")["tasks"]
        expected = {"images": "../birds/dev", "test_images": "../birds/test"}
        assert task == {**expected, "head": f"../{head}"}, word


def test_arrays_are_tasks_and_a_few_of_many_images_are_taken(images):
    for split, count in (("dev", 60), ("test", 7)):
        pixels, labels = np.zeros((count, 9, 9), dtype=np.uint8), np.zeros(count, dtype=int)
        np.savez(f"birds_{split}.npz", images=pixels, labels=labels)
    assert init("--task", "birds_dev.npz") == 0
    save_file({"weight": torch.zeros(2, 16)}, "head.safetensors")  # of one of several tasks here
    assert init("--task", "birds_dev.npz", "--replace") == 0
    files = {"images": "birds_dev.npz", "test_images": "birds_test.npz"}
    expected = {**files, "head": "experts/birds", "name": "birds", "dev": 50}
    assert settings_of(images)["tasks"] == [expected]
    assert (
        "  # 50 of 60 dev and 7 test images, 2 classes by number\n" in Path("run.yaml").read_text()
    )


def test_the_base_is_the_one_that_the_adapters_name(images, edit_config):
    for task in CLASSES:
        edit_config(images / "experts" / task, base_model_name_or_path=str(images / "base"))
    assert cli.main(["init", "experts", *TASKS]) == 0
    assert settings_of(images)["base"] == "base"


def test_a_base_that_is_not_here_is_an_image_model_if_the_tasks_are_images(images, capsys):
    assert cli.main(["init", "experts", "--base", "owner/vit", *TASKS]) == 0
    assert settings_of(images)["base"] == "owner/vit"
    expected = "note: base: expected a transformers folder or hub id, found 'owner/vit': neither a "
    assert expected in capsys.readouterr().out


def test_a_whole_model_has_the_head_and_the_order_of_its_classes(images, capsys):
    shutil.rmtree("experts/boats")
    model = with_head(3)
    model.config.id2label = {0: "yawl", 1: "brig", 2: "dhow"}
    model.save_pretrained("experts/boats")
    assert init(*TASKS) == 0
    assert "3 classes: yawl, brig, dhow\n" in capsys.readouterr().out
    assert settings_of(images)["tasks"][1]["head"] == "experts/boats"


def test_a_base_without_an_image_processor_is_noted(images, capsys):
    Path("base/preprocessor_config.json").unlink()
    assert init(*TASKS) == 0
    note = "base has no preprocessor_config.json: name a folder or hub id with one as processor of"
    assert f"note: {note}" in capsys.readouterr().out
    text = Path("run.yaml").read_text()
    assert f"tasks:\n  # {note} each task.\n" in text
    settings = yaml.safe_load(text.replace("# processor: owner/name", "processor: owner/name"))
    assert [task["processor"] for task in settings["tasks"]] == 2 * ["owner/name"]
    assert [sorted(task) for task in settings_of(images)["tasks"]] == [
        ["head", "images", "test_images"]
    ] * 2


def test_heads_of_experts_on_the_hub_are_named_by_their_hub_ids(images, hub_cache):
    for task in CLASSES:
        add_to_cache(hub_cache, f"org/{task}", images / "experts" / task, revision="v1")
    assert cli.main(["init", "org/birds@v1", "org/boats@v1", "--base", "base", *TASKS]) == 0
    settings = settings_of(images)
    assert settings["experts"] == {task: f"org/{task}@v1" for task in CLASSES}
    assert [task["head"] for task in settings["tasks"]] == list(settings["experts"].values())
    dev, _ = read_task(settings["tasks"][0], images, "base")
    weight = load_file("experts/birds/adapter_model.safetensors")[HEAD_WEIGHT]
    assert torch.equal(dev.examples[0].head.weight, weight)


def test_a_head_of_the_hub_stays_at_the_commit_of_its_run(images, hub_cache):
    add_to_cache(hub_cache, "org/birds", images / "experts" / "birds", COMMIT)
    save_file({HEAD_WEIGHT: torch.zeros(2, 16)}, "experts/birds/adapter_model.safetensors")
    add_to_cache(hub_cache, "org/birds", images / "experts" / "birds", LATER)
    entry = {"images": "birds/dev", "test_images": "birds/test", "head": "org/birds"}
    now, _ = read_task(entry, images, "base")
    then, _ = read_task(entry, images, "base", {"org/birds": COMMIT})
    assert not now.examples[0].head.weight.any()
    assert then.examples[0].head.weight.any()


def test_a_head_that_is_nowhere_is_named_before_anything_is_read(images, capsys):
    assert init(*TASKS) == 0
    capsys.readouterr()
    assert cli.main(["check", "run.yaml", "tasks.0.head=experts/brids"]) == 2
    expected = "task 'birds/dev': head: expected a file, a folder or a hub id, found none at "
    place = images / "experts" / "brids"
    near = f"{place}; did you mean '{images / 'experts' / 'birds'}'?"
    assert capsys.readouterr().err == f"evogm: {expected}{near}\n"


def test_images_heads_and_processors_may_be_in_the_home_folder(images, monkeypatch):
    home = images / "home"
    home.mkdir()
    for name in ("birds", "experts", "base"):
        Path(name).rename(home / name)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("USERPROFILE", str(home))
    entry = {"images": "~/birds/dev", "test_images": "~/birds/test", "head": "~/experts/birds"}
    dev, test = read_task({**entry, "processor": "~/base"}, Path("/settings"))
    assert (len(dev.examples), len(test.examples), dev.name) == (8, 6, "birds")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "task: expected images for the image model 'base' (vit), found none; give --task as"),
        (["--task", "birds", "--task", "dev.jsonl,dev.jsonl"], "found dev.jsonl,dev.jsonl; give"),
        (["--task", "birds/dev/crow"], "found birds/dev/crow without images of dev and test"),
        (["--task", "birds/dev,birds/tst"], "file or folder birds/tst; did you mean 'birds/test'?"),
        (["--task", "gone_dev.npz"], "found no file or folder gone_dev.npz"),
        (["--task", "birds,boats,birds,boats"], "found 'birds,boats,birds,boats'"),
        (["--task", "fish"], "task 'fish': expected a head, which is head.safetensors beside"),
        (["--task", "fish,experts/x.safetensors"], "found no file or folder experts/x.safetensors"),
        (["--task", "fish/dev,fish/test,experts/boats"], "of the 3 rows of the head, found 2"),
        (["--task", "birds/dev,notes.txt"], "task 'birds': expected a folder with a folder of"),
    ],
)
def test_what_cannot_be_merged_is_refused_in_one_sentence(images, capsys, words, message):
    shutil.copytree("birds", "fish")
    Path("dev.jsonl").write_text("{}\n")
    Path("notes.txt").write_text("no images\n")
    assert init(*words) == 2
    error = capsys.readouterr().err
    assert message in error and len(error.splitlines()) == 1
    assert not Path("run.yaml").exists()


def test_an_adapter_without_its_head_says_how_to_train_it(images, make_adapter, capsys):
    options = {"target_modules": ["q_proj"], "task_type": None}
    make_adapter("birds", build_image_model(), **options)
    assert init(*TASKS) == 2
    assert 'train the adapter with modules_to_save=["classifier"]' in capsys.readouterr().err
    make_adapter("boats", build_image_model(), **{**options, "target_modules": ["classifier"]})
    assert init(*TASKS) == 2
    assert "expected no factors of the classifier" in capsys.readouterr().err


def test_images_for_a_base_of_texts_are_refused(project, monkeypatch, capsys):
    monkeypatch.chdir(project)
    write_images(project)
    assert init("--task", "birds", "--replace") == 2
    expected = "task: expected texts for the base 'base' (llama), found images: birds\n"
    assert expected in capsys.readouterr().err
