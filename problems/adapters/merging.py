"""The exact merge: theta(lambda) = theta_pre + sum_k lambda_k s_k B_k A_k, without dense task vectors.

Per module the factors of all experts are stacked once, A = [A_1; ...; A_n] and B = [B_1, ..., B_n]. A candidate only scales
the middle channels: y = x W^T + ((x A^T) * c) B^T, with c = repeat(lambda_k s_k, r_k), and the rows of one batch may belong
to different candidates. For many tokens per candidate the same factors can be put into the weights, and be taken out again.
"""

import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from evox_evogm.problems.adapters.read_adapter import CONFIG, WEIGHTS, Expert


@dataclass(frozen=True)
class StackedModule:
    """All experts of one module: A `(R, D_in)`, B `(D_out, R)`, and per channel its expert `(R,)` and scale `(R,)`;
    R is the sum of the ranks of the experts that touch the module."""

    a: torch.Tensor
    b: torch.Tensor
    expert: torch.Tensor
    scale: torch.Tensor
    embedding: bool

    def only(self, used: torch.Tensor) -> "StackedModule":
        """The module with the channels of the experts that `used`, an `(n,)` tensor of booleans, names."""
        keep = used[self.expert]
        return replace(
            self,
            a=self.a[keep],
            b=self.b[:, keep],
            expert=self.expert[keep],
            scale=self.scale[keep],
        )

    def channel_weights(self, coefficients: torch.Tensor) -> torch.Tensor:
        """c `(..., R)` of candidates `(..., n)`, in the dtype of the coefficients."""
        return coefficients[..., self.expert] * self.scale.to(coefficients.dtype)


def stack_experts(
    experts: Sequence[Expert],
    dtype: torch.dtype,
    device: torch.device,
    model: torch.nn.Module | None = None,
) -> dict[str, StackedModule]:
    """Stack the factors of n experts by module name; a module that an expert does not touch gets no channels from it.

    :param model: if given, each module's factors go where its weight is, and into its dtype if that is floating-point.
    """
    default, stacked = (dtype, device), {}
    for module in sorted({module for expert in experts for module in expert.modules}):
        parts = [
            (index, expert.modules[module])
            for index, expert in enumerate(experts)
            if module in expert.modules
        ]
        ranks = torch.tensor([len(factors.a) for _, factors in parts])
        weight = None if model is None else model.get_submodule(module).weight
        dtype, device = default if weight is None else (weight.dtype, weight.device)
        dtype = dtype if dtype.is_floating_point and dtype.itemsize > 1 else default[0]
        stacked[module] = StackedModule(
            a=torch.cat([factors.a for _, factors in parts]).to(device, dtype),
            b=torch.cat([factors.b for _, factors in parts], dim=1).to(device, dtype),
            expert=torch.tensor([index for index, _ in parts]).repeat_interleave(ranks).to(device),
            scale=torch.tensor([factors.scale for _, factors in parts])
            .repeat_interleave(ranks)
            .to(device),
            embedding=parts[0][1].embedding,
        )
    return stacked


