"""Batched scoring and decoding beside one unpadded forward pass, or one `generate`, per example."""

from copy import deepcopy

import pytest
import torch
from builders import build_model, record_passes

from evox_evogm.problems.inference.language_model import LanguageModel

pytestmark = pytest.mark.language_model

PROMPTS = ["a", "What is it?", "Question: 12\nAnswer:", "zz top"]
ANSWERS = ["b c", "yes", " 12 ", "no"]


@torch.no_grad()
def plain_logits(model, prompt, continuation):
    """The logits at the tokens of a continuation, by one unpadded pass."""
    logits = model(torch.tensor([[*prompt, *continuation]])).logits
    return logits[0, len(prompt) - 1 : -1]


def plain_log_probability(model, prompt, continuation):
    scores = plain_logits(model, prompt, continuation).log_softmax(-1)
    return sum(scores[place, token] for place, token in enumerate(continuation))


def plain_reply(model, prompt, max_new_tokens, end=None):
    """The tokens of a greedy reply, by transformers' own `generate`."""
    tokens = torch.tensor([prompt])
    reply = model.generate(tokens, max_new_tokens=max_new_tokens, do_sample=False, eos_token_id=end)
    return tuple(reply[0, len(prompt) :].tolist())


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
@pytest.mark.parametrize("batch_tokens", [1, 60, 4096])
def test_likelihoods_equal_one_forward_pass_per_request(architecture, batch_tokens, tokenizer):
    model = build_model(architecture)
    scorer = LanguageModel(model, tokenizer, batch_tokens=batch_tokens)
    requests = []
    for prompt, answer in zip(PROMPTS, ANSWERS, strict=True):
        prompt_tokens, answer_tokens = scorer.request(prompt, answer)
        requests.append((prompt_tokens, (*answer_tokens, scorer.end_token)))
    # A continuation that greedy decoding would choose in whole, so that both outcomes occur.
    prompt = scorer.prompt_tokens("hello")
    requests.append((prompt, plain_reply(model, prompt, 3)))
    result = scorer.likelihoods(requests)
    for row, (prompt, continuation) in enumerate(requests):
        expected = float(plain_log_probability(model, prompt, continuation))
        assert result.log_probability[row] == pytest.approx(expected, abs=1e-4)
        leads = []
        misses = []
        for place, logits in enumerate(plain_logits(model, prompt, continuation)):
            token = continuation[place]
            others = torch.cat([logits[:token], logits[token + 1 :]])
            leads.append(float(logits[token] - others.max()))
            if logits.argmax() != token:
                misses.append((place, int(logits.argmax())))
        first_miss, missed_token = misses[0] if misses else (len(continuation), -1)
        assert result.first_miss[row] == first_miss
        assert result.missed_token[row] == missed_token
        assert result.margin[row] == pytest.approx(min(leads), abs=1e-4)
    assert result.first_miss[-1] == 3 and result.margin[-1] > 0


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
@pytest.mark.parametrize("batch_tokens", [1, 4096])
def test_generated_texts_equal_generate_one_prompt_at_a_time(architecture, batch_tokens, tokenizer):
    model = build_model(architecture)
    scorer = LanguageModel(model, tokenizer, batch_tokens=batch_tokens)
    prompts = [scorer.prompt_tokens(prompt) for prompt in PROMPTS]
    expected = []
    for prompt in prompts:
        reply = plain_reply(model, prompt, 6, end=scorer.end_token)
        expected.append(tokenizer.decode(reply, skip_special_tokens=True))
    assert scorer.generate(prompts, 6) == expected
    assert any(expected)


def test_rows_that_have_ended_leave_the_batch_and_nothing_is_read_after_the_end(tokenizer):
    model = build_model()
    prompts = [LanguageModel(model, tokenizer).prompt_tokens(prompt) for prompt in PROMPTS]
    endless = [plain_reply(model, prompt, 6) for prompt in prompts]
    end = endless[0][2]
    tokenizer = deepcopy(tokenizer)
    tokenizer.eos_token = tokenizer.convert_ids_to_tokens(end)
    scorer = LanguageModel(model, tokenizer)
    passes = record_passes(scorer)
    texts = scorer.generate(prompts, 6)
    steps = []  # of each row: a token and perhaps the end
    for reply, text in zip(endless, texts, strict=True):
        length = reply.index(end) if end in reply else 6
        assert text == tokenizer.decode(reply[:length], skip_special_tokens=True)
        steps.append(min(length + 1, 6))
    running = []
    for step in range(max(steps)):
        running.append(sum(count > step for count in steps))
    assert [rows for rows, _ in passes] == running
    assert min(steps) < max(steps)


