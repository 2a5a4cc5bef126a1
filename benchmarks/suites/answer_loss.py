"""The training loss of experts, shared by the scripts that train them."""

import torch

from evox_evogm.problems.inference.language_model import Request


def answer_loss(model: torch.nn.Module, batch: list[Request]) -> torch.Tensor:
    """Mean negative log-likelihood in nats per answer token; prompts are read, not learnt.

    :param model: a transformers causal LM, with or without an adapter of peft's around it.
    :param batch: tokens of prompts and answers.
    :return: a `()` tensor.
    """
    rows = [torch.tensor(prompt + answer) for prompt, answer in batch]
    # Padded at the end, which changes nothing before it: attention is causal.
    tokens = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)  # (N, C)
    scored = torch.zeros_like(tokens, dtype=torch.bool)
    for row, (prompt, answer) in zip(scored, batch, strict=True):
        row[len(prompt) : len(prompt) + len(answer)] = True
    bare = model.get_base_model() if hasattr(model, "get_base_model") else model
    hidden = bare.base_model(input_ids=tokens).last_hidden_state[:, :-1]  # (N, C - 1, D)
    logits = bare.get_output_embeddings()(hidden[scored[:, 1:]])
    return torch.nn.functional.cross_entropy(logits.float(), tokens[scored])
