"""The Chinese README has the code, the figures and the links of the English one."""

import re
from collections import Counter

import pytest
from guides import ROOT

ENGLISH, CHINESE = ROOT / "README.md", ROOT / "evox_evogm" / "README_ZH.md"
BOTH = [page.read_text("utf-8") for page in (ENGLISH, CHINESE)]


def code(text):
    """The code blocks with their languages, without comments."""
    found = []
    for language, block in re.findall(r"```(\w+)\n(.*?)```", text, flags=re.DOTALL):
        lines = [re.sub(r"\s*#.*", "", line).rstrip() for line in block.splitlines()]
        found.append((language, [line for line in lines if line]))
    return found


def tables(text):
    """The numbers, and the words in backticks, of each row of the tables."""
    rows = [line for line in text.splitlines() if line.startswith("|")]
    return [re.findall(r"(?<![\w/.-])[.,\d]*\d|`[^`]+`", row) for row in rows]


def numbers_in_prose(text):
    """How often each number stands outside of code and tables."""
    prose = re.sub(r"```.*?```|^\|.*?$", "", text, flags=re.DOTALL | re.MULTILINE)
    return Counter(re.findall(r"\d[\d.,]*\d|\d", prose))


def links(text, page):
    """What the page leads to: addresses, and files from the root of the repository."""
    found = Counter()
    for target in re.findall(r"\]\(([^)]+)\)", text):
        if not target.startswith("http"):
            target = str((page.parent / target).resolve().relative_to(ROOT))
        found[target] += 1
    return found


@pytest.mark.parametrize("part", [code, tables, numbers_in_prose])
def test_both_have_the_same(part):
    english, chinese = map(part, BOTH)
    assert english and chinese == english


def test_both_lead_to_the_same_pages():
    english, chinese = links(BOTH[0], ENGLISH), links(BOTH[1], CHINESE)
    assert english["evox_evogm/README_ZH.md"] == 1
    for target in ("evox_evogm/README_ZH.md", "README.md"):  # each leads to the other
        del english[target], chinese[target]
    assert chinese == english


def test_the_headings_are_as_many():
    english, chinese = (re.findall(r"^#+ ", text, flags=re.MULTILINE) for text in BOTH)
    assert chinese == english


def test_it_is_written_in_chinese_with_chinese_punctuation():
    prose = re.sub(r"```.*?```|`[^`]*`|\]\([^)]*\)", "", BOTH[1], flags=re.DOTALL)
    assert len(re.findall(r"[\u4e00-\u9fff]", prose)) > 800
    assert not re.search(r"[\u4e00-\u9fff][,;:?!.](?!\d)", prose)


def test_it_is_one_page():
    assert len(BOTH[1].splitlines()) <= 140
