"""Read LoRA adapters in PEFT format and check that they can be merged exactly on one base model.

An expert is, per module it touches, the factors of tau = s B A with s = alpha / r (alpha / sqrt(r) with rsLoRA; Hu et al.
2021, arXiv 2106.09685; Kalajdzievski 2023, arXiv 2312.03732). Whatever would make the sum of such products differ from
what the adapter was trained as (DoRA, biases, whole saved modules, a changed base) is refused with one sentence.
"""

import json
import math
import re
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
TENSOR_NAME = re.compile(
    r"base_model\.model\.(?P<module>.+)\.lora_(?P<embedding>embedding_)?(?P<factor>[AB])(\.weight)?"
)
# peft saves the frozen weights of embeddings and output layers that an adapter targets.
BASE_COPY = re.compile(r"base_model\.model\.(?P<layer>.+)\.base_layer\.weight")
# Initialisations that leave the base model as it is; the others (PiSSA, OLoRA, CorDA, LoftQ, LoRA-GA ...) subtract from it.
PLAIN_INITIALISATIONS = (True, False, "true", "false", "gaussian", "orthogonal", "eva")
LONGEST_PATTERN = (
    200  # characters of a rank or alpha pattern, and of the module names that it is tried on
)
# Settings of peft.LoraConfig under which a module is not W + s B A, with what an accepted adapter has there.
UNSUPPORTED = {
    "use_dora": "DoRA",
    "lora_bias": "lora_bias",
    "modules_to_save": "modules_to_save",
    "use_qalora": "QALoRA",
    "use_bdlora": "BD-LoRA",
    "alora_invocation_tokens": "activated LoRA",
    "arrow_config": "Arrow routing",
    "trainable_token_indices": "trainable_token_indices",
    "target_parameters": "target_parameters",
    "layer_replication": "layer_replication",
    "megatron_config": "Megatron layers",
    "ensure_weight_tying": "ensure_weight_tying",
    "velora_config": "VeLoRA",
    "kasa_config": "KaSA",
    "monteclora_config": "MonteCLoRA",
}


@dataclass(frozen=True)
class Factors:
    """One module of one expert: tau = `scale` B A with A `(r, D_in)` and B `(D_out, r)`; for an embedding D_in is the
    vocabulary."""

    a: torch.Tensor
    b: torch.Tensor
    scale: float
    embedding: bool


@dataclass(frozen=True)
class Expert:
    """A LoRA adapter: its name, where it was read, the base it names, its factors by module name, and the layers of the
    base of which its file holds a copy."""

    name: str
    folder: Path
    base: str
    modules: dict[str, Factors]
    base_copies: tuple[str, ...] = ()


def read_expert(folder, *, name: str | None = None) -> Expert:
    """Read a PEFT adapter folder (`adapter_config.json` and `adapter_model.safetensors`).

    :param folder: the adapter's folder.
    :param name: of the expert; by default the folder's name.
    :return: the expert, its tensors in float32 on the CPU.
    :raises ValueError: one sentence saying which adapter, what was found and what to do.
    """
    folder = Path(folder)
    name = name or folder.name
    where = f"expert {name!r} ({folder})"
    if not folder.is_dir():
        raise ValueError(
            f"{where}: expected a folder with {CONFIG} and {WEIGHTS}, found no such folder"
        )
    config = _read_config(folder, where)
    tensors = _read_tensors(folder, where)
    modules: dict[str, dict[str, torch.Tensor]] = {}
    embeddings, base_copies = set(), []
    for key, tensor in tensors.items():
        if copied := BASE_COPY.fullmatch(key):
            base_copies.append(copied["layer"])
            continue
        match = TENSOR_NAME.fullmatch(key)
        if not match:
            raise ValueError(
                f"{where}: expected only lora_A and lora_B tensors, found {key!r}; save the adapter as plain LoRA"
            )
        if not torch.isfinite(tensor).all():
            raise ValueError(
                f"{where}: expected finite weights, found NaN or infinity in {key!r}; use an earlier checkpoint"
            )
        modules.setdefault(match["module"], {})[match["factor"]] = tensor
        if match["embedding"]:
            embeddings.add(match["module"])
    factors = {}
    for module, pair in sorted(modules.items()):
        if set(pair) != {"A", "B"}:
            raise ValueError(
                f"{where}: expected lora_A and lora_B for {module}, found only lora_{''.join(pair)}"
            )
        a, b = pair["A"], pair["B"]
        rank, alpha = _settings_of(config, module, where)
        if a.ndim != 2 or b.ndim != 2 or a.shape[0] != b.shape[1] or a.shape[0] != rank:
            raise ValueError(
                f"{where}: expected rank {rank} in {module}, found lora_A {tuple(a.shape)} and lora_B {tuple(b.shape)}; "
                f"{CONFIG} and {WEIGHTS} do not belong together"
            )
        scale = alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)
        factors[module] = Factors(a, b, scale, module in embeddings)
    if not factors:
        raise ValueError(f"{where}: expected LoRA tensors in {WEIGHTS}, found none")
    return Expert(
        name, folder, str(config.get("base_model_name_or_path") or ""), factors, tuple(base_copies)
    )


