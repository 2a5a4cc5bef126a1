"""Merge experts of a small ViT that read scikit-learn's digits: three tasks, each with its head.

python benchmarks/examples/merge_image_experts.py
"""

import copy
import tempfile

import torch
from evox.workflows import StdWorkflow
from peft import LoraConfig, get_peft_model
from sklearn.datasets import load_digits
from transformers import ViTConfig, ViTForImageClassification

from evox_evogm import Outcomes, SurrogateEvoGM
from evox_evogm.problems import LoRAMergeProblem, image_task

SIZES = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
SIZES |= {"num_attention_heads": 2, "image_size": 8, "patch_size": 2, "num_channels": 1}


def train(model, images, labels, steps):
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=5e-3)
    for _ in range(steps):
        rows = torch.randint(len(images), (64,))
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(images[rows]).logits, labels[rows]).backward()
        optimizer.step()


torch.manual_seed(0)
pixels, digits = map(torch.tensor, load_digits(return_X_y=True))
order = torch.randperm(len(digits))
images, digits = pixels[order].float().view(-1, 1, 8, 8) / 8 - 1, digits[order]
base = ViTForImageClassification(ViTConfig(**SIZES, num_labels=10))
train(base, images[:1200].mT, digits[:1200], steps=200)  # reads digits that lie on their side
experts, dev, test = {}, [], []
for name, first, last in (("0 to 2", 0, 2), ("3 to 5", 3, 5), ("6 to 9", 6, 9)):
    rows = ((digits >= first) & (digits <= last)).nonzero().flatten()
    parts = [(images[part], digits[part] - first) for part in rows.split(len(rows) // 3 + 1)]
    model = copy.deepcopy(base).requires_grad_(False)
    model.classifier = head = torch.nn.Linear(32, last - first + 1)
    train(model, *parts[0], steps=60)  # the head on the frozen base
    model = get_peft_model(model, LoraConfig(r=4, target_modules=["q_proj", "v_proj", "fc1"]))
    train(model, *parts[0], steps=60)  # the expert under the fixed head
    experts[name] = tempfile.mkdtemp()
    model.save_pretrained(experts[name])
    dev.append(image_task(name, *parts[1], head))
    test.append(image_task(name, *parts[2], head))
problem = LoRAMergeProblem(base, experts, dev, objectives="outcomes")
algorithm = SurrogateEvoGM(4, *problem.box, outcomes=Outcomes(*problem.outcomes))
workflow = StdWorkflow(algorithm, problem, opt_direction="max")
workflow.init_step()
for _ in range(9):
    workflow.step()
points = [torch.zeros(3), *torch.eye(3), torch.full((3,), 1 / 3), algorithm.recommend()]
for name, point in zip(["base", *experts, "average", "recommended"], points, strict=True):
    found = [float(scores.mean()) for scores in problem.score_tasks(point, test).values()]
    print(f"| {name} | {sum(found) / 3:.3f} | {' | '.join(f'{value:.3f}' for value in found)} |")
