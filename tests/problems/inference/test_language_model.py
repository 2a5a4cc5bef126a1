"""Batched scoring and decoding beside one unpadded forward pass, or one `generate`, per example."""

import pytest
import torch
from builders import build_model

from evox_evogm.problems.inference.language_model import LanguageModel

PROMPTS = ["a", "What is it?", "Question: 12\nAnswer:", "zz top"]
ANSWERS = ["b c", "yes", " 12 ", "no"]


@torch.no_grad()
def plain_likelihood(model, prompt, continuation):
    logits = (
        model(torch.tensor([[*prompt, *continuation]]))
        .logits[0, len(prompt) - 1 : -1]
        .log_softmax(-1)
    )
    return logits[range(len(continuation)), list(continuation)].sum(), logits.argmax(-1)


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
@pytest.mark.parametrize("batch_tokens", [1, 60, 4096])
def test_likelihoods_equal_one_forward_pass_per_request(architecture, batch_tokens, tokenizer):
    model = build_model(architecture)
    scorer = LanguageModel(model, tokenizer, batch_tokens=batch_tokens)
    requests = [
        (scorer.prompt_tokens(p), (*scorer.continuation_tokens(a), scorer.end_token))
        for p, a in zip(PROMPTS, ANSWERS, strict=True)
    ]
    # A continuation that greedy decoding would choose in whole, so that both outcomes occur.
    prompt = scorer.prompt_tokens("hello")
    reply = model.generate(
        torch.tensor([prompt]), max_new_tokens=3, do_sample=False, eos_token_id=None
    )[0, len(prompt) :]
    requests.append((prompt, tuple(reply.tolist())))
    result = scorer.likelihoods(requests)
    for row, (prompt, continuation) in enumerate(requests):
        expected, choices = plain_likelihood(model, prompt, continuation)
        assert result.log_probability[row] == pytest.approx(float(expected), abs=1e-4)
        misses = [
            i for i, (a, b) in enumerate(zip(choices.tolist(), continuation, strict=True)) if a != b
        ]
        assert result.first_miss[row] == (misses[0] if misses else len(continuation))
        assert result.missed_token[row] == (choices[misses[0]] if misses else -1)
        logits = model(torch.tensor([[*prompt, *continuation]])).logits[0, len(prompt) - 1 : -1]
        others = logits.scatter(1, torch.tensor(continuation)[:, None], -torch.inf).amax(1)
        ahead = logits[range(len(continuation)), list(continuation)] - others
        assert result.margin[row] == pytest.approx(float(ahead.min()), abs=1e-4)
    assert result.first_miss[-1] == 3 and result.margin[-1] > 0


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
@pytest.mark.parametrize("batch_tokens", [1, 4096])
def test_generated_texts_equal_generate_one_prompt_at_a_time(architecture, batch_tokens, tokenizer):
    model = build_model(architecture)
    scorer = LanguageModel(model, tokenizer, batch_tokens=batch_tokens)
    prompts = [scorer.prompt_tokens(p) for p in PROMPTS]
    expected = []
    for prompt in prompts:
        reply = model.generate(
            torch.tensor([prompt]), max_new_tokens=6, do_sample=False, eos_token_id=scorer.end_token
        )
        expected.append(tokenizer.decode(reply[0, len(prompt) :], skip_special_tokens=True))
    assert scorer.generate(prompts, 6) == expected
    assert any(expected)


def test_rows_that_have_ended_leave_the_batch_and_nothing_is_read_after_the_end(
    tokenizer, monkeypatch
):
    model = build_model()
    scorer = LanguageModel(model, tokenizer)
    prompts = [scorer.prompt_tokens(p) for p in PROMPTS]
    endless = [
        model.generate(
            torch.tensor([prompt]), max_new_tokens=6, do_sample=False, eos_token_id=None
        )[0, len(prompt) :].tolist()
        for prompt in prompts
    ]
    end = endless[0][2]
    monkeypatch.setattr(LanguageModel, "end_token", property(lambda self: end))
    forward, rows = scorer._forward, []
    scorer._forward = lambda asked, *rest: rows.append(len(asked)) or forward(asked, *rest)
    expected = [reply[: reply.index(end)] if end in reply else reply for reply in endless]
    assert scorer.generate(prompts, 6) == [
        tokenizer.decode(reply, skip_special_tokens=True) for reply in expected
    ]
    lengths = [len(reply) + (len(reply) < 6) for reply in expected]
    assert rows == [sum(length > step for length in lengths) for step in range(max(lengths))]
    assert min(lengths) < max(lengths)