def _read_config(folder: Path, where: str) -> dict:
    path = folder / CONFIG
    if not path.is_file():
        raise ValueError(
            f"{where}: expected {CONFIG}, found none; give the folder that peft's save_pretrained wrote"
        )
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (
        ValueError,
        RecursionError,
    ) as error:  # of JSON, of UTF-8, or numbers and nesting beyond all measure
        raise ValueError(f"{where}: expected JSON in {CONFIG}, found {error}") from error
    if not isinstance(config, dict):
        raise ValueError(f"{where}: expected an object in {CONFIG}, found {type(config).__name__}")
    if config.get("peft_type") != "LORA":
        raise ValueError(
            f"{where}: expected peft_type LORA, found {config.get('peft_type')!r}; only LoRA adapters can be merged"
        )
    if config.get("bias", "none") != "none":
        raise ValueError(
            f"{where}: expected bias 'none', found {config['bias']!r}; train the adapter without biases"
        )
    for setting, title in UNSUPPORTED.items():
        if config.get(setting):
            raise ValueError(
                f"{where}: expected plain LoRA, found {title} ({setting} is set); leave this adapter out or retrain it"
            )
    initialisation = config.get("init_lora_weights", True)
    plain = initialisation.lower() if isinstance(initialisation, str) else initialisation
    if plain not in PLAIN_INITIALISATIONS:
        raise ValueError(
            f"{where}: expected an adapter of the unchanged base, found init_lora_weights {initialisation!r}, which changes "
            "it; convert it with peft's path_initial_model_for_weight_conversion"
        )
    for setting, kind in (
        ("r", int),
        ("lora_alpha", (int, float)),
        ("rank_pattern", dict),
        ("alpha_pattern", dict),
    ):
        value = config.get(setting)
        if value is None and kind is dict:  # null, or left out by an older peft
            config[setting] = {}
        elif not isinstance(value, kind) or isinstance(value, bool):
            raise ValueError(
                f"{where}: expected {setting} in {CONFIG} to be a {_kind_name(kind)}, found {value!r}"
            )
    ranks = {
        "r": config["r"],
        **{f"rank_pattern {key!r}": value for key, value in config["rank_pattern"].items()},
    }
    for setting, value in ranks.items():
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise ValueError(
                f"{where}: expected {setting} in {CONFIG} to be a whole number of at least 1, found {value!r}"
            )
    alphas = {"lora_alpha": config["lora_alpha"]}
    alphas |= {f"alpha_pattern {key!r}": value for key, value in config["alpha_pattern"].items()}
    for setting, value in alphas.items():
        if (
            not isinstance(value, (int, float))
            or isinstance(value, bool)
            or not abs(value) <= sys.float_info.max
        ):
            raise ValueError(
                f"{where}: expected {setting} in {CONFIG} to be a finite number, found {value!r}"
            )
    if not isinstance(config.get("use_rslora") or False, bool):
        raise ValueError(
            f"{where}: expected use_rslora in {CONFIG} to be true or false, found {config['use_rslora']!r}"
        )
    return config


