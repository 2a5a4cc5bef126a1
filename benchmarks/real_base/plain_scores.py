"""Scores of examples one at a time, with transformers and peft alone.

Nothing here knows the package: no batches, padding, caches of ours, or metrics. A task is read as
data only: prompts, targets, choices, and how they are scored.
"""

import torch


def load_plain(base, adapter):
    """A base in float32 with an adapter on it, and the tokenizer, as a user loads them.

    :param base: the folder of the base.
    :param adapter: the folder of the adapter.
    """
    return load_plain_merge(base, {"default": adapter})


def load_plain_merge(base, adapters):
    """A base in float32 with several adapters for `add_weighted_adapter`, and the tokenizer.

    :param base: the folder of the base.
    :param adapters: the folders of the adapters, by name.
    """
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    (first, folder), *others = adapters.items()
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    model = PeftModel.from_pretrained(model, folder, adapter_name=first)
    for name, path in others:
        model.load_adapter(path, adapter_name=name)
    return model.eval(), AutoTokenizer.from_pretrained(base)


@torch.no_grad()
def plain_score(model, tokenizer, task, example) -> float:
    """The score of one example.

    :param model: a causal language model of transformers or peft.
    :param task: with `metric`, `chat`, `max_new_tokens` and `continuation`.
    :param example: with `prompt`, `target` and `choices`.
    """
    text = prompt_text(tokenizer, example.prompt, task.chat)
    blank = "" if task.chat else " "  # before an answer
    if task.metric == "exact_match":
        answer = generate(model, tokenizer, text, task)
        return float(answer.strip() == example.target.strip())
    if task.metric == "gold_log_probability":
        answer = example.target
        if example.choices and task.continuation == "text":
            answer = dict(example.choices)[example.target]
        return float(log_probabilities(model, tokenizer, text, blank + answer).mean())
    if task.metric != "choice_likelihood":
        raise ValueError(f"task {task.name!r}: expected another metric, found {task.metric!r}")
    sums = {}
    for key, choice in example.choices:
        continuation = key if task.continuation == "key" else choice
        found = log_probabilities(model, tokenizer, text, blank + continuation)
        sums[key] = float(found.sum())
    return float(max(sums, key=sums.get) == example.target)


def prompt_text(tokenizer, prompt: str, chat: bool) -> str:
    """The text that the model continues: the prompt, or the chat in which it is the question."""
    if not chat:
        return prompt
    messages = [{"role": "user", "content": prompt}]
    return tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)


def generate(model, tokenizer, text: str, task) -> str:
    """The greedy answer to a prompt, as text."""
    inputs = tokenizer(text, add_special_tokens=not task.chat, return_tensors="pt")
    output = model.generate(**inputs, do_sample=False, max_new_tokens=task.max_new_tokens)
    return tokenizer.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)


def log_probabilities(model, tokenizer, text: str, continuation: str) -> torch.Tensor:
    """Log-probabilities in nats of the tokens of a continuation."""
    prompt = tokenizer(text)["input_ids"]
    whole = tokenizer(text + continuation, return_tensors="pt")["input_ids"]  # (1, C)
    logits = model(whole).logits[0]  # (C, V)
    given = torch.log_softmax(logits[:-1].double(), -1)  # (C - 1, V), of the next tokens
    every = given.gather(-1, whole[0, 1:, None])[:, 0]
    return every[len(prompt) - 1 :]
