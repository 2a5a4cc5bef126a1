"""The published protocol: every step on outputs written by hand, and scores beside plain
transformers and peft.
"""

import json
from types import SimpleNamespace

import pytest
import torch
from builders import build_model

from evox_evogm.problems import LoRAMergeProblem, read_swarm_eval
from evox_evogm.problems.inference.language_model import LanguageModel
from evox_evogm.problems.tasks.choices import parse_choice
from evox_evogm.problems.tasks.margins import outcomes_of
from evox_evogm.problems.tasks.metrics import score_task
from evox_evogm.problems.tasks.published import clean_output, parse_published
from evox_evogm.problems.tasks.requests import tokenize_task
from evox_evogm.problems.tasks.task import Example, Task

FOUR = {"A": "a bird", "B": "not a bird", "C": "Paris", "D": "12"}
TEN = {key: f"{number} metres" for number, key in enumerate("ABCDEFGHIJ")}
TWO = {"A": "Yes", "B": "No"}
LONG = "we look at all of them one after the other and find"  # above 40 characters, no capital


@pytest.mark.parametrize(
    ("output", "key"),
    [
        # First: the last explicit answer, in whatever case.
        ("The answer is B", "B"),
        ("the answer is b.", "B"),
        ("ANSWER: c", "C"),
        ("Answer : C", "C"),
        ("so the correct option is D, of course", "D"),
        ("The answer is A. No, the answer is C, I think", "C"),
        ("Answer: A\nThe answer is D\nand option is B\nbecause", "B"),
        ("The answer is\nC", "C"),
        ("the answer isB", "B"),  # no blank is needed before the key
        ("D or A? The answer is (B)", "D"),  # but nothing else may stand there: step 2
        ("The answer is a wren", "A"),  # a word of one letter is a key
        ("The answer is Able to fly, so it is nothing", None),
        ("The answer is B2", "B"),  # no explicit one, but B is in the last five characters
        ("answer is E, because", None),  # only A to D are explicit
        ("答案是 C,而不是别的", "C"),
        ("选择:b", "B"),
        # Second: the first key of the question in the first five characters, even within a word.
        ("B", "B"),
        ("  B. not a bird", "B"),
        ("An apple", "A"),
        ("BA", "A"),  # in the order of the question's keys
        ("It is C, since", None),
        ("It: C, since", "C"),
        ("b", None),
        # Third: likewise in the last five.
        (f"{LONG} C", "C"),
        (f"{LONG} C and", "C"),
        (f"{LONG} C, also", None),
        (f"{LONG} (D) A.", "A"),
        # Fourth: in at most 40 characters, the first choice whose text is there.
        ("it should be paris", "C"),
        ("surely not a bird", "A"),  # its text stands within that of B
        ("it is " + "." * 29 + "Paris", "C"),
        ("it is " + "." * 30 + "Paris", None),
        ("12", "D"),
        ("no idea", None),
        ("", None),
        ("   ", None),
    ],
)
def test_an_answer_is_parsed_in_the_order_of_the_release(output, key):
    assert parse_published(output, FOUR) == key


@pytest.mark.parametrize(
    ("output", "choices", "key"),
    [
        ("G", TEN, "G"),
        ("The answer is G", TEN, "G"),  # not explicit, but among the last characters
        (f"The answer is G because {LONG}", TEN, None),
        ("The answer is G, not B", TEN, "B"),
        ("The answer is b, surely not G", TEN, "B"),
        ("J; I", TEN, "I"),
        ("about 7 METRES long", TEN, "H"),
        ("The answer is D", TWO, "D"),  # a key that the question lacks, which is wrong
        ("yes", TWO, "A"),
        ("I know", TWO, "B"),  # "no" within a word
        ("", {"A": "x", "B": ""}, "B"),  # an empty choice stands in every output
    ],
)
def test_an_answer_is_parsed_by_the_keys_of_its_question(output, choices, key):
    assert parse_published(output, choices) == key


@pytest.mark.parametrize(
    ("output", "published", "ours"),
    [
        ("An apple", "A", None),
        ("surely not a bird", "A", "B"),
        ("the answer is b", "B", None),
        ("The answer is A. No, the answer is C, I think", "C", "A"),
    ],
)
def test_the_two_protocols_read_awkward_outputs_differently(output, published, ours):
    assert parse_published(output, FOUR) == published
    assert parse_choice(output, FOUR) == ours