def test_forced_tokens_begin_a_text_and_count_as_new(tokenizer):
    model = build_model()
    scorer = LanguageModel(model, tokenizer)
    prompts = [scorer.prompt_tokens(prompt) for prompt in PROMPTS]
    forced = [(), (66,), (66, 67), (66, 67, 68, 69)]
    expected = []
    for prompt, tokens in zip(prompts, forced, strict=True):
        room = 4 - len(tokens)
        reply = plain_reply(model, prompt + tokens, room, scorer.end_token) if room else ()
        expected.append(tokenizer.decode(tokens + reply, skip_special_tokens=True))
    assert scorer.generate(prompts, 4, forced_tokens=forced) == expected


def test_a_text_ends_where_it_should_stop(tokenizer):
    scorer = LanguageModel(build_model(), tokenizer)
    prompts = [scorer.prompt_tokens(prompt) for prompt in PROMPTS]
    whole = scorer.generate(prompts, 6)
    limits = [1, 2, 3, 100]
    texts = scorer.generate(prompts, 6, should_stop=lambda row, text: len(text) >= limits[row])
    for text, longer, limit in zip(texts, whole, limits, strict=True):
        assert longer.startswith(text)
        assert len(text) >= min(limit, len(longer))
    assert texts[0] != whole[0] and texts[3] == whole[3]


def test_nan_is_refused_while_decoding(tokenizer):
    model = build_model()
    with torch.no_grad():
        model.lm_head.weight[5] = float("nan")
    scorer = LanguageModel(model, tokenizer)
    with pytest.raises(ArithmeticError, match="expected logits, found NaN"):
        scorer.generate([scorer.prompt_tokens("a")], 3)


@pytest.mark.parametrize("batch_tokens", [1, 40, 4096])
def test_single_tokens_of_one_prompt_are_scored_as_separate_requests_would_be(
    batch_tokens, tokenizer
):
    scorer = LanguageModel(build_model(), tokenizer, batch_tokens=batch_tokens)
    prompts = [scorer.prompt_tokens(prompt) for prompt in PROMPTS]
    tokens = [[5, 9], [7], [1, 2, 3], [250, 11]]
    result = scorer.next_token_log_probabilities(prompts, tokens)
    for prompt, row, found in zip(prompts, tokens, result, strict=True):
        expected = [plain_log_probability(scorer.model, prompt, (token,)) for token in row]
        torch.testing.assert_close(found, torch.stack(expected), rtol=0, atol=1e-4)


def test_every_end_token_of_the_models_generation_settings_ends_a_text(tokenizer):
    model = build_model()
    scorer = LanguageModel(model, tokenizer)
    prompt = scorer.prompt_tokens("What is it?")
    endless = plain_reply(model, prompt, 6)
    other = endless[2]
    model.generation_config.eos_token_id = [0, other]
    assert scorer.end_tokens == {0, other}
    reply = endless[: endless.index(other)]
    assert scorer.generate([prompt], 6) == [tokenizer.decode(reply, skip_special_tokens=True)]


def test_candidates_are_selected_inside_the_block_only(tokenizer):
    scorer = LanguageModel(build_model(), tokenizer)
    requests = [(scorer.prompt_tokens(prompt), (66, 67)) for prompt in PROMPTS]
    selected = []
    with scorer.candidates(lambda candidates, output_rows: selected.append(candidates)):
        scorer.likelihoods(requests, [3, 1, 0, 2])
    assert sorted(sum(selected, [])) == [0, 1, 2, 3]
    selected.clear()
    scorer.likelihoods(requests)
    assert selected == []


def test_another_forward_pass_leaves_the_first_model_as_it_is(tokenizer):
    scorer = LanguageModel(build_model(), tokenizer, batch_tokens=77)
    passes = record_passes(scorer)
    other = scorer.with_forward(LanguageModel(build_model(), tokenizer).forward)
    other.next_token_log_probabilities([(5, 6)], [[7]])
    assert passes == [] and other.batch_tokens == 77
    scorer.next_token_log_probabilities([(5, 6)], [[7]])
    assert passes == [(1, 2)]
