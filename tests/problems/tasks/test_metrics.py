"""The metrics beside slow twins that score one unpadded example at a time, and counts by hand."""

import math
from copy import deepcopy
from dataclasses import replace

import pytest
import torch
from builders import build_model, record_passes

from evox_evogm.problems.inference.language_model import LanguageModel
from evox_evogm.problems.tasks.choices import choice_log_probabilities
from evox_evogm.problems.tasks.exact_match import agrees, exact_match, generated_match
from evox_evogm.problems.tasks.margins import outcomes_of
from evox_evogm.problems.tasks.metrics import score_task
from evox_evogm.problems.tasks.task import METRIC_NAMES, Example, Task

pytestmark = pytest.mark.language_model

# One row, some rows, all rows a batch.
EVERY_BATCHING = pytest.mark.parametrize("batch_tokens", [1, 70, 100_000])
QUESTIONS = ["Which?", "What is the longest river of all?", "Is it\nhere?", "zz"]
CHOICES = (("A", "no"), ("B", "a longer answer"), ("C", "yes it is"), ("D", "x"))


def chatty(tokenizer):
    tokenizer = deepcopy(tokenizer)
    tokenizer.chat_template = (
        "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}<reply>"
    )
    return tokenizer


def plain_tokens(tokenizer, prompt, text, chat):
    if chat:
        prompt = f"<user>{prompt}<reply>"
    else:
        text = f" {text}"
    return tokenizer(prompt)["input_ids"], tokenizer(text)["input_ids"]


@torch.no_grad()
def plain_log_probabilities(model, tokenizer, prompt, text, chat=False):
    """The log-probability of each token of a continuation, by one unpadded forward pass."""
    prompt, text = plain_tokens(tokenizer, prompt, text, chat)
    scores = model(torch.tensor([prompt + text])).logits[0].log_softmax(-1)
    found = []
    for place, token in enumerate(text, len(prompt) - 1):
        found.append(float(scores[place, token]))
    return found


@torch.no_grad()
def plain_answer(model, tokenizer, prompt, max_new_tokens):
    tokens = tokenizer(prompt, return_tensors="pt")["input_ids"]
    reply = model.generate(
        tokens, max_new_tokens=max_new_tokens, do_sample=False, eos_token_id=0, pad_token_id=0
    )
    return tokenizer.decode(reply[0, tokens.shape[1] :], skip_special_tokens=True)


def free_answers(prompts, targets):
    """Examples of these prompts, numbered."""
    examples = []
    for index, (prompt, target) in enumerate(zip(prompts, targets, strict=True)):
        examples.append(Example(str(index), prompt, target))
    return tuple(examples)


def every_key_as_the_right_one(choices_of_questions):
    """Each question once with every one of its keys as the right one."""
    examples = []
    for question, choices in zip(QUESTIONS, choices_of_questions, strict=True):
        for key, _ in choices:
            examples.append(Example(f"{question} {key}", question, key, choices))
    return tuple(examples)


@EVERY_BATCHING
@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
@pytest.mark.parametrize("continuation", ["key", "text"])
@pytest.mark.parametrize("chat", [False, True])
def test_the_chosen_answer_is_the_likeliest_of_separate_passes(
    tokenizer, architecture, continuation, chat, batch_tokens
):
    model, tokenizer = build_model(architecture), chatty(tokenizer)
    examples = every_key_as_the_right_one([CHOICES] * len(QUESTIONS))
    task = Task("pick", "1", "choice_likelihood", examples, continuation=continuation, chat=chat)
    found = score_task(task, LanguageModel(model, tokenizer, batch_tokens=batch_tokens))
    expected = []
    for question in QUESTIONS:
        scores = []
        for key, text in CHOICES:
            scored = key if continuation == "key" else text
            scores.append(sum(plain_log_probabilities(model, tokenizer, question, scored, chat)))
        expected += [float(score == max(scores)) for score in scores]
    assert found.tolist() == expected
    assert found.dtype == torch.float32
    assert sum(expected) == len(QUESTIONS)


