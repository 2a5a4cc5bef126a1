"""How names from adapters, tasks and settings are shown, so that no name is a command or markup."""

# What may begin a cell, an entity, emphasis, or a link (by `:` and `@` also one without brackets).
MARKUP = frozenset("|`*_[]<>#&:@!~\\")


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
    escaped = ""
    for char in sanitize(text):
        escaped += f"\\{char}" if char in MARKUP else char
    return escaped.replace("www.", "www\\.")
