"""Tasks of images from folders and arrays: pixels, labels and order, and what is refused."""

import io
import json
import zlib

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from evox_evogm.problems import read_images


class Shrink:
    """An image processor that makes images of 2 x 2 pixels between 0 and 1."""

    def __call__(self, images, return_tensors):
        pixels = [np.asarray(image.resize((2, 2))).transpose(2, 0, 1) / 255 for image in images]
        return {"pixel_values": torch.tensor(np.stack(pixels))}


@pytest.fixture
def folder(tmp_path):
    """Dev and test images of the classes cat, dog and emu, each of one colour, and a head."""
    colours = {"cat": (255, 0, 0), "dog": (0, 255, 0), "emu": (0, 0, 255)}
    for split, count in (("dev", 4), ("test", 2)):
        for name, colour in colours.items():
            (tmp_path / "pets" / split / name / "more").mkdir(parents=True)
            for number in range(count):
                place = "more/" if number else ""
                path = tmp_path / "pets" / split / name / f"{place}{number}.png"
                Image.new("RGB", (3, 5), colour).save(path)
    (tmp_path / "pets" / "dev" / "cat" / "notes.txt").write_text("no image")
    save_file({"weight": torch.eye(3)}, tmp_path / "head.safetensors")
    return tmp_path


def read(folder, **changes):
    given = {"head": folder / "head.safetensors", "processor": Shrink(), **changes}
    return read_images(folder / "pets" / "dev", folder / "pets" / "test", **given)


def test_folders_are_classes_in_alphabetical_order(folder):
    dev, test = read(folder)
    assert (dev.name, len(dev.examples), len(test.examples)) == ("pets", 12, 6)
    for task, split in ((dev, "dev"), (test, "test")):
        for example in task.examples:
            _, name, *_ = example.id.split("/")
            assert example.id.startswith(f"{split}/") and example.id.endswith(".png")
            assert example.label == ["cat", "dog", "emu"].index(name)
            expected = torch.zeros(3, 2, 2)
            expected[example.label] = 1  # red, green or blue
            assert torch.equal(example.image, expected)
    assert dev.sha256 != test.sha256


def test_the_first_images_are_of_all_classes_and_always_the_same(folder):
    whole = [example.id for example in read(folder)[0].examples]
    few = [example.id for example in read(folder, n_dev=6)[0].examples]
    assert few == whole[:6] and whole != sorted(whole)
    assert len({id.split("/")[1] for id in few}) == 3
    assert whole != [example.id for example in read(folder, seed=1)[0].examples]


def test_classes_go_before_the_names_beside_the_head_and_these_before_the_alphabet(folder):
    model = folder / "model"
    model.mkdir()
    save_file({"classifier.weight": torch.eye(3)}, model / "model.safetensors")
    names = {"0": "emu", "1": "cat", "2": "dog"}
    (model / "config.json").write_text(json.dumps({"id2label": names}))
    by_head, _ = read(folder, head=model)
    given, _ = read(folder, head=model, classes=["dog", "emu", "cat"])
    for example in by_head.examples:
        assert ["emu", "cat", "dog"][example.label] == example.id.split("/")[1]
    for example in given.examples:
        assert ["dog", "emu", "cat"][example.label] == example.id.split("/")[1]
    (model / "config.json").write_text(json.dumps({"id2label": {"0": "LABEL_0"}}))
    alphabetical, _ = read(folder, head=model)
    assert alphabetical.examples == read(folder)[0].examples


def test_arrays_give_what_their_images_give(folder):
    pixels = np.zeros((4, 5, 3, 3), dtype=np.uint8)
    labels = np.array([2, 0, 1, 2])
    pixels[range(4), :, :, labels] = 255
    for name in ("a", "b"):
        np.savez(folder / f"{name}.npz", images=pixels, labels=labels)
    arrays = {"head": folder / "head.safetensors", "processor": Shrink()}
    dev, _ = read_images(folder / "a.npz", folder / "b.npz", **arrays)
    assert dev.name == "a"
    for example in dev.examples:
        assert example.label == labels[int(example.id.removeprefix("a.npz/"))]
        assert example.image[example.label].min() == 1 and example.image.sum() == 4
    grey = {"images": pixels.max(-1), "labels": labels}
    np.savez(folder / "grey.npz", **grey)
    assert read_images(folder / "grey.npz", folder / "b.npz", **arrays)[0].examples[0].image.min()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"classes": ["cat", "dog"]}, "name of each folder once, found a folder 'emu'$"),
        ({"classes": ["cat", "dog", "emu", "owl"]}, "3 rows of the head, found 4; give classes"),
        ({"head": "none"}, "^task 'pets': head: expected a file, or a folder with"),
        ({"processor": "no/such@folder/x"}, "^task 'pets': "),
    ],
)
def test_what_does_not_fit_is_refused_in_one_sentence(folder, changes, message):
    with pytest.raises(ValueError, match=message):
        read(folder, **changes)