@pytest.mark.parametrize(
    ("text", "cleaned"),
    [
        (" B \n", "B"),
        ("<think>A? No.</think>\n\nB", "B"),
        ("A</think>B</think> C", "C"),
        ("<think>the answer is A", "<think>the answer is A"),  # it never ends
        ("B</think>", ""),
        ("<|im_start|>assistant\nB<|im_end|>", "B"),
        ("Assistant: B", ": B"),
        ("my assistant says B", "my assistant says B"),
        ("B<end><pad><pad>", "B"),
        ("A<|endoftext|>B", "AB"),
        ("assistantB", "B"),
        ("", ""),
    ],
)
def test_an_output_is_cleaned_before_it_is_read(text, cleaned):
    assert clean_output(text, SimpleNamespace(pad_token="<pad>", eos_token="<end>")) == cleaned
    if "pad" not in text:
        assert clean_output(text, SimpleNamespace(pad_token=None, eos_token="<end>")) == cleaned


@pytest.fixture
def write(tmp_path):
    """A function that writes a file of Model Swarms and returns its path."""

    def write_file(name, dev, test, **more):
        path = tmp_path / f"{name}.json"
        path.write_text(json.dumps({"dev": dev, "test": test, **more}))
        return path

    return write_file


def rows(count, start=0, **fields):
    made = []
    for index in range(start, start + count):
        made.append({"question": f"What is {index}?", "id": index, **fields})
    return made


def quiz(count, start=0):
    return rows(count, start, choices=TWO, answer="B")


QUESTION = "Question: What is 0?\nA: Yes\nB: No\nThe answer is"
CHOOSE = "Please choose an option that best answers the question.\n"


@pytest.mark.parametrize(
    ("name", "prompt"),
    [
        ("mmlu", CHOOSE + QUESTION),
        ("mmlu_pro", CHOOSE + QUESTION),
        ("truthfulqa", CHOOSE + QUESTION),
        ("medqa", CHOOSE + QUESTION),
        ("hellaswag", "Please choose an option that best completes the sentence.\n" + QUESTION),
        ("knowledge_crosswords", "One more.\n" + QUESTION),
    ],
)
def test_a_set_of_choices_is_asked_as_published(write, name, prompt):
    path = write(name, quiz(2), quiz(1, 2), icl_prompt="One more.")  # which one set alone reads
    dev, test = read_swarm_eval(path, protocol="published")
    assert dev.examples[0].prompt == prompt
    for task in (dev, test):
        found = task.metric, task.max_new_tokens, task.protocol, task.chat
        assert found == ("multiple_choice_generation", 10, "published", False)
    abstaining, _ = read_swarm_eval(path, protocol="published", metric="abstain_qa", chat=True)
    assert abstaining.examples == dev.examples
    assert (abstaining.metric, abstaining.max_new_tokens, abstaining.chat) == (
        "abstain_qa",
        10,
        True,
    )


@pytest.mark.parametrize(
    ("name", "match", "tokens"), [("gsm8k", "last_10_words", 200), ("nlgraph", "contains", 10)]
)
def test_a_set_without_choices_is_asked_by_its_bare_question(write, name, match, tokens):
    path = write(name, rows(1, answer="0"), rows(1, 1, answer=1))
    for protocol, prompt in (
        ("published", "What is {}?"),
        ("ours", "Question: What is {}?\nAnswer:"),
    ):
        for number, task in enumerate(read_swarm_eval(path, protocol=protocol)):
            assert task.examples[0].prompt == prompt.format(number)
            assert task.examples[0].target == str(number)
            assert (task.metric, task.match, task.max_new_tokens) == ("exact_match", match, tokens)
            assert task.protocol == protocol


@pytest.mark.parametrize(
    ("file", "dataset", "instruction"),
    [("part", "hellaswag", "completes"), ("part", "mmlu-pro", "answers"), ("mmlu", "x", "answers")],
)
def test_a_file_of_another_name_says_which_set_it_holds(write, file, dataset, instruction):
    dev, _ = read_swarm_eval(
        write(file, quiz(1), quiz(1, 1), dataset=dataset), protocol="published"
    )
    assert dev.name == file
    assert f"best {instruction} the" in dev.examples[0].prompt


