"""Texts in Markdown pages read as they are: for a Markdown parser, and as plain text."""

import random

import pytest
from markdown_it import MarkdownIt

from evox_evogm.monitoring.escaping import escape_markdown, sanitize

PIECES = list("|`*_[]<>#&:!~\\-+=.()1ab \"'$@^") + ["](", "]:", "<b>", "&amp;", "~~", "**", "- "]
# Pages, and what they show.
PAGES = {
    "a paragraph": ("{0}", "{0}"),
    "a sentence": ("It is {0}, and that is {0}.", "It is {0}, and that is {0}."),
    "a list": ("- {0}\n- {0}: b\n", "{0}{0}: b"),
    "a cell": ("| model | {0} |\n| --- | --- |\n| a | {0} |\n", "model{0}a{0}"),
}


def text_of(page):
    """The text that a page shows, by the parser; None where it finds anything but text."""
    tokens = MarkdownIt("commonmark").enable(["table", "strikethrough"]).parse(page)
    shown = ""
    for token in tokens:
        for part in token.children or []:
            if part.type not in ("text", "text_special"):
                return None
            shown += part.content
    return shown


@pytest.mark.parametrize(("page", "shown"), PAGES.values(), ids=list(PAGES))
def test_a_parser_shows_any_text_as_it_is(page, shown):
    numbers = random.Random(5)
    for _ in range(200):
        text = sanitize("".join(numbers.choices(PIECES, k=numbers.randrange(2, 9))))
        if text:
            assert text_of(page.format(escape_markdown(text))) == shown.format(text), text


@pytest.mark.parametrize(
    "text",
    [
        "task 'quiz': expected 50 test examples, found 6, used all",
        "p < .001, or 3 > 2",
        "choice_likelihood, gold_log_probability",
        "owner/name@0123456789ab/experts/first",
        "experts/a, R&D, #5, 2 * 3, -.125 ± .020, [1, 2]!",
        "C:\\models\\base",
    ],
)
def test_what_is_no_markup_is_easy_to_read(text):
    assert escape_markdown(text) == text


@pytest.mark.parametrize(
    ("text", "escaped"),
    [
        ("see https://a.b/c", "see https\\://a.b/c"),
        ("www.a.b", "www\\.a.b"),
        ("mailto:a", "mailto\\:a"),
        ("me@there.org", "me\\@there.org"),
        ("by @me", "by \\@me"),
        ("a :smile: b", "a \\:smile: b"),
    ],
)
def test_links_mentions_and_emojis_without_brackets_are_none(text, escaped):
    """What GitHub and the hub read beyond CommonMark."""
    assert escape_markdown(text) == escaped
