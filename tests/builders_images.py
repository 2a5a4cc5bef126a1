"""Builders of tests on images: tiny random image models, images, and merges without our code."""

import copy

import numpy as np
import torch
from PIL import Image

SHARED = {"image_size": 8, "patch_size": 2, "num_channels": 3, "num_labels": 4}
VIT = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "initializer_range": 0.3,
}
TARGETS = {  # of two experts, in layers of different kinds
    "vit": (["q_proj", "v_proj"], ["fc1", "o_proj"]),
    "vit_alone": (["q_proj", "v_proj"], ["fc1", "o_proj"]),
    "dinov2": (["q_proj", "fc2"], ["k_proj", "fc1"]),
    "swin": (["q_proj", "reduction"], ["o_proj", "fc2"]),
    "convnext": (["pwconv1"], ["pwconv2", "pwconv1"]),
}

CLASSES = {"birds": ["crow", "duck"], "boats": ["brig", "dhow", "yawl"]}  # of two tasks


def build_image_model(architecture="vit"):
    """A random image model for images of 3 x 8 x 8, in float32."""
    import transformers as hf

    torch.manual_seed(7)
    if architecture == "vit":
        return hf.ViTForImageClassification(hf.ViTConfig(**VIT, **SHARED)).eval()
    if architecture == "vit_alone":
        return hf.ViTModel(hf.ViTConfig(**VIT, **SHARED)).eval()
    if architecture == "dinov2":
        settings = {key: VIT[key] for key in VIT if key != "intermediate_size"}
        return hf.Dinov2ForImageClassification(hf.Dinov2Config(**settings, **SHARED)).eval()
    if architecture == "swin":
        config = hf.SwinConfig(
            **SHARED,
            embed_dim=8,
            depths=[2, 1],
            num_heads=[2, 2],
            window_size=2,
            initializer_range=0.3,
        )
        return hf.SwinForImageClassification(config).eval()
    config = hf.ConvNextConfig(
        **SHARED,
        depths=[1, 1],
        hidden_sizes=[8, 16],
        num_stages=2,
        initializer_range=0.3,
        layer_scale_init_value=1.0,
    )
    return hf.ConvNextForImageClassification(config).eval()


def write_image_base(folder):
    """A folder `base` with a ViT and its image processor."""
    from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

    build_image_model().save_pretrained(folder / "base")
    processor = ViTImageProcessorPil(size={"height": 8, "width": 8})
    processor.save_pretrained(folder / "base")


def write_images(folder):
    """Folders of random images: 4 of dev and 3 of test for each class of each task."""
    rng = np.random.default_rng(0)
    for task, classes in CLASSES.items():
        for split, count in (("dev", 4), ("test", 3)):
            for name in classes:
                of_class = folder / task / split / name
                of_class.mkdir(parents=True)
                for image in range(count):
                    pixels = rng.integers(0, 255, (9, 11, 3), dtype=np.uint8)
                    Image.fromarray(pixels).save(of_class / f"{image}.png")


def features_of(model, images):
    """What enters the classifier, or the pooled output, by a plain pass over each image."""
    found = []
    with torch.no_grad():
        for image in images:
            if not hasattr(model, "classifier"):
                found.append(model(pixel_values=image[None]).pooler_output)
                continue
            probed = copy.copy(model)
            probed._modules = {**model._modules, "classifier": torch.nn.Identity()}
            found.append(probed(pixel_values=image[None]).logits)
    return torch.cat(found).flatten(1)


def merge_by_hand(model, folders, coefficients):
    """A copy of a model with sum_k lambda_k (alpha / r) B_k A_k in its weights."""
    import json

    from safetensors.torch import load_file

    merged = copy.deepcopy(model)
    for folder, coefficient in zip(folders, coefficients, strict=True):
        config = json.loads((folder / "adapter_config.json").read_text())
        tensors = load_file(folder / "adapter_model.safetensors")
        for name, a in tensors.items():
            if ".lora_A." not in name:
                continue
            b = tensors[name.replace(".lora_A.", ".lora_B.")]
            module = name.removeprefix("base_model.model.").partition(".lora_A.")[0]
            weight = merged.get_submodule(module).weight
            scale = config["lora_alpha"] / config["r"]
            weight.data += float(coefficient) * scale * (b @ a)
    return merged
