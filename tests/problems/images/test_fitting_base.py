"""Tasks of texts need a language model, tasks of images an image model."""

import pytest
import torch
from builders import build_model
from builders_images import write_image_base

from evox_evogm.problems import image_task
from evox_evogm.problems.images.fitting_base import check_fits_base, kind_of_base, read_kind
from evox_evogm.problems.tasks.task import Example, Task

TEXTS = Task("sums", "", "exact_match", (Example("0", "1 + 1", "2"),), max_new_tokens=4)
IMAGES = image_task("birds", torch.zeros(1, 3, 8, 8), [0], torch.zeros(2, 16))


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
    """A ViT and a Llama, of which nothing but the configuration is there."""
    folder = tmp_path_factory.mktemp("bases")
    write_image_base(folder)
    (folder / "base").rename(folder / "vit")
    build_model().config.save_pretrained(folder / "llama")
    (folder / "damaged").mkdir()
    (folder / "damaged" / "config.json").write_text("{")
    return folder


def test_the_kind_of_a_base_is_read_from_its_configuration(bases):
    assert kind_of_base(bases / "vit") == (True, "vit")
    assert kind_of_base(bases / "llama") == (False, "llama")
    for name in ("damaged", "nowhere"):
        assert kind_of_base(bases / name) == (None, None)


def test_what_fits_is_let_be(bases):
    assert read_kind([IMAGES, IMAGES], bases / "vit") is True
    assert read_kind([TEXTS], bases / "llama") is False
    for name in ("damaged", "nowhere"):
        check_fits_base("sums", bases / name, images=True)
        check_fits_base("sums", bases / name, images=False)


def test_texts_for_an_image_model_are_refused(bases):
    base = str(bases / "vit")
    with pytest.raises(ValueError) as raised:
        read_kind([TEXTS], base)
    assert str(raised.value) == (
        "task 'sums': expected a language model for a task of texts, found the image model "
        f"{base!r} (vit); give as base the language model that the experts were trained on, or "
        "tasks of images"
    )


def test_images_for_a_language_model_are_refused(bases):
    base = str(bases / "llama")
    with pytest.raises(ValueError) as raised:
        read_kind([IMAGES], base)
    assert str(raised.value) == (
        "task 'birds': expected an image model for a task of images, found the language model "
        f"{base!r} (llama); give as base the image model that the experts were trained on, or "
        "tasks of texts"
    )


def test_tasks_of_both_kinds_are_named_once(bases):
    with pytest.raises(ValueError) as raised:  # dev and test tasks have one name
        read_kind([IMAGES, TEXTS, IMAGES, TEXTS], bases / "vit")
    expected = "tasks: expected those of one kind of base, found images (birds) and texts (sums)"
    assert str(raised.value) == expected