@EVERY_BATCHING
def test_choices_of_one_token_and_of_more_may_stand_beside_each_other(tokenizer, batch_tokens):
    """A byte is a token here. After a chat prompt "x" is one token, so one pass over the prompt
    scores two of the questions.
    """
    model, tokenizer = build_model(), chatty(tokenizer)
    short = (("A", "x"), ("B", "y"))
    examples = []
    for question, choices in zip(QUESTIONS, [CHOICES, short, CHOICES, short], strict=True):
        examples.append(Example(question, question, "A", choices))
    settings = {"continuation": "text", "chat": True}
    task = Task("pick", "1", "choice_likelihood", tuple(examples), **settings)
    scorer = LanguageModel(model, tokenizer, batch_tokens=batch_tokens)
    found = choice_log_probabilities(task, scorer)
    for example, scores in zip(examples, found, strict=True):
        expected = []
        for _, text in example.choices:
            tokens = plain_log_probabilities(model, tokenizer, example.prompt, text, chat=True)
            expected.append(sum(tokens))
        assert scores.tolist() == pytest.approx(expected, abs=1e-4)


@EVERY_BATCHING
@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
@pytest.mark.parametrize("chat", [False, True])
def test_the_gold_log_probability_is_the_mean_over_the_answers_tokens(
    tokenizer, architecture, chat, batch_tokens
):
    model, tokenizer = build_model(architecture), chatty(tokenizer)
    examples = free_answers(QUESTIONS, ["yes", "a much longer answer", "12", "é"])
    scorer = LanguageModel(model, tokenizer, batch_tokens=batch_tokens)
    task = Task("gold", "1", "gold_log_probability", examples, chat=chat)
    margins = torch.zeros(4)
    found = score_task(task, scorer, margins)
    expected = []
    for example in examples:
        tokens = plain_log_probabilities(model, tokenizer, example.prompt, example.target, chat)
        expected.append(sum(tokens) / len(tokens))
    torch.testing.assert_close(found, torch.tensor(expected), rtol=0, atol=1e-5)
    assert torch.equal(margins, found)


@pytest.mark.parametrize(("continuation", "text"), [("key", "B"), ("text", "a longer answer")])
def test_the_gold_of_a_multiple_choice_question_is_its_right_key_or_text(
    model, tokenizer, continuation, text
):
    example = Example("0", "Which?", "B", CHOICES)
    task = Task("gold", "1", "gold_log_probability", (example,), continuation=continuation)
    tokens = plain_log_probabilities(model, tokenizer, "Which?", text)
    found = float(score_task(task, LanguageModel(model, tokenizer)))
    assert found == pytest.approx(sum(tokens) / len(tokens), abs=1e-5)


def build_printable_model(architecture, tokenizer):
    """A random model that only writes printable ASCII, so that what it writes can be a target."""
    model = build_model(architecture)
    head = model.get_output_embeddings()
    weight = head.weight.detach().clone()  # GPT-2's is also its embedding, which stays
    for token in range(257):
        text = tokenizer.decode([token])
        if not (text.isascii() and text.isprintable()):
            weight[token] = 0
    head.weight = torch.nn.Parameter(weight)
    return model


@EVERY_BATCHING
@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
@pytest.mark.parametrize("match", ["equal", "contains", "last_10_words"])
def test_exact_match_equals_decoding_one_example_at_a_time(
    tokenizer, architecture, match, batch_tokens
):
    model = build_printable_model(architecture, tokenizer)
    answers = [plain_answer(model, tokenizer, question, 6) for question in QUESTIONS]
    assert all(answer.isascii() and answer.strip() for answer in answers)
    targets = [
        (0, answers[0]),
        (1, answers[1]),
        (2, answers[2][:-1]),
        (3, "no"),
        (0, answers[0] + "x"),
        (1, answers[1][:3]),
        (3, answers[3]),
    ]
    prompts = [QUESTIONS[question] for question, _ in targets]
    examples = free_answers(prompts, [target for _, target in targets])
    task = Task("match", "1", "exact_match", examples, match=match, max_new_tokens=6)
    scorer = LanguageModel(model, tokenizer, batch_tokens=batch_tokens)
    found = score_task(task, scorer)
    assert torch.equal(found, generated_match(task, scorer))
    expected = []
    for question, target in targets:
        expected.append(float(agrees(answers[question], target, match)))
    assert found.tolist() == expected
    assert {0.0, 1.0} == set(expected)


