"""How names from adapters, tasks and settings are shown, so that no name is a command or markup."""

import re

# What Markdown reads as more than itself, as GitHub and the hub show it. All else stays as it is,
# so that a page is easy to read as text.
MARKUP = re.compile(
    r"""
    [|`]                                    # cells and code
    | \\(?=[!-/:-@\[-`{-~]|$)               # an escape
    | ^[*~] | [*~](?=\S|$) | (?<=\S)[*~]    # emphasis and strike-through
    | (?<!\w)_+ | _+(?!\w)                  # emphasis, which is not inside of a word
    | ^\[ | \](?=[(\[:])                    # links, their targets, and boxes to tick
    | <(?=[A-Za-z/!?]|$)                    # tags and comments
    | &(?=\#?\w+;|$)                        # entities
    | (?:(?<=http)|(?<=https)|(?<=ftp)):(?=//) | (?<=www)\.  # addresses without brackets
    | (?:(?<=mailto)|(?<=xmpp)):
    | (?<=[\w.+-])@(?=[\w-]+\.\w) | (?<!\w)@(?=\w)           # those of mail, and mentions
    | :(?=[\w+-]+:)                         # emojis
    | ^(?:\#{1,6}|[+-]|\d{1,9}[.)])(?=\s|$) | ^> | ^[=-]+$  # headings, lists, quotes, rules
    """,
    re.VERBOSE | re.IGNORECASE,
)
PUNCTUATION = re.compile(r"[!-/:-@\[-`{-~]")  # of ASCII, which Markdown lets escape


def sanitize(text: str) -> str:
    """A text on one line, without characters that steer a terminal or turn the writing around."""
    printable = "".join(char if char.isprintable() else " " for char in text)
    return " ".join(printable.split())


def printable_lines(text: str) -> list[str]:
    """The lines of a text, with blanks in place of characters that steer a terminal."""
    lines = []
    for line in text.splitlines():
        lines.append("".join(char if char.isprintable() else " " for char in line))
    return lines


def escape_markdown(text: str) -> str:
    """A text that Markdown shows as it is: no cell, no link, no markup of its own."""
    return MARKUP.sub(_escape_punctuation, sanitize(text))


def _escape_punctuation(found: re.Match) -> str:
    return PUNCTUATION.sub(r"\\\g<0>", found[0])
