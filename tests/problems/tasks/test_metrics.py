"""The scoring rules beside slow twins that score one unpadded example at a time, and beside counts made by hand."""

import math
from copy import deepcopy
from dataclasses import replace

import pytest
import torch
from builders import build_model

from evox_evogm.problems.inference.language_model import LanguageModel
from evox_evogm.problems.tasks.metrics import (
    agrees,
    choice_log_probabilities,
    decided,
    exact_match,
    generated_match,
    parse_choice,
    score_task,
)
from evox_evogm.problems.tasks.task import Example, Task

BIRDS = {"A": "a bird", "B": "not a bird", "C": "Paris", "D": ""}
EVERY_BATCHING = pytest.mark.parametrize(
    "batch_tokens", [1, 70, 100_000]
)  # one row, some rows, all rows a batch


@pytest.mark.parametrize(
    ("output", "key"),
    [
        # First: an explicit answer, wherever it stands and whatever else is named.
        (" The answer is B because it has no wings", "B"),
        ("so the ANSWER IS: C for all of these reasons", "C"),
        ("the answer is (B) for all of these reasons", "B"),
        ("A or B? The answer is C, although some would say D", "C"),
        ("the answer is unclear at first, then the answer is B, and not C", "B"),
        # Second: a key in the first five characters, before one in the last five.
        ("B", "B"),
        (" B. wren", "B"),
        ("A dog, so B", "A"),
        ("    B is what I would take", "B"),
        ("     B is what I would take", None),
        # Third: a key in the last five characters, the last one if there are more.
        ("It has to be B", "B"),
        ("It has to be B) so", "B"),
        ("It has to be B) now", None),
        ("Of all I take C or A", "A"),
        ("I rule out A, so it is C", "C"),
        # A key stands alone.
        ("An apple", None),
        ("Could be", None),
        ("The answer is Able", None),
        ("BA", None),
        ("B2", None),
        ("the answer is b", None),
        # Fourth: the text of a choice, in whatever case; the longest, for one may stand within another.
        ("it should be paris", "C"),
        (" surely not a bird", "B"),
        (" surely a bird", "A"),
        ("Paris? Yes: B", "B"),
        ("it is " + "." * 89 + "Paris", "C"),
        ("it is " + "." * 90 + "Paris", None),
        # Otherwise there is no answer; an empty choice is in no text.
        ("no idea", None),
        ("", None),
    ],
)
def test_a_choice_is_parsed_in_the_papers_order_of_attempts(output, key):
    assert parse_choice(output, BIRDS) == key


def test_a_key_may_begin_another_or_hold_signs():
    assert parse_choice(" 10 ", {"1": "one", "10": "ten"}) == "10"
    assert parse_choice("it is a+", {"a": "x", "a+": "y"}) == "a"
    assert parse_choice("abc", {".": "x", "b.": "y"}) is None


@pytest.mark.parametrize(
    ("output", "target", "match", "expected"),
    [
        ("12", "12", "equal", True),
        (" 12\n", "12 ", "equal", True),
        ("12.", "12", "equal", False),
        ("Twelve", "twelve", "equal", False),
        ("", "12", "equal", False),
        ("it is 12.", "12", "contains", True),
        ("it is 2", "12", "contains", False),
        ("12 b c d e f g h i j", "12", "last_10_words", True),
        ("12 b c d e f g h i j k", "12", "last_10_words", False),
        ("a b c so it is $12.", "12", "last_10_words", True),
        ("it is one hundred", "one hundred", "last_10_words", True),
    ],
)
def test_a_text_agrees_with_a_target_as_the_match_says(output, target, match, expected):
    assert agrees(output, target, match) is expected


def chatty(tokenizer):
    tokenizer = deepcopy(tokenizer)
    tokenizer.chat_template = (
        "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}<reply>"
    )
    return tokenizer


