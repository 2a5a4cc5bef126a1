"""Images and heads of twenty tasks for CLIP ViT-B/16, as the experts of FusionBench know them.

    python vit_images.py                        # from the hub, by the package datasets
    python vit_images.py --dev 50 --test 0      # all test images

Class names and prompts are those of the package fusion-bench (github.com/tanganke/fusion_bench,
MIT), which has to be installed. Dev images are drawn from the train split, test images from the
test split.
"""

import argparse
import random
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors.torch import save_file

CLIP = "openai/clip-vit-base-patch16"


class Source(NamedTuple):
    """Where the images of a task are on the hub.

    :param dataset: the data set.
    :param config: its configuration, if it has several.
    :param test: the split of test images.
    :param image: the column of images.
    :param label: the column of labels.
    """

    dataset: str
    config: str | None = None
    test: str = "test"
    image: str = "image"
    label: str = "label"


SOURCES = {
    "sun397": Source("tanganke/sun397"),
    "stanford-cars": Source("tanganke/stanford_cars"),
    "resisc45": Source("tanganke/resisc45"),
    "eurosat": Source("tanganke/eurosat"),
    "svhn": Source("ufldl-stanford/svhn", "cropped_digits"),
    "gtsrb": Source("tanganke/gtsrb"),
    "mnist": Source("ylecun/mnist"),
    "dtd": Source("tanganke/dtd"),
    "oxford_flowers102": Source("dpdl-benchmark/oxford_flowers102"),
    "pcam": Source("1aurent/PatchCamelyon"),
    "fer2013": Source("clip-benchmark/wds_fer2013", image="jpg", label="cls"),
    "oxford-iiit-pet": Source("timm/oxford-iiit-pet"),
    "stl10": Source("tanganke/stl10"),
    "cifar100": Source("uoft-cs/cifar100", image="img", label="fine_label"),
    "cifar10": Source("uoft-cs/cifar10", image="img"),
    "food101": Source("ethz/food101", test="validation"),
    "fashion_mnist": Source("zalando-datasets/fashion_mnist"),
    "emnist_letters": Source("tanganke/emnist_letters"),
    "kmnist": Source("tanganke/kmnist"),
    "rendered-sst2": Source("nateraw/rendered-sst2"),
}


@torch.no_grad()
def make_head(
    clip, tokenizer, names: Sequence[str], templates: Sequence[Callable[[str], str]]
) -> torch.Tensor:
    """The head of a task on the pooled output of CLIP's image part, a `(K, D)` tensor.

    Its logits are those of CLIP times the length of the projected image, which is the same for all
    classes, so that the same class has the largest.

    :param names: of the K classes.
    :param templates: make texts of a name, over which the text embedding is averaged.
    """
    rows = []
    for name in names:
        texts = [template(name) for template in templates]
        given = tokenizer(texts, padding=True, return_tensors="pt")
        given = {key: given[key] for key in ("input_ids", "attention_mask")}
        embeddings = clip.get_text_features(**given).pooler_output
        mean = torch.nn.functional.normalize(embeddings, dim=-1).mean(0)
        rows.append(torch.nn.functional.normalize(mean, dim=-1))
    return clip.logit_scale.exp() * torch.stack(rows) @ clip.visual_projection.weight


def draw(rows, count: int, seed: int) -> list[int]:
    """The numbers of some rows in random order.

    :param count: how many at most; 0 for all.
    """
    numbers = list(range(len(rows)))
    random.Random(seed).shuffle(numbers)
    return numbers[:count] if count else numbers


def write_images(rows, numbers: Iterable[int], source: Source, classes: int, folder: Path) -> None:
    """Write a folder for each class, named by its number, and images in it.

    :param rows: of a split.
    :param classes: how many there are; those without an image have a folder too.
    """
    for label in range(classes):
        (folder / f"{label:03d}").mkdir(parents=True, exist_ok=True)
    for number in numbers:
        row = rows[number]
        name = f"{int(row[source.label]):03d}/{number}.png"
        row[source.image].convert("RGB").save(folder / name)


def check_free(out: Path) -> None:
    """Refuse folders of images from an earlier start, whose images would stay.

    :raises SystemExit: in one sentence.
    """
    for task in SOURCES:
        for split in ("dev", "test"):
            folder = out / task / split
            if folder.exists():
                raise SystemExit(f"expected no images yet, found {folder}; remove {out} first")


def write_task(task: str, splits: dict, clip, tokenizer, names, templates, args) -> None:
    """Write `TASK/dev`, `TASK/test` and `TASK/head.safetensors`.

    :param splits: the rows of dev and test.
    """
    folder = args.out / task
    for split, rows in splits.items():
        chosen = draw(rows, getattr(args, split), args.seed)
        write_images(rows, chosen, SOURCES[task], len(names), folder / split)
    head = make_head(clip, tokenizer, names, templates)
    save_file({"weight": head.contiguous()}, folder / "head.safetensors")


def parse(arguments=None) -> argparse.Namespace:
    """The options of the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("images"))
    parser.add_argument("--dev", type=int, default=50, help="images that the search sees")
    parser.add_argument("--test", type=int, default=500, help="others at most; 0 for all")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args(arguments)


def main(arguments=None) -> None:
    """Download the data sets and CLIP, and write all tasks."""
    args = parse(arguments)
    check_free(args.out)
    from datasets import load_dataset
    from fusion_bench.tasks.clip_classification import get_classnames_and_templates
    from transformers import AutoTokenizer, CLIPModel

    clip, tokenizer = CLIPModel.from_pretrained(CLIP).eval(), AutoTokenizer.from_pretrained(CLIP)
    for task, source in SOURCES.items():
        splits = {}
        for split, name in (("dev", "train"), ("test", source.test)):
            splits[split] = load_dataset(source.dataset, source.config, split=name)
        names, templates = get_classnames_and_templates(task)
        write_task(task, splits, clip, tokenizer, names, templates, args)
        print(f"{task}: written to {args.out / task}")


if __name__ == "__main__":
    main()