@pytest.mark.parametrize(
    ("file", "content", "settings", "message"),
    [
        (
            "mmlu",
            {},
            {"protocol": "publishd"},
            r"task 'mmlu': protocol: expected one of ours, published, found 'publishd'; did you "
            r"mean 'published'\?",
        ),
        (
            "mine",
            {"dataset": "own"},
            {},
            r"task 'mine': expected a set of protocol published \(mmlu, .*nlgraph\), found the "
            "file name 'mine' and the dataset 'own'; rename the file, or set protocol: ours",
        ),
        (
            "mmlu",
            {},
            {"metric": "choice_likelihood"},
            "task 'mmlu': expected metric multiple_choice_generation or abstain_qa with protocol "
            "published, found 'choice_likelihood'; set protocol: ours",
        ),
        (
            "mmlu",
            {},
            {"max_new_tokens": 20},
            "task 'mmlu': expected no max_new_tokens with protocol published, which decides it, "
            "found 20; set protocol: ours",
        ),
        (
            "gsm8k",
            {},
            {"metric": "abstain_qa"},
            "task 'gsm8k': expected metric exact_match with protocol published, found 'abstain_qa'",
        ),
        (
            "gsm8k",
            {},
            {},
            "task 'gsm8k', example '0': expected a question without choices, found 2; protocol",
        ),
        (
            "mmlu",
            {"dev": rows(1, answer="B")},
            {},
            r"task 'mmlu', example '0': expected the answer to be one of its choices \(it has none",
        ),
        (
            "knowledge_crosswords",
            {},
            {},
            "knowledge_crosswords.json: expected a text under 'icl_prompt', found None",
        ),
        ("mmlu", {"dev": []}, {}, "task 'mmlu': expected at least one example in dev, found none"),
        ("mmlu", {"test": []}, {}, "task 'mmlu': expected at least one example in test, found"),
        (
            "mmlu",
            {"dev": quiz(3), "test": quiz(3, 2)},
            {},
            "task 'mmlu': expected dev and test to share no question, found 1 of 3 test questions",
        ),
        ("mmlu", {"test": {}}, {}, "mmlu.json: expected an object with the lists dev and test"),
    ],
)
def test_what_the_protocol_cannot_use_is_refused_in_one_sentence(
    write, file, content, settings, message
):
    path = write(file, **{"dev": quiz(1), "test": quiz(1, 1), **content})
    with pytest.raises(ValueError, match=message) as raised:
        read_swarm_eval(path, **{"protocol": "published", **settings})
    assert "\n" not in str(raised.value)


class ScriptedModel(LanguageModel):
    """Writes what is noted for a prompt, and notes what it was asked."""

    def generate(self, prompts, max_new_tokens, candidates=None, *rest, **more):
        texts = []
        for prompt in prompts:
            text = self.decode(prompt)
            self.asked.append((text, max_new_tokens))
            texts.append(self.replies[text])
        return texts


@pytest.mark.language_model
@pytest.mark.parametrize(
    ("protocol", "answer", "reply", "score"),
    [
        ("published", " A\n", "True", 1),
        ("published", " A\n", "it is FALSE.", 0),
        ("published", "B", "true", -1),
        ("published", "B", "False", 0),
        ("published", "nothing", "", -1),  # no key is wrong, and no reply does not abstain
        ("published", "<think>B</think>A", "false</think> true", 1),
        ("published", "An apple", "true", 1),
        ("ours", "An apple", "true", -1),
        ("ours", "B or A? A", "<think>false</think> true", 0),
    ],
)
def test_abstaining_is_asked_for_with_the_answer_in_the_prompt(
    model, tokenizer, protocol, answer, reply, score
):
    shown = answer.strip().removeprefix("<think>B</think>")
    second = (
        f"Q: 1?\nProposed answer: {shown}\n"
        "Is the proposed answer true or false? Directly answer with true or false."
    )
    scripted = ScriptedModel(model, tokenizer)
    scripted.asked, scripted.replies = [], {"Q: 1?": answer, second: reply}
    example = Example("0", "Q: 1?", "A", (("A", "yes"), ("B", "no")))
    task = Task("t", "1", "abstain_qa", (example,), max_new_tokens=10, protocol=protocol)
    margins = torch.full((1,), 9.0)
    assert score_task(task, scripted, margins).tolist() == [score]
    assert margins.tolist() == [score]
    assert scripted.asked == [("Q: 1?", 10), (second, 10)]


def test_the_surrogate_takes_the_three_scores_of_abstaining_as_values():
    choices = (("A", "yes"), ("B", "no"))
    tasks = []
    for metric in ("abstain_qa", "multiple_choice_generation"):
        tasks.append(Task(metric, "1", metric, (Example("0", "q", "A", choices),)))
    assert outcomes_of(tasks)[1].tolist() == [False, True]


