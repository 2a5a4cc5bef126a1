"""The setting of twenty image experts: heads as CLIP has them, and the settings on tiny models."""

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from builders import build_tokenizer
from builders_checkpoints import changed
from fake_hub import COMMIT, add_to_cache
from PIL import Image
from safetensors.torch import load_file

from evox_evogm.command import cli
from evox_evogm.command.settings_file import read_settings

PAPER = Path(__file__).parents[2] / "benchmarks" / "examples" / "paper"
CLIP = "openai/clip-vit-base-patch16"
EXPERT = "tanganke/clip-vit-base-patch16_{}"
NAMES = ["1 or 2", "3 or 4", "5 or 6"]
TEMPLATES = [lambda name: f"{name} =", lambda name: f"a {name}"]
SIZES = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1}
SIZES |= {"num_attention_heads": 2}


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("vit_images", PAPER / "vit_images.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def padding_tokenizer():
    tokenizer = build_tokenizer()
    tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


@pytest.fixture(scope="module")
def clip():
    """A tiny random CLIP."""
    from transformers import CLIPConfig, CLIPModel

    tokenizer = build_tokenizer()
    texts = {**SIZES, "vocab_size": len(tokenizer), "max_position_embeddings": 40}
    texts |= {"eos_token_id": tokenizer.eos_token_id, "bos_token_id": tokenizer.bos_token_id}
    images = {**SIZES, "image_size": 8, "patch_size": 4}
    torch.manual_seed(0)
    config = CLIPConfig(text_config=texts, vision_config=images, projection_dim=8)
    return CLIPModel(config).eval()


def made_up(count=12, seed=0):
    """Rows of a data set with three classes."""
    rng = np.random.default_rng(seed)
    rows = []
    for number in range(count):
        image = Image.fromarray(rng.integers(0, 255, (9, 11, 3), dtype=np.uint8))
        rows.append({"image": image, "img": image, "jpg": image})
        rows[-1] |= {"label": number % 3, "fine_label": number % 3, "cls": number % 3}
    return rows


def test_a_head_gives_the_logits_of_clip_up_to_the_length_of_an_image(script, clip):
    tokenizer = padding_tokenizer()
    head = script.make_head(clip, tokenizer, NAMES, TEMPLATES[:1])
    torch.manual_seed(1)
    pixels = torch.randn(4, 3, 8, 8)
    given = tokenizer([f"{name} =" for name in NAMES], padding=True, return_tensors="pt")
    given = {key: given[key] for key in ("input_ids", "attention_mask")}
    with torch.no_grad():
        expected = clip(pixel_values=pixels, **given).logits_per_image
        pooled = clip.vision_model(pixel_values=pixels).pooler_output
        lengths = clip.visual_projection(pooled).norm(dim=1, keepdim=True)
    torch.testing.assert_close(pooled @ head.T / lengths, expected, atol=1e-4, rtol=1e-4)
    averaged = script.make_head(clip, tokenizer, NAMES, TEMPLATES)
    assert averaged.shape == (3, 16) and not torch.allclose(averaged, head)


def test_the_settings_have_an_expert_and_a_task_for_each_data_set(script):
    settings, _ = read_settings(PAPER / "vit_b16_20.yaml")
    tasks = list(script.SOURCES)
    assert len(tasks) == 20 and settings.base == CLIP
    assert settings.experts == {task: EXPERT.format(task) for task in tasks}
    assert [task.name for task in settings.tasks] == tasks
    for task in settings.tasks:
        assert task.images == f"images/{task.name}/dev"
        assert task.test_images == f"images/{task.name}/test"
        assert task.head == f"images/{task.name}/head.safetensors"
    assert (settings.algorithm, settings.pop_size, settings.budget) == ("EvoGM", 40, 320)
    assert script.parse([]).dev == 50


def test_a_second_start_is_refused_while_images_of_the_first_are_there(script, clip, tmp_path):
    args = script.parse(["--dev", "4", "--test", "5", "--out", str(tmp_path)])
    splits = {"dev": made_up(), "test": made_up(seed=1)}
    script.check_free(tmp_path)
    script.write_task("mnist", splits, clip, padding_tokenizer(), NAMES, TEMPLATES, args)
    with pytest.raises(SystemExit, match=r"expected no images yet, found .*mnist.dev; remove"):
        script.main(["--seed", "1", "--out", str(tmp_path)])


@pytest.mark.slow
def test_the_search_of_the_settings_runs_on_tiny_models(script, clip, tmp_path, hub_cache):
    from transformers import CLIPVisionModel
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    clip.save_pretrained(tmp_path / "clip")
    size = {"size": {"shortest_edge": 8}, "crop_size": {"height": 8, "width": 8}}
    processor = CLIPImageProcessorPil(**size)
    processor.save_pretrained(tmp_path / "clip")
    add_to_cache(hub_cache, CLIP, tmp_path / "clip")
    args = script.parse(["--dev", "4", "--test", "5", "--out", str(tmp_path / "images")])
    for seed, task in enumerate(script.SOURCES):
        part = CLIPVisionModel.from_pretrained(tmp_path / "clip")
        changed(part, seed).save_pretrained(tmp_path / task)
        add_to_cache(hub_cache, EXPERT.format(task), tmp_path / task)
        splits = {"dev": made_up(seed=seed), "test": made_up(seed=100 + seed)}
        script.write_task(task, splits, clip, padding_tokenizer(), NAMES, TEMPLATES, args)
    settings = yaml.safe_load((PAPER / "vit_b16_20.yaml").read_text())
    settings |= {"pop_size": 4, "budget": 8, "dtype": "float32", "device": "cpu"}
    settings["search"] = {"n_rounds": 1, "n_iters": 1, "epochs": 2, "hidden_dims": [8]}
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(settings))
    assert cli.main(["merge", str(tmp_path / "run.yaml"), "--out", str(tmp_path / "out")]) in (0, 3)
    result = json.loads((tmp_path / "out" / "result.json").read_text())
    assert list(result["tasks"]) == list(script.SOURCES)
    assert result["sources"]["base"] == f"{CLIP}@{COMMIT}"
    assert result["sources"]["expert mnist"] == f"{EXPERT.format('mnist')}@{COMMIT}"
    # The score of one expert by plain transformers.
    plain = CLIPVisionModel.from_pretrained(tmp_path / "mnist").eval()
    head = load_file(tmp_path / "images" / "mnist" / "head.safetensors")["weight"]
    right = []
    for path in sorted((tmp_path / "images" / "mnist" / "test").rglob("*.png")):
        pixels = processor(images=[Image.open(path)], return_tensors="pt")["pixel_values"]
        with torch.no_grad():
            found = (plain(pixel_values=pixels).pooler_output @ head.T).argmax()
        right.append(int(found) == int(path.parent.name))
    (row,) = [row for row in result["scores"] if row["name"] == "mnist"]
    assert len(right) == 5 and row["test"]["mnist"] == pytest.approx(sum(right) / 5)
    assert cli.main(["export", str(tmp_path / "out")]) == 0
