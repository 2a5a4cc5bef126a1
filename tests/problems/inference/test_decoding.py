"""Rows that decode together: prompts in several passes, and rows that leave in steps."""

from copy import deepcopy

import pytest
import torch
from builders import build_model, record_passes

from evox_evogm.problems.inference.batch_sizes import BatchSizes
from evox_evogm.problems.inference.decoding import decode_greedily, most_likely_tokens
from evox_evogm.problems.inference.language_model import LanguageModel
from evox_evogm.problems.inference.prefix_cache import may_join_caches
from evox_evogm.problems.inference.prepared_batches import prepare_batches
from evox_evogm.problems.inference.shared_prefixes import Row

pytestmark = pytest.mark.language_model

PROMPTS = ["ask", "ask me", "ask me now", "tell me all of it", "so", "what is that"]
SHARED = [f"a question with a long beginning: {end}" for end in ("a", "bc", "def", "g")]
NEW = 6


def build(architecture):
    if architecture != "mistral":
        return build_model(architecture)
    from transformers import MistralConfig, MistralForCausalLM

    torch.manual_seed(7)
    shape = {"vocab_size": 257, "hidden_size": 16, "intermediate_size": 32, "head_dim": 4}
    shape |= {"num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
    config = MistralConfig(sliding_window=9, initializer_range=0.3, eos_token_id=0, **shape)
    return MistralForCausalLM(config).eval()


def plain_texts(model, tokenizer, prompts, end):
    """What `generate` of transformers gives, one prompt at a time."""
    texts = []
    for prompt in prompts:
        given = torch.tensor([prompt])
        mask = torch.ones_like(given)
        settings = {"do_sample": False, "eos_token_id": end, "pad_token_id": 0}
        reply = model.generate(given, attention_mask=mask, max_new_tokens=NEW, **settings)
        texts.append(tokenizer.decode(reply[0, len(prompt) :], skip_special_tokens=True))
    return texts


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "gemma", "mistral"])
@pytest.mark.parametrize("texts", [PROMPTS, SHARED], ids=["alone", "shared"])
def test_prompts_in_several_passes_decode_together_as_one_at_a_time(architecture, texts, tokenizer):
    model = build(architecture)
    scorer = LanguageModel(model, tokenizer, batch_tokens=BatchSizes(20, 100, 10**6, 10**6))
    prompts = [scorer.prompt_tokens(text) for text in texts]
    expected = plain_texts(model, tokenizer, prompts, scorer.end_token)
    passes = record_passes(scorer)
    assert scorer.generate(prompts, NEW) == expected and any(expected)
    assert all(rows * width <= 20 or rows == 1 for rows, width in passes if width > 1)
    if architecture != "mistral" or texts is PROMPTS:  # padding would push tokens out of its window
        assert (len(prompts), 1) in passes


def test_rows_that_decode_together_are_as_many_as_was_measured(tokenizer):
    model = build_model()
    model.generation_config.eos_token_id = 256
    scorer = LanguageModel(model, tokenizer, batch_tokens=BatchSizes(1000, 2))
    prompts = [scorer.prompt_tokens(text) for text in PROMPTS]
    passes = record_passes(scorer)
    scorer.generate(prompts, NEW)
    assert max(rows for rows, width in passes if width == 1) == 2


def test_caches_of_recurrent_layers_are_not_joined(tokenizer):
    from transformers import MambaConfig, MambaForCausalLM

    config = MambaConfig(vocab_size=257, hidden_size=16, state_size=4, num_hidden_layers=2)
    recurrent = LanguageModel(MambaForCausalLM(config).eval(), tokenizer)
    assert not may_join_caches(recurrent.forward)
    assert may_join_caches(LanguageModel(build_model(), tokenizer).forward)


def decode(model, tokenizer, end, least_ended):
    """The replies to all prompts in one batch, and the sizes of its passes."""
    scorer = LanguageModel(model, tokenizer)
    rows = []
    for text in PROMPTS:
        tokens = scorer.prompt_tokens(text)
        rows.append(Row(tokens, 0, shareable=0))
    passes = record_passes(scorer)
    replies = [[] for _ in rows]
    (batch,) = prepare_batches(rows, scorer.forward, scorer.batching, max_new_tokens=NEW)
    decode_greedily(
        batch,
        scorer.forward,
        replies,
        end_tokens={end},
        is_complete=lambda row: len(replies[row]) >= NEW - row,
        least_ended=least_ended,
    )
    return replies, passes


def test_rows_leave_once_enough_have_ended_and_no_reply_changes(tokenizer):
    """Row 5 ends after one token, row 4 after two, and so on."""
    model = build_model()
    at_once, one_by_one = decode(model, deepcopy(tokenizer), -5, 0.0)
    in_steps, fewer = decode(model, deepcopy(tokenizer), -5, 0.5)
    assert in_steps == at_once
    assert [len(reply) for reply in at_once] == [6, 5, 4, 3, 2, 1]
    assert [rows for rows, width in one_by_one] == [6, 5, 4, 3, 2, 1]
    assert [rows for rows, width in fewer] == [6, 6, 6, 3, 3, 1]


def test_the_token_behind_nan_has_no_number():
    nan = float("nan")
    logits = torch.tensor([[1.0, 3.0, 2.0], [0.0, nan, 5.0], [nan, nan, nan]])
    assert most_likely_tokens(logits).tolist() == [1, -1, -1]