def _kind_name(kind) -> str:
    return {int: "whole number", dict: "table"}.get(kind, "number")


def _settings_of(config: dict, module: str, where: str) -> tuple[int, float]:
    """Rank and alpha of a module as peft finds them: the first pattern that matches the end of its name, else the default."""
    found = []
    for setting, patterns in (("r", "rank_pattern"), ("lora_alpha", "alpha_pattern")):
        value = config[setting]
        for pattern, special in config[patterns].items():
            if not _is_quick(pattern) or len(module) > LONGEST_PATTERN:
                raise ValueError(
                    f"{where}: expected names or short regular expressions in {patterns}, with at most one group and two "
                    f"repetitions, found {pattern[:50]!r} for {module[:50]!r}"
                )
            try:
                matches = re.match(rf"(.*\.)?({pattern})$", module)
            except re.error as error:
                raise ValueError(
                    f"{where}: expected a regular expression in {patterns}, found {pattern!r} ({error})"
                ) from error
            if matches:
                value = special
                break
        found.append(value)
    return tuple(found)


def _is_quick(pattern: str) -> bool:
    """Whether Python's `re`, which may take exponential time, is sure to end soon with a pattern that somebody else wrote."""
    groups, repetitions = (
        pattern.count("("),
        len(re.findall(r"[*+?{]", pattern.replace("(?:", "("))),
    )
    return (
        len(pattern) <= LONGEST_PATTERN
        and groups <= 1
        and repetitions <= 2
        and not re.search(r"\)[*+{]", pattern)
    )