# A model whose next token follows from the last one alone:
# - after ":" it writes " yes" and ends, after "!" the same without the blank, after "?" the same
#   after a line end,
# - after "@" it writes a letter of two bytes, after ">" the key B,
# - after anything else it ends.
FOLLOWS = {
    ":": " ",
    "!": "y",
    "?": "\n",
    "\n": " ",
    " ": "y",
    "y": "e",
    "e": "s",
    "@": "Ã",
    "Ã": "©",
    ">": "B",
}


@pytest.fixture
def scripted(tokenizer):
    model = build_model()
    vocabulary = tokenizer.get_vocab()

    def token_of(letter):
        return vocabulary[{" ": "Ġ", "\n": "Ċ"}.get(letter, letter)]

    with torch.no_grad():
        # Nothing but the embedding of the last token reaches the output.
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
        embedding = model.model.embed_tokens.weight.zero_()
        head = model.lm_head.weight.zero_()
        embedding[:, 15] = 1.0
        head[tokenizer.eos_token_id, 15] = 1.0
        for column, (letter, following) in enumerate(FOLLOWS.items()):
            embedding[token_of(letter)] = torch.eye(16)[column]
            head[token_of(following), column] = 1.0
    return LanguageModel(model, tokenizer)


@pytest.mark.parametrize(
    ("prompt", "target", "max_new_tokens", "right"),
    [
        ("ask:", "yes", 16, 1),
        ("ask:", " yes ", 16, 1),
        ("ask:", "no", 16, 0),
        ("ask:", "ye", 16, 0),
        ("ask:", "yess", 16, 0),
        # Four tokens and no room for the end: the text is cut off and reads the same.
        ("ask:", "yes", 5, 1),
        ("ask:", "yes", 4, 1),
        ("ask:", "yes", 3, 0),
        ("ask:", "ye", 3, 1),
        ("ask:", "yess", 4, 0),
        ("ask:", "yesss", 4, 0),
        # Other tokens than those of " yes" that read the same.
        ("ask!", "yes", 16, 1),
        ("ask?", "yes", 16, 1),
        ("ask?", "yess", 16, 0),
        ("ask@", "é", 16, 1),
        ("ask@", "è", 16, 0),
        # The model answers nothing.
        ("ask", "yes", 16, 0),
    ],
)
def test_exact_match_is_what_a_reader_of_the_answer_would_say(
    scripted, prompt, target, max_new_tokens, right
):
    examples = (Example("0", prompt, target),)
    task = Task("match", "1", "exact_match", examples, max_new_tokens=max_new_tokens)
    answer = plain_answer(scripted.model, scripted.tokenizer, prompt, max_new_tokens)
    assert (answer.strip() == target.strip()) == right
    assert exact_match(task, scripted).tolist() == [right]
    assert generated_match(task, scripted).tolist() == [right]


class RecordingModel(LanguageModel):
    """Notes the first prompt of everything that is decoded."""

    def generate(self, prompts, *settings, **more):
        self.__dict__.setdefault("decoded", []).append(self.decode(prompts[0]))
        return super().generate(prompts, *settings, **more)


def test_exact_match_decodes_only_what_a_forward_pass_leaves_open(scripted):
    scorer = RecordingModel(scripted.model, scripted.tokenizer)
    targets = {"1:": "yes", "2:": "no", "3:": "ye", "4!": "yes", "5:": "maybe", "6>": "yes"}
    examples = free_answers(list(targets), list(targets.values()))
    task = Task("match", "1", "exact_match", examples)
    assert score_task(task, scorer).tolist() == [1, 0, 0, 1, 0, 0]
    assert scorer.decoded == ["4!"]