def test_a_folder_without_images_and_other_files_are_refused(folder):
    given = {"head": folder / "head.safetensors", "processor": Shrink()}
    dev = folder / "pets" / "dev"
    with pytest.raises(ValueError, match="found dev twice|found .*dev twice$"):
        read_images(dev, dev, **given)
    with pytest.raises(ValueError, match="found no images in 2 folders$"):
        (folder / "empty" / "a").mkdir(parents=True)
        (folder / "empty" / "b").mkdir()
        read_images(folder / "empty", dev, **given)
    with pytest.raises(ValueError, match="found another file at .*head.safetensors$"):
        read_images(folder / "head.safetensors", dev, **given)
    with pytest.raises(ValueError, match="found no such folder at"):
        read_images(folder / "pets" / "dve", dev, **given)
    (dev / "cat" / "0.png").write_text("no image")
    with pytest.raises(ValueError, match="expected an image, found .*0.png"):
        read(folder)
    np.savez(folder / "float.npz", images=np.zeros((1, 2, 2)), labels=np.zeros(1, dtype=int))
    with pytest.raises(ValueError, match=r"expected images of bytes .* found \(1, 2, 2\) in float"):
        read_images(folder / "float.npz", dev, **given)


def whole_file():
    """The bytes of a compressed file of arrays."""
    buffer = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 255, (4, 9, 9, 3), dtype=np.uint8)
    np.savez_compressed(buffer, images=pixels, labels=np.zeros(4, dtype=int))
    return buffer.getvalue()


def with_broken_data():
    """The same with other bytes in the middle of the first array."""
    whole = bytearray(whole_file())
    whole[200:300] = bytes([255]) * 100
    return bytes(whole)


@pytest.mark.parametrize(
    "content",
    [b"", whole_file()[:-100], whole_file()[:50], with_broken_data()],
    ids=["empty", "truncated", "short", "damaged"],
)
def test_a_damaged_file_of_arrays_is_refused_in_one_sentence(folder, content):
    (folder / "a.npz").write_bytes(content)
    with pytest.raises(ValueError, match="^task 'a': expected the arrays images and labels in .*a"):
        read_images(folder / "a.npz", folder / "pets" / "dev", head=None, processor=Shrink())


def test_an_image_that_claims_to_be_huge_is_refused(folder):
    path = folder / "pets" / "dev" / "cat" / "0.png"
    content = bytearray(path.read_bytes())
    content[16:24] = (30_000).to_bytes(4, "big") * 2  # width and height in the header of a PNG
    content[29:33] = zlib.crc32(content[12:29]).to_bytes(4, "big")
    path.write_bytes(content)
    with pytest.raises(ValueError, match="^task 'pets': expected an image, found .*0.png: .*bomb"):
        read(folder)


def test_a_folder_without_a_processor_is_refused_in_one_sentence(folder):
    wanted = "processor: expected a folder or hub id with preprocessor_config.json, found"
    for source, found in (
        (folder / "pets", "the folder has no such file; name one as processor of the task"),
        ("bsae", "Can't load image processor for 'bsae'; name one as processor of the task"),
    ):
        with pytest.raises(ValueError) as error:
            read(folder, processor=source)
        assert str(error.value) == f"task 'pets': {wanted} {str(source)!r}: {found}"


def test_the_processor_of_a_folder_is_that_of_transformers(folder):
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    size = {"size": {"shortest_edge": 8}, "crop_size": {"height": 8, "width": 8}}
    process = CLIPImageProcessorPil(**size)
    process.save_pretrained(folder / "base")
    path = folder / "pets" / "dev" / "dog" / "0.png"
    noise = np.random.default_rng(0).integers(0, 255, (13, 9, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path)
    dev, _ = read(folder, processor=folder / "base")
    (found,) = [one.image for one in dev.examples if one.id == "dev/dog/0.png"]
    expected = process(images=[Image.open(path)], return_tensors="pt")["pixel_values"][0]
    torch.testing.assert_close(found, expected)