def plain_tokens(tokenizer, prompt, text, chat):
    prompt, text = (f"<user>{prompt}<reply>", text) if chat else (prompt, f" {text}")
    return tokenizer(prompt)["input_ids"], tokenizer(text)["input_ids"]


@torch.no_grad()
def plain_log_probability(model, tokenizer, prompt, text, chat=False):
    """Summed log-probability of a continuation, and its number of tokens, by one unpadded forward pass."""
    prompt, text = plain_tokens(tokenizer, prompt, text, chat)
    scores = model(torch.tensor([prompt + text])).logits[0].log_softmax(-1)
    return sum(float(scores[len(prompt) - 1 + i, token]) for i, token in enumerate(text)), len(text)


@torch.no_grad()
def plain_answer(model, tokenizer, prompt, max_new_tokens):
    tokens = tokenizer(prompt, return_tensors="pt")["input_ids"]
    reply = model.generate(
        tokens, max_new_tokens=max_new_tokens, do_sample=False, eos_token_id=0, pad_token_id=0
    )
    return tokenizer.decode(reply[0, tokens.shape[1] :], skip_special_tokens=True)


QUESTIONS = ["Which?", "What is the longest river of all?", "Is it\nhere?", "zz"]
CHOICES = (("A", "no"), ("B", "a longer answer"), ("C", "yes it is"), ("D", "x"))


@EVERY_BATCHING
@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
@pytest.mark.parametrize("continuation", ["key", "text"])
@pytest.mark.parametrize("chat", [False, True])
def test_the_chosen_answer_is_the_likeliest_of_separate_passes(
    tokenizer, architecture, continuation, chat, batch_tokens
):
    model, tokenizer = build_model(architecture), chatty(tokenizer)
    examples = tuple(
        Example(f"{q} {key}", q, key, CHOICES) for q in QUESTIONS for key, _ in CHOICES
    )
    task = Task("pick", "1", "choice_likelihood", examples, continuation=continuation, chat=chat)
    found = score_task(task, LanguageModel(model, tokenizer, batch_tokens=batch_tokens))
    expected = []
    for question in QUESTIONS:
        scores = [
            plain_log_probability(
                model, tokenizer, question, key if continuation == "key" else text, chat
            )[0]
            for key, text in CHOICES
        ]
        expected += [float(score == max(scores)) for score in scores]
    assert found.tolist() == expected
    assert found.dtype == torch.float32
    assert sum(expected) == len(
        QUESTIONS
    )  # each question was asked once with every key as the right one


@EVERY_BATCHING
def test_choices_of_one_token_and_of_more_may_stand_beside_each_other(tokenizer, batch_tokens):
    """A byte is a token here: "x" after a chat prompt is one, so one pass over the prompt scores two of the questions."""
    model, tokenizer = build_model(), chatty(tokenizer)
    short = (("A", "x"), ("B", "y"))
    choices = [CHOICES, short, CHOICES, short]
    examples = tuple(
        Example(question, question, "A", mine)
        for question, mine in zip(QUESTIONS, choices, strict=True)
    )
    task = Task("pick", "1", "choice_likelihood", examples, continuation="text", chat=True)
    found = choice_log_probabilities(
        task, LanguageModel(model, tokenizer, batch_tokens=batch_tokens)
    )
    for question, mine, scores in zip(QUESTIONS, choices, found, strict=True):
        expected = [
            plain_log_probability(model, tokenizer, question, text, True)[0] for _, text in mine
        ]
        assert scores.tolist() == pytest.approx(expected, abs=1e-4)


@EVERY_BATCHING
@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
@pytest.mark.parametrize("chat", [False, True])
def test_the_gold_log_probability_is_the_mean_over_the_answers_tokens(
    tokenizer, architecture, chat, batch_tokens
):
    model, tokenizer = build_model(architecture), chatty(tokenizer)
    answers = ["yes", "a much longer answer", "12", "é"]
    examples = tuple(Example(q, q, a) for q, a in zip(QUESTIONS, answers, strict=True))
    scorer = LanguageModel(model, tokenizer, batch_tokens=batch_tokens)
    found = score_task(Task("gold", "1", "gold_log_probability", examples, chat=chat), scorer)
    pairs = [
        plain_log_probability(model, tokenizer, q, a, chat)
        for q, a in zip(QUESTIONS, answers, strict=True)
    ]
    torch.testing.assert_close(
        found, torch.tensor([total / count for total, count in pairs]), rtol=0, atol=1e-5
    )


