"""Prompts and answers as tokens, beside one text that the tokenizer gets as a whole."""

from copy import deepcopy

import pytest
import torch
from builders import build_model, build_tokenizer
from tokenizer_kinds import (
    CLASSES,
    KINDS,
    TEMPLATE,
    build_kind,
    fast,
    read_by_class,
    sentencepiece_core,
    with_both_ends,
)

from evox_evogm.problems.inference.language_model import LanguageModel
from evox_evogm.problems.inference.prompts import Prompts
from evox_evogm.problems.tasks.choices import choice_log_probabilities
from evox_evogm.problems.tasks.exact_match import exact_match, generated_match
from evox_evogm.problems.tasks.metrics import score_task
from evox_evogm.problems.tasks.requests import requests_of
from evox_evogm.problems.tasks.task import Example, Task

EVERY_KIND = pytest.mark.parametrize("kind", [*KINDS, *CLASSES])
QUESTIONS = ["Question: which river?\nAnswer:", "is it yes or no:", "the longest?"]
CHOICES = (("A", "yes"), ("B", "no, maybe"), ("C", "the river"), ("D", "Is"))


@pytest.fixture
def tokenizer_of_kind(kind, tmp_path):
    return build_kind(kind, tmp_path)


def model_for(tokenizer):
    return build_model(vocab_size=len(tokenizer), eos_token_id=tokenizer.eos_token_id)


def whole_tokens(tokenizer, text, *, chat):
    """The tokens of a text, without an end of text that the tokenizer appends."""
    tokens = tokenizer(text, add_special_tokens=not chat)["input_ids"]
    return tokens[:-1] if tokens[-1] == tokenizer.eos_token_id else tokens


def text_of(tokenizer, question, *, chat):
    if not chat:
        return question
    messages = [{"role": "user", "content": question}]
    return tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)


@torch.no_grad()
def plain_scores(model, tokenizer, question, answer, *, chat):
    """The log-probability of each token of an answer, by one pass over the joined text."""
    text = text_of(tokenizer, question, chat=chat)
    prompt = whole_tokens(tokenizer, text, chat=chat)
    whole = whole_tokens(tokenizer, text + (answer if chat else f" {answer}"), chat=chat)
    assert whole[: len(prompt)] == prompt and len(whole) > len(prompt)
    logits = model(torch.tensor([whole])).logits[0].log_softmax(-1)
    return [float(logits[i - 1, whole[i]]) for i in range(len(prompt), len(whole))]


@torch.no_grad()
def plain_reply(model, tokenizer, question, count, *, chat):
    """The text of a greedy answer, every token by a whole pass."""
    tokens = whole_tokens(tokenizer, text_of(tokenizer, question, chat=chat), chat=chat)
    reply = []
    while len(reply) < count:
        token = int(model(torch.tensor([tokens + reply])).logits[0, -1].argmax())
        if token == tokenizer.eos_token_id:
            break
        reply.append(token)
    return tokenizer.decode(reply, skip_special_tokens=True)


@pytest.mark.language_model
@pytest.mark.parametrize("chat", [False, True])
@EVERY_KIND
def test_likelihoods_are_those_of_the_joined_text(tokenizer_of_kind, chat):
    tokenizer = tokenizer_of_kind
    model = model_for(tokenizer)
    scorer = LanguageModel(model, tokenizer)
    for continuation in ("key", "text"):
        examples = []
        expected = []
        for number, question in enumerate(QUESTIONS):
            sums = []
            for key, text in CHOICES:
                answer = key if continuation == "key" else text
                scores = plain_scores(model, tokenizer, question, answer, chat=chat)
                sums.append(sum(scores))
            best = CHOICES[max(range(4), key=sums.__getitem__)][0]
            expected.append(torch.tensor(sums))
            examples.append(Example(str(number), question, best, CHOICES))
        settings = {"continuation": continuation, "chat": chat}
        task = Task("t", "1", "choice_likelihood", tuple(examples), **settings)
        for found, sums in zip(choice_log_probabilities(task, scorer), expected, strict=True):
            torch.testing.assert_close(found, sums, rtol=0, atol=1e-4)
        assert score_task(task, scorer).tolist() == [1.0] * len(QUESTIONS)
        golds = []
        for example in examples:
            answer = example.target if continuation == "key" else dict(CHOICES)[example.target]
            scores = plain_scores(model, tokenizer, example.prompt, answer, chat=chat)
            golds.append(sum(scores) / len(scores))
        task = Task("t", "1", "gold_log_probability", tuple(examples), **settings)
        torch.testing.assert_close(score_task(task, scorer), torch.tensor(golds), rtol=0, atol=1e-4)