@pytest.mark.language_model
def test_the_second_prompt_is_counted_against_the_positions_of_the_base(tokenizer):
    example = Example("0", "Q" * 60, "A", (("A", "yes"), ("B", "no")))
    short = LanguageModel(build_model("gpt2", n_positions=100), tokenizer)
    settings = {"max_new_tokens": 10, "protocol": "published"}
    tokenize_task(Task("t", "1", "multiple_choice_generation", (example,), **settings), short)
    # 60 bytes, those of the second question, an answer, and all but the last token of the reply.
    second = "\nProposed answer: \nIs the proposed answer true or false? "
    needed = 60 + len(second + "Directly answer with true or false.") + 10 + 9
    task = Task("t", "1", "abstain_qa", (example,), **settings)
    with pytest.raises(ValueError, match=f"at most 100 tokens.*found {needed} with the answer"):
        tokenize_task(task, short)


# Beside plain transformers and peft: candidates of two experts, random but for the base.
POPULATION = [[1.0, -1.0], [0.5, 0.5], [0.9, 0.1]]
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
PROMPTS = ["Which?", "1+1", "What is it?\nA: yes\nThe answer is", "zz"]


@torch.no_grad()
def plain_texts(folders, tokenizer, coefficients, prompts, tokens):
    """What peft's own sum of two adapters writes with plain transformers, a prompt at a time."""
    from peft import PeftModel

    first, second = folders
    merge = PeftModel.from_pretrained(build_model(), first, adapter_name="first")
    merge.load_adapter(second, "second")
    names = ["first", "second"]
    merge.add_weighted_adapter(names, coefficients, "sum", combination_type="cat")
    merge.set_adapter("sum")
    merge.eval()
    texts = []
    for prompt in prompts:
        ids = tokenizer(prompt, return_tensors="pt")["input_ids"]
        reply = merge.generate(
            input_ids=ids, max_new_tokens=tokens, do_sample=False, eos_token_id=0, pad_token_id=0
        )
        texts.append(tokenizer.decode(reply[0, ids.shape[1] :]).replace("<end>", "").strip())
    return texts


def plain_key(text):
    """The key of 26 that random bytes name: no text of a choice and no sentence is among them."""
    for part in (text[:5], text[-5:]):
        found = sorted(set(part) & set(LETTERS))
        if found:
            return found[0]
    return None


@pytest.fixture
def folders(make_adapter):
    first = make_adapter("first", seed=1)
    second = make_adapter("second", seed=2, r=2, target_modules=["up_proj", "o_proj"])
    return [first, second]


@pytest.fixture
def tasks():
    choices = tuple((key, f"choice {key}") for key in LETTERS)
    keyed, free = [], []
    for prompt in PROMPTS:
        keyed += [Example(f"{prompt}{key}", prompt, key, choices) for key in "BFIJLMOY"]
        free += [Example(f"{prompt}{byte}", prompt, byte) for byte in "HIMOQYpyz-"]
    settings = {"max_new_tokens": 10, "protocol": "published"}
    return [
        Task("choices", "1", "multiple_choice_generation", tuple(keyed), **settings),
        Task("abstaining", "1", "abstain_qa", tuple(keyed), **settings),
        Task("within", "1", "exact_match", tuple(free), match="contains", **settings),
        Task("ending", "1", "exact_match", tuple(free), match="last_10_words", **settings),
    ]


def plain_score(task, example, text):
    """The score of an example, from the text that plain transformers wrote."""
    if task.metric == "exact_match":
        return float(example.target in text)
    if plain_key(text) == example.target:
        return 1.0
    return -1.0 if task.metric == "abstain_qa" else 0.0


def test_a_population_scores_as_plain_transformers_do(model, tokenizer, folders, tasks):
    problems = {}
    for mode in ("unmerged", "merged"):
        problems[mode] = LoRAMergeProblem(model, folders, tasks, tokenizer=tokenizer, mode=mode)
    population = torch.tensor(POPULATION)
    found = {mode: problem.score_together(population) for mode, problem in problems.items()}
    means = set()
    for row, coefficients in enumerate(POPULATION):
        texts = plain_texts(folders, tokenizer, coefficients, PROMPTS, 10)
        by_prompt = dict(zip(PROMPTS, texts, strict=True))
        for task in tasks:
            expected = []
            for example in task.examples:
                expected.append(plain_score(task, example, by_prompt[example.prompt]))
            for mode in problems:
                assert found[mode][task.name][row].tolist() == expected
            means.add(sum(expected) / len(expected))
    assert len(means) > 4  # some are right, and not the same ones