def test_decoding_stops_where_the_score_is_decided(scripted):
    passes = record_passes(scripted)
    examples = free_answers(["ask?", "ask?"], ["no", "yes"])
    task = Task("match", "1", "exact_match", examples)
    assert generated_match(task, scripted).tolist() == [0, 1]
    # A line end, a blank, "y": there "no" is out of reach. "yes" goes on over "e" and "s" to the
    # end of the text. The first pass runs the prompt, which is the same.
    assert [rows for rows, _ in passes] == [1, *[2] * 6]
    passes.clear()
    assert generated_match(task, scripted, stop_early=True).tolist() == [0, 1]
    assert [rows for rows, _ in passes] == [1, 2, 2, 2, 1, 1, 1]


def test_a_target_is_looked_for_where_the_match_says(scripted):
    examples = free_answers(["ask:"] * 3, ["es", "yes", "no"])
    task = Task("match", "1", "exact_match", examples, match="contains")
    assert score_task(task, scripted).tolist() == [1, 1, 0]
    assert score_task(replace(task, match="last_10_words"), scripted).tolist() == [1, 1, 0]
    assert score_task(replace(task, match="equal"), scripted).tolist() == [0, 1, 0]
    shorter = replace(task, match="contains", max_new_tokens=3)
    assert score_task(shorter, scripted).tolist() == [0, 0, 0]


@pytest.mark.parametrize(("match", "count"), [("contains", 1), ("last_10_words", 0)])
def test_texts_are_decoded_only_where_they_may_have_got_the_target(
    scripted, monkeypatch, match, count
):
    """To decode a text after each of its tokens costs more than the token does on a GPU."""
    decoded, decode = [], LanguageModel.decode
    task = Task("match", "1", "exact_match", free_answers(["ask:"], ["yes"]), match=match)

    def counting(model, tokens):
        decoded.append(tokens)
        return decode(model, tokens)

    monkeypatch.setattr(LanguageModel, "decode", counting)
    assert score_task(task, scripted).tolist() == [1]
    texts = [tokens for tokens in decoded if len(tokens) > 1]
    assert len(texts) == count


def test_multiple_choice_by_generation_counts_as_by_hand(scripted):
    choices = (("A", "yes"), ("B", "no"))
    examples = []
    for prompt in ("ask:", "ask>", "ask"):
        for target in "AB":
            examples.append(Example(f"{prompt}{target}", prompt, target, choices))
    metric = "multiple_choice_generation"
    task = Task("pick", "1", metric, tuple(examples), max_new_tokens=10)
    # The model writes " yes", the text of A, after ":", and "B" after ">". After anything else it
    # writes nothing, which is wrong for both.
    assert score_task(task, scripted).tolist() == [1, 0, 0, 1, 0, 0]
    assert score_task(replace(task, max_new_tokens=3), scripted).tolist() == [0, 0, 0, 1, 0, 0]


@pytest.mark.parametrize("match", ["contains", "last_10_words"])
def test_a_text_has_the_margin_1_or_minus_1(scripted, match):
    examples = free_answers(["ask:", "ask:"], ["yes", "no"])
    margins = torch.zeros(2)
    score_task(Task("match", "1", "exact_match", examples, match=match), scripted, margins)
    assert margins.tolist() == [1, -1]
    choices = (("A", "yes"), ("B", "no"))
    questions = tuple(Example(target, "ask:", target, choices) for target in "BA")
    score_task(Task("pick", "1", "multiple_choice_generation", questions), scripted, margins)
    assert margins.tolist() == [-1, 1]


def test_multiple_choice_by_likelihood_counts_as_by_hand(scripted):
    choices = (("A", "yes"), ("B", "no"))
    examples = tuple(Example(target, "ask:", target, choices) for target in "AB")
    task = Task("pick", "1", "choice_likelihood", examples, continuation="text")
    assert score_task(task, scripted).tolist() == [1, 0]


