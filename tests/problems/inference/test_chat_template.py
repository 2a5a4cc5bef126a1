"""Chat templates: the form of the content, arguments, files, and those that cannot be used."""

import datetime
import json
from copy import deepcopy

import pytest
from builders import build_model, build_tokenizer

from evox_evogm.problems.inference.chat_template import (
    ChatTemplate,
    read_chat_template,
    with_chat_template,
    with_date,
    writes_the_date,
)
from evox_evogm.problems.inference.language_model import LanguageModel
from evox_evogm.problems.tasks.requests import tokenize_task
from evox_evogm.problems.tasks.task import Example, Task

PLAIN = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}<reply>"
THINKING = PLAIN + "{% if enable_thinking %}<think>{% endif %}"
PARTS = (
    "{% for m in messages %}User:{% for part in m['content'] %}"
    "{% if part['type'] == 'text' %}{{ part['text'] }}{% endif %}{% endfor %}{% endfor %} Reply:"
)


def tokenizer_with(template):
    tokenizer = deepcopy(build_tokenizer())
    tokenizer.chat_template = template
    return tokenizer


def chat_task(*questions):
    examples = []
    for number, question in enumerate(questions):
        examples.append(Example(f"id{number}", question, "yes"))
    return Task("t", "1", "gold_log_probability", tuple(examples), chat=True)


@pytest.mark.parametrize(
    ("template", "expected"),
    [(PLAIN, "<user>Is it?<reply>"), (PARTS, "User:Is it? Reply:")],
)
def test_a_question_stands_in_its_chat_in_the_form_that_the_template_wants(template, expected):
    assert ChatTemplate(tokenizer_with(template)).text("Is it?") == expected


def test_a_date_in_the_arguments_is_the_one_that_the_template_writes():
    """As in Llama 3: the date is that of the clock, unless one is given."""
    template = PLAIN + "{% if strftime_now is defined %}{{ strftime_now('%d %b %Y') }}{% endif %}"
    assert writes_the_date(tokenizer_with(template))
    assert not writes_the_date(tokenizer_with(PLAIN))
    arguments = with_date(None, datetime.date(2024, 7, 26))
    text = ChatTemplate(tokenizer_with(template), arguments).text("Is it?")
    assert text == "<user>Is it?<reply>26 Jul 2024"
    assert with_date({"enable_thinking": True}, None) == {"enable_thinking": True}


def test_of_several_templates_the_default_one_writes_the_date():
    dated = PLAIN + "{{ strftime_now('%Y') }}"
    tokenizer = tokenizer_with({"default": dated, "tool_use": "tools"})
    assert writes_the_date(tokenizer)
    arguments = with_date(None, datetime.date(2024, 7, 26))
    assert ChatTemplate(tokenizer, arguments).text("q") == "<user>q<reply>2024"
    assert not writes_the_date(tokenizer_with({"default": PLAIN, "tool_use": dated}))


def test_a_date_whose_format_is_computed_stays_and_is_warned_of(caplog):
    tokenizer = tokenizer_with(PLAIN + "{% set f = '%Y' %}{{ strftime_now(f) }}")
    today = datetime.date.today()
    template = ChatTemplate(tokenizer, with_date(None, datetime.date(2024, 7, 26)))
    assert template.text("q") == f"<user>q<reply>{today:%Y}"
    assert "in a computed form" in caplog.text


def test_arguments_reach_the_template():
    tokenizer = tokenizer_with(THINKING)
    assert ChatTemplate(tokenizer, {"enable_thinking": True}).text("q").endswith("<think>")
    assert ChatTemplate(tokenizer, {"enable_thinking": False}).text("q").endswith("<reply>")
    scorer = LanguageModel(build_model(), tokenizer, chat_template={"enable_thinking": True})
    tokens = scorer.prompt_tokens("q", chat=True)
    assert scorer.decode(tokens) == "<user>q<reply><think>"


@pytest.mark.parametrize("name", ["enable_thinkin", "messages", "add_generation_prompt", 3])
def test_an_argument_that_the_template_does_not_read_is_refused(name):
    message = f"chat_template: expected arguments that .* reads, found {name!r}"
    with pytest.raises(ValueError, match=message):
        ChatTemplate(tokenizer_with(THINKING), {name: False})


@pytest.mark.parametrize(
    ("template", "message"),
    [
        (None, "a base with a chat template .* its tokenizer has no chat template"),
        ("{% for m in messages %}", "takes a single question, found TemplateSyntaxError"),
        ("{{ raise_exception('a system message first') }}", "TemplateError: a system message"),
        ("{{ messages[1].content }}", "found UndefinedError"),
        ("{{ messages[0].content + 3 }}", "found TypeError"),
        ("<user>hello<reply>", "makes the same prompt of two questions"),
        ({"tool_use": PLAIN}, "found ValueError"),
    ],
)
def test_a_template_that_cannot_be_used_is_refused_with_task_and_example(template, message):
    scorer = LanguageModel(build_model(), tokenizer_with(template))
    with pytest.raises(ValueError, match=f"task 't', example 'id0': chat: expected .*{message}"):
        tokenize_task(chat_task("Which?"), scorer)


def test_a_template_that_fails_on_one_question_names_its_example():
    template = "{% if 'x' in messages[0].content %}{{ raise_exception('no x') }}{% endif %}" + PLAIN
    scorer = LanguageModel(build_model(), tokenizer_with(template))
    with pytest.raises(ValueError, match="task 't', example 'id1': .*TemplateError: no x"):
        tokenize_task(chat_task("Which?", "axe"), scorer)


def test_two_questions_that_become_one_prompt_are_named():
    template = "{{ messages[0].content[-3:] }}<reply>"
    scorer = LanguageModel(build_model(), tokenizer_with(template))
    assert tokenize_task(chat_task("Which?", "Who is it?"), scorer) == 20
    message = "task 't', example 'id1': .* found the same prompt as for example 'id0'"
    with pytest.raises(ValueError, match=message):
        tokenize_task(chat_task("Was it so?", "Is it so?"), scorer)


def test_a_template_comes_from_a_file_or_an_adapters_folder(tmp_path):
    tokenizer = tokenizer_with(PLAIN)
    (tmp_path / "mine.jinja").write_text(THINKING)
    assert read_chat_template(tmp_path / "mine.jinja") == THINKING
    folder = tmp_path / "adapter"
    folder.mkdir()
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": PARTS}))
    assert read_chat_template(folder) == PARTS
    several = [{"name": "rag", "template": "x"}, {"name": "default", "template": PLAIN}]
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": several}))
    assert read_chat_template(folder) == PLAIN
    (folder / "chat_template.jinja").write_text(THINKING)
    changed = with_chat_template(tokenizer, folder)
    assert (changed.chat_template, tokenizer.chat_template) == (THINKING, PLAIN)
    assert changed("ab")["input_ids"] == tokenizer("ab")["input_ids"]
    assert with_chat_template(tokenizer, None) is tokenizer


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("none", None, "expected a file with a chat template, or a folder .* found none at"),
        ("bytes.jinja", b"\xff\xfe", "expected a chat template, found .*bytes.jinja with"),
        ("tokenizer_config.json", b"{", "expected a chat template, found .*tokenizer_config.json"),
        ("tokenizer_config.json", b"{}", "expected a file with a chat template"),
    ],
)
def test_a_file_without_a_template_is_refused(tmp_path, name, content, message):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=f"chat_template_file: {message}"):
        read_chat_template(tmp_path / name)