@pytest.mark.parametrize("continuation", ["key", "text"])
def test_the_gold_of_a_multiple_choice_question_is_its_right_key_or_text(
    model, tokenizer, continuation
):
    example = Example("0", "Which?", "B", CHOICES)
    task = Task("gold", "1", "gold_log_probability", (example,), continuation=continuation)
    total, count = plain_log_probability(
        model, tokenizer, "Which?", "B" if continuation == "key" else "a longer answer"
    )
    assert float(score_task(task, LanguageModel(model, tokenizer))) == pytest.approx(
        total / count, abs=1e-5
    )


def sanitize(architecture, tokenizer):
    """A random model that only writes printable ASCII, so that what it writes can be a target."""
    model = build_model(architecture)
    head = model.get_output_embeddings()
    weight = head.weight.detach().clone()  # GPT-2's is also its embedding, which stays
    texts = [tokenizer.decode([token]) for token in range(257)]
    weight[
        [token for token, text in enumerate(texts) if not (text.isascii() and text.isprintable())]
    ] = 0
    head.weight = torch.nn.Parameter(weight)
    return model


@EVERY_BATCHING
@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
@pytest.mark.parametrize("match", ["equal", "contains", "last_10_words"])
def test_exact_match_equals_decoding_one_example_at_a_time(
    tokenizer, architecture, match, batch_tokens
):
    model = sanitize(architecture, tokenizer)
    answers = [plain_answer(model, tokenizer, question, 6) for question in QUESTIONS]
    assert all(answer.isascii() and answer.strip() for answer in answers)
    targets = [
        answers[0],
        answers[1],
        answers[2][:-1],
        "no",
        answers[0] + "x",
        answers[1][:3],
        answers[3],
    ]
    prompts = [QUESTIONS[i] for i in (0, 1, 2, 3, 0, 1, 3)]
    examples = tuple(
        Example(str(i), p, t) for i, (p, t) in enumerate(zip(prompts, targets, strict=True))
    )
    task = Task("match", "1", "exact_match", examples, match=match, max_new_tokens=6)
    scorer = LanguageModel(model, tokenizer, batch_tokens=batch_tokens)
    found = score_task(task, scorer)
    assert torch.equal(found, generated_match(task, scorer))
    expected = [
        float(agrees(plain_answer(model, tokenizer, p, 6), t, match))
        for p, t in zip(prompts, targets, strict=True)
    ]
    assert found.tolist() == expected
    assert {0.0, 1.0} == set(expected)


# A model whose next token follows from the last one alone: after ":" it writes " yes" and ends, after "!" the same without
# the blank, after "?" with a line end more, after "@" a letter of two bytes, after ">" the key B; otherwise it ends.
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
    token = {
        letter: vocabulary[{" ": "Ġ", "\n": "Ċ"}.get(letter, letter)]
        for pair in FOLLOWS.items()
        for letter in pair
    }
    with torch.no_grad():
        for (
            layer
        ) in model.model.layers:  # nothing but the embedding of the last token reaches the output
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
        embedding, head = model.model.embed_tokens.weight.zero_(), model.lm_head.weight.zero_()
        embedding[:, 15] = 1.0
        head[tokenizer.eos_token_id, 15] = 1.0
        for column, (letter, following) in enumerate(FOLLOWS.items()):
            embedding[token[letter]] = torch.eye(16)[column]
            head[token[following], column] = 1.0
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
    task = Task(
        "match", "1", "exact_match", (Example("0", prompt, target),), max_new_tokens=max_new_tokens
    )
    answer = plain_answer(scripted.model, scripted.tokenizer, prompt, max_new_tokens)
    assert (answer.strip() == target.strip()) == right
    assert exact_match(task, scripted).tolist() == [right]
    assert generated_match(task, scripted).tolist() == [right]


