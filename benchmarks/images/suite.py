"""Ten tasks on Fashion-MNIST, a head for each, and one or two LoRA experts of DINOv2 for each."""

import copy
import json
from pathlib import Path
from typing import NamedTuple

import torch

from benchmarks.images.fetch import Images, pixel_values
from evox_evogm.problems.images.heads import Head
from evox_evogm.problems.images.image_task import ImageTask, image_task

CLASSES = 10
STEPS_OF_A_TASK = (0, 1, 3)  # task t tells the classes t, t + 1 and t + 3 apart, modulo ten
LORA = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj", "fc1"]}
BATCH = 16
HEAD_STEPS, HEAD_RATE, HEAD_DECAY = 300, 1e-2, 1e-2
EXPERT_RATE = 2e-3


class Sizes(NamedTuple):
    """How large everything is.

    :param pixels: of the edge of an image, a multiple of 14.
    :param train: images of a task that its head and an expert learn from.
    :param dev: images of a task that searches see.
    :param test: images of a task that are kept, from the test images of Fashion-MNIST.
    :param steps: of training an expert, with 16 images each.
    """

    pixels: int = 56
    train: int = 240
    dev: int = 50
    test: int = 200
    steps: int = 60


class Part(NamedTuple):
    """Images of a task.

    :param pixels: an `(S, 3, edge, edge)` tensor as the base takes it.
    :param labels: an `(S,)` tensor of 0 to 2.
    """

    pixels: torch.Tensor
    labels: torch.Tensor


def draw(images: Images, task: int, counts: tuple[int, ...], edge: int, seed: int) -> list[Part]:
    """Disjoint draws of images of a task.

    :param counts: of images, of each draw.
    """
    classes = torch.tensor([(task + step) % CLASSES for step in STEPS_OF_A_TASK])
    rows = torch.isin(images.classes, classes).nonzero().flatten()
    generator = torch.Generator().manual_seed(1000 * seed + task)
    rows = rows[torch.randperm(len(rows), generator=generator)]
    parts = []
    for drawn in rows[: sum(counts)].split(counts):
        labels = (images.classes[drawn][:, None] == classes).int().argmax(1)
        parts.append(Part(pixel_values(images.pixels[drawn], edge), labels))
    return parts


def features(model: torch.nn.Module, pixels: torch.Tensor) -> torch.Tensor:
    """What heads read, the pooled output `(S, D)`."""
    found = []
    with torch.no_grad():
        for batch in pixels.split(64):
            found.append(model(pixel_values=batch).pooler_output)
    return torch.cat(found)


def train_head(model: torch.nn.Module, part: Part) -> Head:
    """A head on the features of the frozen base."""
    inputs = features(model, part.pixels)
    layer = torch.nn.Linear(inputs.shape[1], len(STEPS_OF_A_TASK))
    torch.nn.init.zeros_(layer.weight)
    optimizer = torch.optim.AdamW(layer.parameters(), lr=HEAD_RATE, weight_decay=HEAD_DECAY)
    for _ in range(HEAD_STEPS):
        loss = torch.nn.functional.cross_entropy(layer(inputs), part.labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return Head(layer.weight.detach().clone(), layer.bias.detach().clone())


def train_expert(
    model: torch.nn.Module, part: Part, head: Head, folder: Path, steps: int, seed: int
) -> None:
    """Write a LoRA adapter that is trained on a task, under its fixed head."""
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(seed)
    expert = get_peft_model(copy.deepcopy(model), LoraConfig(**LORA))
    learning = [parameter for parameter in expert.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(learning, lr=EXPERT_RATE)
    for _ in range(steps):
        rows = torch.randint(len(part.labels), (BATCH,))
        pooled = expert(pixel_values=part.pixels[rows]).pooler_output
        loss = torch.nn.functional.cross_entropy(head.logits(pooled), part.labels[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    expert.save_pretrained(folder)


class Suite(NamedTuple):
    """What a search needs.

    :param experts: the folders of the adapters, by name.
    :param dev: ten tasks.
    :param test: the same tasks on other images.
    """

    experts: dict[str, Path]
    dev: list[ImageTask]
    test: list[ImageTask]


def make_suite(
    model: torch.nn.Module, data: dict[str, Images], out: Path, n: int, sizes: Sizes, seed: int
) -> Suite:
    """Make the tasks, and train the experts that are not there yet.

    :param n: 10 or 20 experts, one or two of each task, on other images.
    :param out: the folder of the experts.
    """
    check_sizes(out / "sizes.json", sizes, seed)
    suite = Suite({}, [], [])
    sets = -(-n // CLASSES)
    for task in range(CLASSES):
        dev, *train = draw(data["train"], task, (sizes.dev, *[sizes.train] * 2), sizes.pixels, seed)
        (test,) = draw(data["t10k"], task, (sizes.test,), sizes.pixels, seed)
        torch.manual_seed(seed)
        head = train_head(model, train[0])
        for number, part in enumerate(train[:sets]):
            name = f"task_{task}_{number}"
            if not (out / name / "adapter_config.json").is_file():
                train_expert(model, part, head, out / name, sizes.steps, seed + number)
            suite.experts[name] = out / name
        suite.dev.append(image_task(f"task_{task}", dev.pixels, dev.labels, head))
        suite.test.append(image_task(f"task_{task}", test.pixels, test.labels, head))
    return suite


def check_sizes(path: Path, sizes: Sizes, seed: int) -> None:
    """Refuse a folder with experts of other sizes.

    :raises ValueError: naming both.
    """
    wanted = {**sizes._asdict(), "seed": seed}
    if path.is_file():
        found = json.loads(path.read_text())
        if found != wanted:
            raise ValueError(f"{path}: expected experts made with {wanted}, found {found}")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(wanted))