@pytest.mark.language_model
@pytest.mark.parametrize("chat", [False, True])
@EVERY_KIND
def test_an_exact_match_is_what_greedy_decoding_gives(tokenizer_of_kind, chat):
    tokenizer = tokenizer_of_kind
    model = model_for(tokenizer)
    scorer = LanguageModel(model, tokenizer)
    examples = []
    expected = []
    for question in QUESTIONS:
        reply = plain_reply(model, tokenizer, question, 4, chat=chat)
        for target in (reply, "yes", "Yes", reply[:-1], reply.upper()):
            if target.strip():
                expected.append(float(reply.strip() == target.strip()))
                examples.append(Example(str(len(examples)), question, target))
    task = Task("t", "1", "exact_match", tuple(examples), max_new_tokens=4, chat=chat)
    assert generated_match(task, scorer).tolist() == expected
    assert exact_match(task, scorer).tolist() == expected
    assert 0 < sum(expected) < len(expected)


def test_a_target_that_the_tokenizer_cannot_write_is_never_matched(tmp_path):
    tokenizer = build_kind("WordPiece", tmp_path)
    model = model_for(tokenizer)
    scorer = LanguageModel(model, tokenizer)
    # A head that always chooses "yes", then the end.
    yes = tokenizer.convert_tokens_to_ids("yes")
    with torch.no_grad():
        for weight in model.parameters():
            weight.zero_()
        model.model.norm.weight.fill_(1.0)
        model.model.embed_tokens.weight[:, 0] = 1.0
        model.model.embed_tokens.weight[yes, 0] = -1.0
        model.lm_head.weight[yes, 0] = 1.0
        model.lm_head.weight[tokenizer.eos_token_id, 0] = -1.0
    examples = (Example("0", "which?", "yes"), Example("1", "which?", "Yes"))
    task = Task("t", "1", "exact_match", examples)
    assert scorer.generate([scorer.prompt_tokens("which?")], 4) == ["yes"]
    assert exact_match(task, scorer).tolist() == [1.0, 0.0]
    assert generated_match(task, scorer).tolist() == [1.0, 0.0]


def test_a_byte_level_answer_has_the_tokens_that_it_has_alone():
    prompts = Prompts(build_tokenizer())
    for chat, alone in ((False, " yes"), (True, "yes")):
        prompts.tokenizer.chat_template = TEMPLATE
        prompts = Prompts(prompts.tokenizer)
        prompt, answer = prompts.request("Answer:", "yes", chat=chat)
        assert prompt == prompts.tokens("Answer:", chat=chat)
        assert list(answer) == prompts.tokenizer(alone)["input_ids"]
        assert prompts.reply("Answer:", "yes", chat=chat) == answer


@EVERY_KIND
def test_blanks_at_the_end_of_a_prompt_belong_to_the_answer(tokenizer_of_kind):
    tokenizer = tokenizer_of_kind
    prompts = Prompts(tokenizer)
    for blanks in ("", " ", "\n\n"):
        text = f"the answer:{blanks} yes"
        prompt, answer = prompts.request(f"the answer:{blanks}", "yes")
        assert list(prompt) == whole_tokens(tokenizer, "the answer:", chat=False)
        assert list(prompt + answer) == whole_tokens(tokenizer, text, chat=False)
        assert not prompts.joins(f"the answer:{blanks}")


def test_in_a_chat_blanks_move_only_where_an_answer_joins_them():
    core = sentencepiece_core()
    tokenizer = fast(core, bos_token="<s>", eos_token="</s>")
    tokenizer.chat_template = "{{ messages[0].content }} reply: "
    prompts = Prompts(tokenizer)
    named = tokenizer.convert_ids_to_tokens
    both = prompts.requests("q", ["yes", "<no"], chat=True)
    for (prompt, answer), last in zip(both, ["yes", "<no"], strict=True):
        assert named(prompt)[-1] == ":"
        whole = tokenizer(f"q reply: {last}", add_special_tokens=False)["input_ids"]
        assert [*prompt, *answer] == whole
    tokenizer.chat_template = "{{ messages[0].content }} reply:{{ '\\n' }}"
    prompt, answer = Prompts(tokenizer).request("q", "yes", chat=True)
    assert named(prompt)[-1] == "<0x0A>" and named(answer) == ["y", "e", "s"]


