"""Numbers of things in words."""


def counted(number: int, noun: str) -> str:
    """A number and its noun, which gets an s unless the number is 1."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