def _read_tensors(folder: Path, where: str) -> dict[str, torch.Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    path = folder / WEIGHTS
    if not path.is_file():
        pickled = sorted(p.name for p in folder.glob("*.bin")) + sorted(
            p.name for p in folder.glob("*.pt")
        )
        found = (
            f"only {pickled[0]}, a pickle that is not read because it can run code"
            if pickled
            else "none"
        )
        raise ValueError(
            f"{where}: expected {WEIGHTS}, found {found}; save it with safe_serialization=True"
        )
    try:
        tensors = load_file(path)
    except (SafetensorError, OSError, ValueError, KeyError, AttributeError, RuntimeError) as error:
        raise ValueError(
            f"{where}: expected {WEIGHTS} in safetensors format, found {error}"
        ) from error
    try:
        if all(tensor.is_floating_point() for tensor in tensors.values()):
            return {key: tensor.to(torch.float32) for key, tensor in tensors.items()}
    except RuntimeError:  # of formats that torch stores but does not compute with
        pass
    found = ", ".join(
        sorted({str(tensor.dtype).removeprefix("torch.") for tensor in tensors.values()})
    )
    raise ValueError(
        f"{where}: expected weights in float32, bfloat16, float16 or the like, found {found}"
    )


def check_together(experts: Sequence[Expert]) -> None:
    """Refuse an empty list, duplicate names, and experts that name different base models.

    :raises ValueError: one sentence saying which.
    """
    if not experts:
        raise ValueError("experts: expected at least one adapter folder, found none")
    name, times = Counter(expert.name for expert in experts).most_common(1)[0]
    if times > 1:
        folders = ", ".join(str(expert.folder) for expert in experts if expert.name == name)
        raise ValueError(
            f"experts: expected different names, found {name!r} {times} times ({folders}); give them names"
        )
    named = {_base_key(expert.base): expert for expert in experts if expert.base}
    if len(named) > 1:
        one, other = list(named.values())[:2]
        raise ValueError(
            f"expert {other.name!r}: expected the same base model as expert {one.name!r} ({one.base}), found {other.base}; "
            "merge only adapters of one base"
        )


def _base_key(base: str) -> str:
    """The last part of a path or hub id: the same model may be named by a local copy."""
    return re.split(r"[/\\]", base.rstrip("/\\"))[-1].lower()


def check_fit(experts: Sequence[Expert], model: torch.nn.Module, tokenizer=None) -> None:
    """Refuse experts whose modules, shapes, base or vocabulary are not those of the base model.

    :param model: the transformers model they are to be merged into.
    :param tokenizer: its tokenizer, to compare with a tokenizer that an adapter carries.
    :raises ValueError: one sentence saying which adapter, what was found and what to do.
    """
    from transformers.pytorch_utils import Conv1D

    base_name = getattr(model.config, "_name_or_path", "") or ""
    layers = dict(model.named_modules())
    for expert in experts:
        where = f"expert {expert.name!r} ({expert.folder})"
        # Both names have to look like hub ids: a local folder may be called anything.
        if all(
            re.fullmatch(r"[\w.-]+/[\w.-]+", b) and not Path(b).exists()
            for b in (expert.base, base_name)
        ) and (_base_key(expert.base) != _base_key(base_name)):
            raise ValueError(
                f"{where}: expected an adapter of {base_name}, found one of {expert.base}; load that base instead"
            )
        for module, factors in expert.modules.items():
            layer = layers.get(module)
            if isinstance(layer, torch.nn.Embedding) and factors.embedding:
                expected = (layer.num_embeddings, layer.embedding_dim)
            elif isinstance(layer, torch.nn.Linear) and not factors.embedding:
                expected = (layer.in_features, layer.out_features)
            elif isinstance(layer, Conv1D) and not factors.embedding:
                expected = tuple(layer.weight.shape)
            else:
                kind = f"a {type(layer).__name__}" if layer is not None else "no such module"
                raise ValueError(
                    f"{where}: expected a Linear, Conv1D or Embedding layer {module!r} in the base, found {kind}; "
                    "the adapter belongs to another base model"
                )
            found = (factors.a.shape[1], factors.b.shape[0])
            if found != expected:
                reason = (
                    "its vocabulary differs"
                    if factors.embedding
                    else "it belongs to another base model"
                )
                raise ValueError(
                    f"{where}: expected (inputs, outputs) {expected} in {module}, found {found}; {reason}"
                )
        for layer in expert.base_copies:
            copied = _read_tensors(expert.folder, where)[
                f"base_model.model.{layer}.base_layer.weight"
            ]
            own = getattr(layers.get(layer), "weight", None)  # containers have none
            own = (
                own.detach().to("cpu", torch.float32)
                if isinstance(own, torch.Tensor)
                else torch.empty(0)
            )
            # The tolerance is that of bfloat16, in which the copy or the base may have been stored.
            if copied.shape != own.shape or not torch.allclose(copied, own, rtol=1e-2, atol=1e-4):
                raise ValueError(
                    f"{where}: expected the saved copy of {layer} to equal the base, found other weights; "
                    "train the adapter without changing the vocabulary"
                )
        _check_vocabulary(expert, tokenizer, where)


def _check_vocabulary(expert: Expert, tokenizer, where: str) -> None:
    path = expert.folder / "tokenizer.json"
    if tokenizer is None or not path.is_file():
        return
    from tokenizers import Tokenizer

    try:
        own = Tokenizer.from_file(str(path)).get_vocab(with_added_tokens=True)
    except Exception as error:  # the library has no type of its own
        raise ValueError(
            f"{where}: expected a tokenizer in tokenizer.json, found {error}"
        ) from error
    vocabulary = tokenizer.get_vocab()
    if own != vocabulary:
        differing = len(set(own.items()) ^ set(vocabulary.items()))
        raise ValueError(
            f"{where}: expected the vocabulary of the base, found a tokenizer that differs in {differing} tokens; "
            "use the base that this adapter was trained on"
        )