def test_an_answer_that_joins_the_prompt_begins_behind_as_many_tokens():
    from tokenizers import Tokenizer, models

    vocabulary = {token: index for index, token in enumerate([" ", *"abcdef<>", "<end>"])}
    merges = [("c", " "), ("c ", "d")]
    for one, other in merges:
        vocabulary[one + other] = len(vocabulary)
    tokenizer = fast(Tokenizer(models.BPE(vocabulary, merges)), eos_token="<end>")
    prompts = Prompts(tokenizer)
    named = tokenizer.convert_ids_to_tokens
    prompt, answer = prompts.request("abc", "de")  # "a", "b", "c d", "e"
    assert (named(prompt), named(answer)) == (["a", "b", "c"], ["e"])
    assert prompts.joins("abc")
    # All of the answer has joined: what the two texts do not share is the answer.
    prompt, answer = prompts.request("abc", "d")
    assert (named(prompt), named(answer)) == (["a", "b"], ["c d"])
    # An exact match decodes from the whole prompt, whatever an answer would join.
    assert named(prompts.reply("abc", "de")) == [" ", "d", "e"]
    assert not prompts.joins("ab")


def test_what_a_tokenizer_appends_is_left_out_and_what_a_text_says_stays():
    prompts = Prompts(with_both_ends())
    named = prompts.tokenizer.convert_ids_to_tokens
    assert named(prompts.tokens("yes")) == ["<s>", "▁yes"]
    assert named(prompts.tokens("yes</s>")) == ["<s>", "▁yes", "</s>"]
    assert named(prompts.request("yes", "no")[1]) == ["▁no"]


def test_the_end_of_text_that_a_class_appends_is_left_out(tmp_path):
    settings = {"add_bos_token": True, "add_eos_token": True}
    tokenizer = read_by_class(tmp_path, with_both_ends(), "LlamaTokenizer", **settings)
    assert tokenizer("yes")["input_ids"][-1] == tokenizer.eos_token_id
    prompts = Prompts(tokenizer)
    named = tokenizer.convert_ids_to_tokens
    assert named(prompts.tokens("yes")) == ["<s>", "▁yes"]


def test_requests_of_training_hold_the_text_and_its_end():
    tokenizer = with_both_ends()
    scorer = LanguageModel(model_for(tokenizer), tokenizer)
    task = Task("t", "1", "exact_match", (Example("0", "is it yes?", "no"),))
    ((prompt, answer),) = requests_of(task, scorer)
    assert [*prompt, *answer] == tokenizer("is it yes? no")["input_ids"]


def test_prompts_and_answers_without_a_token_are_refused():
    tokenizer = build_tokenizer()
    tokenizer.chat_template = TEMPLATE
    prompts = Prompts(tokenizer)
    with pytest.raises(ValueError, match="expected prompts of at least one token, found ''"):
        prompts.tokens("")
    with pytest.raises(ValueError, match="expected answers of at least one token, found ''"):
        prompts.request("hi", "", chat=True)
    with pytest.raises(ValueError, match="expected answers of at least one token, found ''"):
        prompts.reply("hi", "", chat=True)


def test_a_tokenizer_without_an_end_of_text_is_refused():
    tokenizer = deepcopy(build_tokenizer())
    tokenizer.eos_token = None
    with pytest.raises(ValueError, match="expected a tokenizer with an end-of-text token"):
        LanguageModel(build_model(), tokenizer)


@pytest.mark.language_model
@pytest.mark.parametrize("added", ["[PAD]", None])
def test_any_token_with_a_row_pads(added):
    model, tokenizer = build_model(), build_tokenizer()
    plain = LanguageModel(model, tokenizer)
    requests = [plain.request(question, "yes") for question in QUESTIONS]
    expected = plain.likelihoods(requests).log_probability
    if added:
        tokenizer.add_special_tokens({"pad_token": added})  # without another row in the model
        assert tokenizer.pad_token_id == 257
    padded = LanguageModel(model, tokenizer)
    assert 0 <= padded.pad_id < 257
    torch.testing.assert_close(padded.likelihoods(requests).log_probability, expected)


def test_a_panic_of_the_tokenizer_library_is_an_error_of_one_sentence():
    import json

    from tokenizers import Tokenizer

    content = json.loads(build_tokenizer().backend_tokenizer.to_str())
    content["pre_tokenizer"] = {"type": "FixedLength", "length": 0}
    tokenizer = fast(Tokenizer.from_str(json.dumps(content)), eos_token="<end>")
    with pytest.raises(ValueError, match="tokenizer: expected one that the library can run"):
        Prompts(tokenizer)
