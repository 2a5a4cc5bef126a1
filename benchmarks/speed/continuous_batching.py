"""Is transformers' continuous batching a faster way to long answers, and does it write the same?

SmolLM2-135M answers prompts of different length with 200 new tokens at most, by
`LanguageModel.generate`, by `generate_batch` of transformers, and by plain `generate` of each
prompt alone. Texts are compared token by token; the end of text ends an answer in all three.
Processor seconds of one thread. At most three minutes.

    OMP_NUM_THREADS=1 python -m benchmarks.speed.continuous_batching [--prompts 4] [--tokens 200]
"""

import argparse
import time
from collections.abc import Sequence

import torch

from evox_evogm.problems.inference.base_model import load_base, ready_to_score
from evox_evogm.problems.inference.language_model import LanguageModel
from evox_evogm.problems.tasks.readers import read_reasoning_gym

BASE = "smollm2-135m-instruct"
TASKS = ("syllogism", "basic_arithmetic")  # long prompts and short ones
# By default the cache takes what the machine has free: 12 GiB before the kernel ended a try.
BLOCKS = 4  # of 256 tokens of the cache, for each prompt
PASS_TOKENS = 256
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def prompts_of(model: LanguageModel, count: int) -> list[list[int]]:
    """Prompts of different length, in tokens."""
    prompts = []
    for name in TASKS:
        dev, _ = read_reasoning_gym(name, dev=-(-count // len(TASKS)), test=1)
        prompts += [list(model.prompt_tokens(example.prompt)) for example in dev.examples]
    return prompts[:count]


def by_us(model: LanguageModel, prompts: Sequence[list[int]], tokens: int) -> list[str]:
    """The greedy texts of our own decoding."""
    return model.generate(prompts, tokens)


def by_generate_batch(model: LanguageModel, prompts: Sequence[list[int]], tokens: int) -> list[str]:
    """The greedy texts of transformers' continuous batching."""
    from transformers import ContinuousBatchingConfig, GenerationConfig

    settings = GenerationConfig(
        max_new_tokens=tokens,
        do_sample=False,
        eos_token_id=sorted(model.end_tokens),
        pad_token_id=model.pad_id,
    )
    outputs = model.model.generate_batch(
        inputs=[list(prompt) for prompt in prompts],
        generation_config=settings,
        continuous_batching_config=ContinuousBatchingConfig(
            num_blocks=BLOCKS * len(prompts), max_batch_tokens=PASS_TOKENS
        ),
        warmup=False,
    )
    texts = []
    for output in sorted(outputs.values(), key=lambda one: int(one.request_id.split("_")[-1])):
        if output.error is not None:
            raise RuntimeError(output.error)
        texts.append(model.decode(output.generated_tokens))
    return texts


def one_by_one(model: LanguageModel, prompts: Sequence[list[int]], tokens: int) -> list[str]:
    """The greedy texts of plain transformers."""
    texts = []
    for prompt in prompts:
        given = torch.tensor([prompt])
        found = model.model.generate(
            input_ids=given,
            attention_mask=torch.ones_like(given),
            max_new_tokens=tokens,
            do_sample=False,
            eos_token_id=sorted(model.end_tokens),
            pad_token_id=model.pad_id,
        )
        texts.append(model.decode(found[0, len(prompt) :].tolist()))
    return texts


WAYS = {"ours": by_us, "generate_batch": by_generate_batch, "one by one": one_by_one}


def main() -> None:
    """Print a row for each way."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--prompts", type=int, default=4)
    parser.add_argument("--tokens", type=int, default=200)
    parser.add_argument("--ways", nargs="+", choices=list(WAYS), default=list(WAYS))
    parser.add_argument("--dtype", choices=list(DTYPES), default="float32")
    args = parser.parse_args()
    torch.set_num_threads(1)
    base = load_base(BASE, dtype=DTYPES[args.dtype], device=torch.device("cpu"))
    model = LanguageModel(*base)
    prompts = prompts_of(model, args.prompts)
    lengths = ", ".join(str(len(prompt)) for prompt in prompts)
    print(
        f"{BASE}, {args.dtype}, prompts of {lengths} tokens, {args.tokens} new tokens", flush=True
    )
    texts: dict[str, list[str]] = {}
    for name in args.ways:
        start = time.process_time()
        try:
            with ready_to_score(model.model):
                texts[name] = WAYS[name](model, prompts, args.tokens)
        except Exception as error:  # what it raises is the result
            print(f"{name:15} {type(error).__name__}: {error}", flush=True)
            continue
        seconds = time.process_time() - start
        reference = next(iter(texts))  # the first way that wrote any
        same = [one == other for one, other in zip(texts[name], texts[reference], strict=True)]
        print(
            f"{name:15} {seconds:7.1f} s   {sum(same)} of {len(same)} texts as by {reference}",
            flush=True,
        )


if __name__ == "__main__":
    main()