def test_chat_prompts_go_through_the_template_and_answers_start_the_reply(tokenizer):
    from copy import deepcopy

    tokenizer = deepcopy(tokenizer)
    tokenizer.chat_template = (
        "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}<reply>"
    )
    scorer = LanguageModel(build_model(), tokenizer)
    assert scorer.decode(scorer.prompt_tokens("hi", chat=True)) == "<user>hi<reply>"
    assert scorer.decode(scorer.continuation_tokens("yes", chat=True)) == "yes"
    assert scorer.decode(scorer.continuation_tokens("yes")) == " yes"


def test_a_chat_prompt_without_a_template_is_refused(tokenizer):
    with pytest.raises(ValueError, match="chat prompts, but its tokenizer has no chat template"):
        LanguageModel(build_model(), tokenizer).prompt_tokens("hi", chat=True)


@torch.no_grad()
@pytest.mark.parametrize("batch_tokens", [1, 40, 4096])
def test_single_tokens_of_one_prompt_are_scored_as_separate_requests_would_be(
    batch_tokens, tokenizer
):
    scorer = LanguageModel(build_model(), tokenizer, batch_tokens=batch_tokens)
    prompts = [scorer.prompt_tokens(p) for p in PROMPTS]
    tokens = [[5, 9], [7], [1, 2, 3], [250, 11]]
    result = scorer.next_token_log_probabilities(prompts, tokens)
    for prompt, row, found in zip(prompts, tokens, result, strict=True):
        expected = torch.stack(
            [plain_likelihood(scorer.model, prompt, (token,))[0] for token in row]
        )
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("room", [0, 40])
def test_batches_stay_within_the_memory(tokenizer, room):
    scorer = LanguageModel(build_model(), tokenizer, batch_tokens=10**6)
    parts = [tuple(range(length)) for length in (30, 29, 29, 12, 12, 11, 3)]
    assert len(list(scorer._batches(parts, 2, kept=room))) < len(parts)
    memory = scorer.memory
    for limit in (1, 10**5, 10**6):
        scorer.max_memory = limit
        batches = list(scorer._batches(parts, 2, kept=room))
        assert sorted(sum(batches, [])) == list(range(7))
        for batch in batches:
            width = max(len(parts[row]) for row in batch)
            need = len(batch) * (
                width * memory.token + (width + room) * memory.cached + 2 * memory.logits
            )
            assert need <= limit or len(batch) == 1
    assert (
        memory.token == 8 * 32 * 4 and memory.cached == 4 * 2 * 16 * 4 and memory.logits == 12 * 257
    )


def test_prompts_and_answers_without_a_token_are_refused(tokenizer):
    scorer = LanguageModel(build_model(), tokenizer)
    with pytest.raises(ValueError, match="expected prompts of at least one token, found ''"):
        scorer.prompt_tokens("")
    with pytest.raises(ValueError, match="expected answers of at least one token, found ''"):
        scorer.continuation_tokens("", chat=True)


def test_every_end_token_of_the_models_generation_settings_ends_a_text(tokenizer):
    model = build_model()
    scorer = LanguageModel(model, tokenizer)
    prompt = scorer.prompt_tokens("What is it?")
    (endless,) = model.generate(
        torch.tensor([prompt]), max_new_tokens=6, do_sample=False, eos_token_id=None
    )[:, len(prompt) :]
    other = int(endless[2])
    model.generation_config.eos_token_id = [0, other]
    assert scorer.end_tokens == {0, other}
    reply = endless[: endless.tolist().index(other)]
    assert scorer.generate([prompt], 6) == [tokenizer.decode(reply, skip_special_tokens=True)]