def test_exact_match_decodes_only_what_a_forward_pass_leaves_open(scripted):
    generate, decoded = scripted.generate, []
    scripted.generate = lambda prompts, *rest: (
        decoded.append(scripted.decode(prompts[0])) or generate(prompts, *rest)
    )
    targets = {"1:": "yes", "2:": "no", "3:": "ye", "4!": "yes", "5:": "maybe", "6>": "yes"}
    examples = tuple(Example(prompt, prompt, target) for prompt, target in targets.items())
    task = Task("match", "1", "exact_match", examples)
    assert score_task(task, scripted).tolist() == [1, 0, 0, 1, 0, 0]
    assert decoded == ["4!"]


@pytest.mark.parametrize(
    ("text", "match", "expected"),
    [
        ("", "equal", False),
        (" \n", "equal", False),
        (" ye", "equal", False),
        ("yes", "equal", False),  # " yes" may still become "yesterday"
        ("yes \n", "equal", False),
        ("yes ma", "equal", True),
        ("yesm", "equal", True),
        ("no", "equal", True),
        (" \n n", "equal", True),
        ("y\ufffd", "equal", False),
        ("so yes", "contains", True),
        ("so ye", "contains", False),
        ("so yes", "last_10_words", False),
    ],
)
def test_a_text_is_decided_when_nothing_that_follows_can_change_its_score(text, match, expected):
    assert decided(text, " yes", match) == expected
    endings = ["", " ", "s", "es", "yes", " yes", "\n", "m"]
    if expected and match != "contains":
        assert not any(agrees(text + ending, " yes", match) for ending in endings)
    elif expected:
        assert all(agrees(text + ending, "yes", match) for ending in endings)


def test_decoding_stops_where_the_score_is_decided(scripted):
    steps, forward = [], scripted._forward
    scripted._forward = lambda asked, *rest: steps.append(len(asked)) or forward(asked, *rest)
    task = Task(
        "match", "1", "exact_match", (Example("0", "ask?", "no"), Example("1", "ask?", "yes"))
    )
    assert generated_match(task, scripted).tolist() == [0, 1]
    # A line end, a blank, "y": there "no" is out of reach; "yes" goes on over "e" and "s" to the end of the text.
    assert steps == [1, *[2] * 6]  # first the prompt, which is the same
    steps.clear()
    assert generated_match(task, scripted, to_the_end=False).tolist() == [0, 1]
    assert steps == [1, 2, 2, 2, 1, 1, 1]


def test_a_target_is_looked_for_where_the_match_says(scripted):
    examples = tuple(Example(target, "ask:", target) for target in ("es", "yes", "no"))
    task = Task("match", "1", "exact_match", examples, match="contains")
    assert score_task(task, scripted).tolist() == [1, 1, 0]
    assert score_task(replace(task, match="last_10_words"), scripted).tolist() == [1, 1, 0]
    assert score_task(replace(task, match="equal"), scripted).tolist() == [0, 1, 0]
    assert score_task(replace(task, match="contains", max_new_tokens=3), scripted).tolist() == [
        0,
        0,
        0,
    ]


def test_multiple_choice_by_generation_counts_as_by_hand(scripted):
    choices = (("A", "yes"), ("B", "no"))
    prompts = [
        ("ask:", "A"),
        ("ask:", "B"),
        ("ask>", "B"),
        ("ask>", "A"),
        ("ask", "A"),
        ("ask", "B"),
    ]
    examples = tuple(
        Example(str(i), prompt, target, choices) for i, (prompt, target) in enumerate(prompts)
    )
    task = Task("pick", "1", "multiple_choice_generation", examples, max_new_tokens=10)
    # The model writes " yes", the text of A, after ":"; "B" after ">"; and else nothing, which is wrong for both.
    assert score_task(task, scripted).tolist() == [1, 0, 1, 0, 0, 0]
    assert score_task(replace(task, max_new_tokens=3), scripted).tolist() == [0, 0, 1, 0, 0, 0]