def test_choices_are_compared_by_their_sum_and_not_by_their_mean(scripted):
    # Neither begins as the model would. " y" has the better sum because it is shorter. " yes" has
    # the better mean because "es" is certain.
    examples = (Example("0", "ask>", "A", (("A", "y"), ("B", "yes"))),)
    task = Task("pick", "1", "choice_likelihood", examples, continuation="text")
    assert score_task(task, scripted).tolist() == [1]


def test_the_gold_log_probability_counts_as_by_hand(scripted):
    # The normed state is 4 in one column: the token that follows has logit 4, the 256 others 0.
    normalizer = math.log(math.exp(4) + 256)
    certain, other = 4 - normalizer, -normalizer
    examples = free_answers(["ask:", "ask:"], ["yes", "no"])
    found = score_task(Task("gold", "1", "gold_log_probability", examples), scripted)
    # The model agrees with all four tokens of " yes", and with the blank of " no".
    expected = [certain, (certain + 2 * other) / 3]
    assert found.tolist() == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("metric", METRIC_NAMES)
@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_scores_do_not_depend_on_the_size_of_a_batch(tokenizer, metric, architecture):
    model = build_model(architecture)
    choices = []
    for question in QUESTIONS:
        answer = plain_answer(model, tokenizer, question, 4).strip()
        choices.append((("A", answer or "x"), ("B", "no"), ("C", "a longer answer")))
    examples = every_key_as_the_right_one(choices)
    task = Task("any", "1", metric, examples, max_new_tokens=4, continuation="text")
    one = score_task(task, LanguageModel(model, tokenizer, batch_tokens=1))
    assert len(set(one.tolist())) > 1
    for batch_tokens in (70, 100_000):
        scorer = LanguageModel(model, tokenizer, batch_tokens=batch_tokens)
        torch.testing.assert_close(score_task(task, scorer), one, rtol=0, atol=1e-5)


@torch.no_grad()
def test_the_margin_of_an_exact_match_is_the_least_lead_of_its_tokens(model, tokenizer):
    examples = free_answers(QUESTIONS, ["12"] * len(QUESTIONS))
    margins = torch.zeros(len(examples))
    task = Task("exact", "1", "exact_match", examples)
    score_task(task, LanguageModel(model, tokenizer), margins)
    for example, margin in zip(examples, margins.tolist(), strict=True):
        prompt, text = plain_tokens(tokenizer, example.prompt, "12", False)
        text = [*text, tokenizer.eos_token_id]
        logits = model(torch.tensor([prompt + text])).logits[0]
        leads = []
        for place, token in enumerate(text, len(prompt) - 1):
            others = torch.cat([logits[place, :token], logits[place, token + 1 :]])
            leads.append(float(logits[place, token] - others.max()))
        assert margin == pytest.approx(min(leads), abs=1e-4)


@torch.no_grad()
def test_the_margin_of_a_choice_is_its_lead_in_log_probability(model, tokenizer):
    examples = tuple(Example(question, question, "B", CHOICES) for question in QUESTIONS)
    margins = torch.zeros(len(examples))
    task = Task("pick", "1", "choice_likelihood", examples, continuation="text")
    score_task(task, LanguageModel(model, tokenizer), margins)
    for example, margin in zip(examples, margins.tolist(), strict=True):
        scores = {}
        for key, text in CHOICES:
            scores[key] = sum(plain_log_probabilities(model, tokenizer, example.prompt, text))
        right = scores.pop("B")
        assert margin == pytest.approx(right - max(scores.values()), abs=1e-4)


def test_margins_count_by_their_sign_unless_they_are_the_score():
    two = free_answers(["p", "q"], ["a", "b"])
    gold = Task("gold", "1", "gold_log_probability", two[:1])
    weights, by_sign, groups = outcomes_of([Task("exact", "1", "exact_match", two), gold])
    assert weights.tolist() == [0.25, 0.25, 0.5]
    assert by_sign.tolist() == [True, True, False]
    assert groups.tolist() == [0, 0, 1]
