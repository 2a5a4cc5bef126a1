"""The benchmark on images: files that are fetched, draws of tasks, and a small run."""

import gzip

import pytest
import torch

from benchmarks.images.__main__ import compare, table
from benchmarks.images.fetch import (
    LAYERS,
    MEAN,
    STD,
    WIDTH,
    Images,
    check_sha256,
    name_weights,
    pixel_values,
    read_idx,
)
from benchmarks.images.suite import Sizes, draw, make_suite


def build_images(count=400):
    """Images whose first pixel is 20 times their class, and whose others are their number."""
    classes = torch.arange(count) % 10
    pixels = (torch.arange(count) % 256)[:, None, None].expand(-1, 28, 28).clone().byte()
    pixels[:, :14] = 20 * classes[:, None, None].byte()
    return Images(pixels, classes)


def test_weights_of_the_graph_get_the_names_of_the_checkpoint():
    tensors = {"backbone.layernorm.bias": torch.ones(3), "decoder.bn1.bias": torch.ones(2)}
    for number in range(6 * LAYERS):
        tensors[f"onnx::MatMul_{2000 + 3 * number}"] = torch.full((2, 3), float(number))
    tensors["onnx::Concat_1"] = torch.zeros(1, 1, WIDTH)
    tensors["onnx::Reshape_2"] = torch.ones(1, 4, WIDTH)
    named = name_weights(tensors)
    assert torch.equal(named["layernorm.bias"], torch.ones(3))
    assert "decoder.bn1.bias" not in named
    names = ["attention.attention.key", "attention.attention.value", "attention.attention.query"]
    names += ["attention.output.dense", "mlp.fc1", "mlp.fc2"]
    for place, name in enumerate(names):  # of layer 3
        weight = named[f"encoder.layer.3.{name}.weight"]
        assert torch.equal(weight, torch.full((3, 2), 18.0 + place))
    positions = named["embeddings.position_embeddings"]
    assert positions.shape == (1, 5, WIDTH) and positions[0, :, 0].tolist() == [0, 1, 1, 1, 1]
    del tensors["onnx::MatMul_2000"]
    with pytest.raises(ValueError, match="expected 72 products, found 71"):
        name_weights(tensors)


def test_files_are_read_behind_their_headers(tmp_path):
    with gzip.open(tmp_path / "labels.gz", "wb") as file:
        file.write(bytes(8) + bytes([3, 1, 4]))
    assert read_idx(tmp_path / "labels.gz", 8).tolist() == [3, 1, 4]
    with pytest.raises(ValueError, match="file: expected SHA-256 00, found ba7816bf"):
        check_sha256("file", b"abc", "00")


def test_pixels_are_normalized_as_those_of_imagenet():
    values = pixel_values(
        torch.tensor([0, 255], dtype=torch.uint8)[:, None, None].expand(2, 28, 28), 14
    )
    assert values.shape == (2, 3, 14, 14)
    for channel in range(3):
        dark, light = (-MEAN[channel] / STD[channel], (1 - MEAN[channel]) / STD[channel])
        assert values[0, channel].mean() == pytest.approx(dark, abs=1e-5)
        assert values[1, channel].mean() == pytest.approx(light, abs=1e-5)


def test_a_task_tells_three_classes_apart_and_its_draws_share_no_image():
    parts = draw(build_images(), 8, (20, 30), 28, seed=0)
    assert [len(part.labels) for part in parts] == [20, 30]
    for part in parts:
        top = (part.pixels[:, 0, 0, 0] * STD[0] + MEAN[0]) * 255 / 20  # the class
        expected = torch.tensor([8.0, 9.0, 1.0])[part.labels]  # 8, 9 and 11 modulo ten
        torch.testing.assert_close(top, expected, atol=1e-3, rtol=1e-3)
    images = torch.cat([part.pixels for part in parts]).flatten(1)
    assert len(images.unique(dim=0)) == 50


@pytest.mark.slow
def test_a_small_run(tmp_path):
    from transformers import Dinov2Config, Dinov2Model

    torch.manual_seed(0)
    config = Dinov2Config(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, image_size=28, patch_size=14
    )
    model = Dinov2Model(config).eval().requires_grad_(False)
    data = {"train": build_images(), "t10k": build_images()}
    sizes = Sizes(pixels=28, train=12, dev=4, test=6, steps=2)
    for n in (10, 20):
        suite = make_suite(model, data, tmp_path, n, sizes, seed=0)
        assert len(suite.experts) == n
        assert [len(task.examples) for task in suite.dev] == [4] * 10
        rows = compare(model, suite, 10, 0, ["CMA-ES", "SurrogateEvoGM"])
        assert len(table(rows)) == 2 + 5
        assert all(len(row["coefficients"]) == n for row in rows)
        assert rows[3]["dev"] >= max(rows[0]["dev"], 0.2)
        assert rows[3]["evaluations"] >= 10
    with pytest.raises(ValueError, match="expected experts made with"):
        make_suite(model, data, tmp_path, 10, sizes._replace(steps=3), seed=0)