def test_multiple_choice_by_likelihood_counts_as_by_hand(scripted):
    choices = (("A", "yes"), ("B", "no"))
    examples = tuple(Example(target, "ask:", target, choices) for target in "AB")
    task = Task("pick", "1", "choice_likelihood", examples, continuation="text")
    assert score_task(task, scripted).tolist() == [1, 0]


def test_choices_are_compared_by_their_sum_and_not_by_their_mean(scripted):
    # Neither begins as the model would. " y" has the better sum for being shorter, " yes" the better mean: "es" is certain.
    examples = (Example("0", "ask>", "A", (("A", "y"), ("B", "yes"))),)
    task = Task("pick", "1", "choice_likelihood", examples, continuation="text")
    assert score_task(task, scripted).tolist() == [1]


def test_the_gold_log_probability_counts_as_by_hand(scripted):
    # The normed state is 4 in one column: the token that follows has logit 4, the 256 others 0.
    certain, other = 4 - math.log(math.exp(4) + 256), -math.log(math.exp(4) + 256)
    examples = tuple(Example(target, "ask:", target) for target in ("yes", "no"))
    found = score_task(Task("gold", "1", "gold_log_probability", examples), scripted)
    # " yes" is followed at each of four tokens; of " no" only the blank is.
    assert found.tolist() == pytest.approx([certain, (certain + 2 * other) / 3], abs=1e-4)


@pytest.mark.parametrize(
    "metric",
    ["choice_likelihood", "gold_log_probability", "exact_match", "multiple_choice_generation"],
)
@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_scores_do_not_depend_on_the_size_of_a_batch(tokenizer, rule, architecture):
    model = build_model(architecture)
    answers = [plain_answer(model, tokenizer, question, 4).strip() for question in QUESTIONS]
    choices = [(("A", answer or "x"), ("B", "no"), ("C", "a longer answer")) for answer in answers]
    examples = tuple(
        Example(f"{q}{key}", q, key, row)
        for q, row in zip(QUESTIONS, choices, strict=True)
        for key in ("A", "B", "C")
    )
    task = Task("any", "1", rule, examples, max_new_tokens=4, continuation="text")
    one, several, all_rows = (
        score_task(task, LanguageModel(model, tokenizer, batch_tokens=n)) for n in (1, 70, 100_000)
    )
    torch.testing.assert_close(several, one, rtol=0, atol=1e-5)
    torch.testing.assert_close(all_rows, one, rtol=0, atol=1e-5)
    assert len(set(one.tolist())) > 1


@torch.no_grad()
def test_the_margin_of_an_exact_match_is_the_least_lead_of_its_tokens(model, tokenizer):
    examples = tuple(Example(str(i), question, "12") for i, question in enumerate(QUESTIONS))
    task, found = Task("exact", "1", "exact_match", examples), torch.zeros(len(examples))
    score_task(task, LanguageModel(model, tokenizer), found)
    for example, margin in zip(examples, found.tolist(), strict=True):
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
    examples = tuple(Example(q, q, "B", CHOICES) for q in QUESTIONS)
    task, found = (
        Task("pick", "1", "choice_likelihood", examples, continuation="text"),
        torch.zeros(len(examples)),
    )
    score_task(task, LanguageModel(model, tokenizer), found)
    for example, margin in zip(examples, found.tolist(), strict=True):
        right, *others = [
            plain_log_probability(model, tokenizer, example.prompt, dict(CHOICES)[key])[0]
            for key in ("B", "A", "C", "D")
        ]
        assert margin == pytest.approx(right - max(others), abs=1e-4)