class Population:
    """P candidates whose merges share the base and the stacked factors; each row of a batch belongs to one of them."""

    def __init__(self, modules: dict[str, StackedModule], coefficients: torch.Tensor):
        """Weigh the channels of every module; experts that no candidate uses are left out.

        :param modules: what `stack_experts` made of the experts.
        :param coefficients: a `(P, n)` tensor of effective coefficients.
        """
        used = (coefficients != 0).any(0)
        if not used.all():
            modules = {
                name: module.only(used.to(module.expert.device)) for name, module in modules.items()
            }
        self.modules = {name: module for name, module in modules.items() if len(module.a)}
        self.weights = {
            name: module.channel_weights(coefficients.to(module.a.device, torch.float32)).to(
                module.a.dtype
            )
            for name, module in self.modules.items()
        }  # per module (P, R)
        self.owners: int | torch.Tensor = 0
        self.output_rows: torch.Tensor | None = None

    def select(self, candidates: Sequence[int], output_rows: torch.Tensor | None = None) -> None:
        """Say which candidate each row of the next batch belongs to.

        :param output_rows: the row of the batch for each row that the output layer sees, if these are not the same.
        """
        first, device = (
            candidates[0],
            next((weights.device for weights in self.weights.values()), None),
        )
        alone = all(candidate == first for candidate in candidates)
        self.owners = first if alone else torch.tensor(candidates, device=device)
        self.output_rows = output_rows

    def weights_of_rows(
        self, name: str, rows: int, dims: int, *, output: bool = False
    ) -> torch.Tensor:
        """The channel weights of a module for a batch whose tensors have `rows` rows and `dims` dimensions.

        :param output: whether the module is the output layer.
        """
        weights = self.weights[name]
        if isinstance(self.owners, int):
            return weights[self.owners]  # (R,)
        owners = self.owners.to(weights.device)
        if output and self.output_rows is not None:
            owners = owners[self.output_rows.to(owners.device)]
        if rows > len(owners):  # a module may see the batch as (N C, D) instead of (N, C, D)
            assert rows % len(owners) == 0, f"{name} sees {rows} rows of a batch of {len(owners)}"
            owners = owners.repeat_interleave(rows // len(owners))
        return weights[owners].view(-1, *[1] * (dims - 2), weights.shape[1])


@contextmanager
def merged(
    model: torch.nn.Module, modules: dict[str, StackedModule], coefficients: torch.Tensor
) -> Iterator[Population]:
    """Inside the block the model computes as if merged; afterwards it is as it was.

    :param model: the base model, which is not changed: the experts are added to the outputs of their modules.
    :param modules: what `stack_experts` made of the experts.
    :param coefficients: an `(n,)` tensor of effective coefficients, or a `(P, n)` tensor of several candidates.
    :return: the candidates, of which the first answers until `select` says otherwise.
    """
    population, handles = Population(modules, torch.atleast_2d(coefficients)), []
    try:
        for name in population.modules:
            layer = model.get_submodule(name)
            hook = _expert_hook(population, name, output=layer is model.get_output_embeddings())
            handles.append(layer.register_forward_hook(hook))
        yield population
    finally:
        for handle in handles:
            handle.remove()


def _expert_hook(population: Population, name: str, *, output: bool):
    module = population.modules[name]

    def add_experts(layer, inputs, result):
        if module.embedding:
            middle = torch.nn.functional.embedding(inputs[0], module.a.mT)  # (..., R)
            middle = middle * getattr(layer, "embed_scale", 1.0)  # Gemma scales what it looks up
        else:
            middle = inputs[0] @ module.a.mT  # (..., R)
        middle = middle * population.weights_of_rows(name, len(middle), middle.ndim, output=output)
        if result.requires_grad or not result.is_contiguous():
            return result + middle @ module.b.mT
        result.view(-1, result.shape[-1]).addmm_(
            middle.flatten(0, -2), module.b.mT
        )  # without a second pass over the result
        return result

    return add_experts


class WeightMerger:
    """Puts one merge after another into the weights of the base, for many tokens per candidate.

    A merge costs one small product per module, and then tokens cost what they cost in the base. In half precision the merged
    weights are rounded to their dtype, as those of any merged checkpoint are; the unmerged path (`merged`) keeps the factors
    apart.
    """

    def __init__(self, model: torch.nn.Module, modules: dict[str, StackedModule]):
        """Keep a copy of the weights that merges change.

        :param modules: what `stack_experts` made of the experts.
        """
        self.model, self.modules = model, modules
        layers = {name: model.get_submodule(name) for name in modules}
        users: dict[
            int, int
        ] = {}  # how many layers share a weight: an output layer may be tied to the embedding
        for layer in model.modules():
            for parameter in layer.parameters(recurse=False):
                users[parameter.data_ptr()] = users.get(parameter.data_ptr(), 0) + 1
        self.weights = {
            name: layer.weight
            for name, layer in layers.items()
            if layer.weight.dtype == modules[name].a.dtype and users[layer.weight.data_ptr()] == 1
        }
        self.rest = {name: module for name, module in modules.items() if name not in self.weights}
        # As (D_out, D_in); Conv1D and embeddings keep (D_in, D_out).
        self.transposed = {
            name for name in self.weights if not isinstance(layers[name], torch.nn.Linear)
        }
        self.originals = {name: weight.detach().clone() for name, weight in self.weights.items()}

    @staticmethod
    def bytes_kept(model: torch.nn.Module, modules: Iterable[str]) -> int:
        """The size of the copy for these modules, at most."""
        return sum(
            weight.nbytes
            for weight in {
                id(w): w for w in (model.get_submodule(m).weight for m in modules)
            }.values()
        )

    @torch.no_grad()
    def load(self, coefficients: torch.Tensor) -> None:
        """Make the weights those of the merge with these (n,) coefficients."""
        for name, weight in self.weights.items():
            module, original = self.modules[name], self.originals[name]
            channels = module.channel_weights(coefficients.to(module.a.device, torch.float32)).to(
                module.a.dtype
            )
            if name in self.transposed:
                torch.addmm(original, module.a.mT * channels, module.b.mT, out=weight.data)
            else:
                torch.addmm(original, module.b * channels, module.a, out=weight.data)

    @torch.no_grad()
    def restore(self) -> None:
        """Make the weights those of the base again, bit for bit."""
        for name, weight in self.weights.items():
            weight.copy_(self.originals[name])


@contextmanager
def merged_in_place(merger: WeightMerger, pop: torch.Tensor) -> Iterator[Iterator[None]]:
    """Inside the block, an iterator whose every step makes the model the merge of the next of (P, n) candidates.

    Weights that cannot be changed in place (of another dtype, or shared by several layers) get their experts as in `merged`.
    Afterwards the model is as it was, bit for bit, also after an error.
    """

    def steps() -> Iterator[None]:
        for coefficients in pop:
            merger.load(coefficients)
            with merged(merger.model, merger.rest, coefficients):
                yield

    candidates = steps()
    try:
        yield candidates
    finally:
        candidates.close()
        merger.restore()


def _stack_used(
    experts: Sequence[Expert], coefficients: torch.Tensor
) -> tuple[dict[str, StackedModule], torch.Tensor]:
    """The experts whose coefficient is not 0, stacked in float32 on the CPU, with their coefficients."""
    coefficients = coefficients.detach().to("cpu", torch.float32)
    used = coefficients.nonzero().flatten()
    return stack_experts(
        [experts[index] for index in used], torch.float32, torch.device("cpu")
    ), coefficients[used]


def export_adapter(
    experts: Sequence[Expert], coefficients: torch.Tensor, folder, *, base: str
) -> None:
    """Write the merge as one LoRA adapter in PEFT format, exact in float32.

    The factors are concatenated, with lambda_k s_k inside B, so that the rank of a module is the sum of the ranks there and
    its alpha equals its rank. Experts with coefficient 0 are left out.

    :param coefficients: an `(n,)` tensor of effective coefficients.
    :param folder: created if it is missing.
    :param base: the name of the base model, written into the configuration.
    :raises ValueError: if every coefficient is 0: the merge is the base itself.
    """
    from safetensors.torch import save

    modules, coefficients = _stack_used(experts, coefficients)
    if not modules:
        raise ValueError(
            "coefficients: expected at least one other than 0, found all 0; the merge is the base model itself"
        )
    tensors, ranks = {}, {}
    for name, module in modules.items():
        prefix = f"base_model.model.{name}.lora_{'embedding_' if module.embedding else ''}"
        suffix = "" if module.embedding else ".weight"
        tensors[f"{prefix}A{suffix}"] = module.a.contiguous()
        tensors[f"{prefix}B{suffix}"] = (
            module.b * module.channel_weights(coefficients)
        ).contiguous()
        ranks[name] = len(module.a)
    rank = max(ranks.values())
    patterns = {name: own for name, own in ranks.items() if own != rank}
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": rank,
        "lora_alpha": rank,
        "rank_pattern": patterns,
        "alpha_pattern": patterns,
        "use_rslora": False,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "lora_dropout": 0.0,
        "target_modules": sorted(ranks),
    }
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / WEIGHTS).write_bytes(
        save(tensors, metadata={"format": "pt"})
    )  # save_file has no OSError for a full disk
    (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def reload_difference(
    model: torch.nn.Module, experts: Sequence[Expert], coefficients: torch.Tensor, folder
) -> float:
    """Load an exported adapter with plain peft, and compare its weights with sum_k lambda_k s_k B_k A_k.

    :param model: the base model; peft wraps its layers during the comparison and gives them back.
    :return: the largest ||difference|| / ||expected|| over all modules (Frobenius norms).
    """
    from peft import PeftModel

    expected, coefficients = _stack_used(experts, coefficients)
    reloaded = PeftModel.from_pretrained(model, folder)
    try:
        layers = dict(reloaded.base_model.model.named_modules())
        worst = 0.0
        for name, module in expected.items():
            delta = (module.b * module.channel_weights(coefficients)) @ module.a  # (D_out, D_in)
            found = layers[name].get_delta_weight("default").to("cpu", torch.float32)
            if (
                found.shape != delta.shape or module.embedding
            ):  # Conv1D and embeddings keep (D_in, D_out)
                found = found.mT
            worst = max(worst, float((found - delta).norm() / delta.norm().clamp_min(1e-30)))
    finally:
        reloaded.unload()
    return worst
