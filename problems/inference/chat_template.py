"""The chat template of a tokenizer: the text in which the reply to a question begins."""

import copy
import datetime
import inspect
import json
import logging
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

log = logging.getLogger(__name__)

# Two questions that a template has to tell apart.
PROBES = ("Which river is the longest?", "Who wrote the first novel?")
TEMPLATE_FILE = "chat_template.jinja"
CONFIG_FILE = "tokenizer_config.json"
# What `apply_chat_template` takes besides its settings, and hands on to the template.
FOR_THE_TEMPLATE = {"tools", "documents"}
CLOCK = "strftime_now"  # the function by which templates write the date


def as_text(question: str) -> object:
    """The content of a message as most templates take it."""
    return question


def as_parts(question: str) -> object:
    """The content of a message as a list of parts, as vision-language models take it."""
    return [{"type": "text", "text": question}]


class ChatTemplate:
    """Renders a question as a chat by the tokenizer's template.

    Templates want the content of a message as a text or as a list of parts. Two questions are
    rendered as a text first. If they give one chat, or an error, the template gets lists of parts.

    :param tokenizer: with a chat template.
    :param arguments: for the template, such as `{"enable_thinking": False}`; also a date, see
        `with_date`.
    :raises ValueError: if the template reads no argument of such a name.
    """

    rendering: dict[str, Any]
    """What `apply_chat_template` gets beside the chat."""

    def __init__(self, tokenizer: "PreTrainedTokenizerBase", arguments: Mapping | None = None):
        self.tokenizer = tokenizer
        self.arguments = dict(arguments or {})
        self._check_arguments()
        self.rendering = dict(self.arguments)
        if isinstance(date := self.arguments.get(CLOCK), datetime.date):
            del self.rendering[CLOCK]
            self.rendering["chat_template"] = write_date(template_text(tokenizer), date)
        self._content = as_text
        self._error: str | None = None
        if tokenizer.chat_template:
            self._choose_content()

    def _check_arguments(self) -> None:
        """Refuse an argument that would have no effect, or another one than meant."""
        settings = inspect.signature(self.tokenizer.apply_chat_template).parameters
        reserved = {"messages", *settings} - FOR_THE_TEMPLATE
        source = str(self.tokenizer.chat_template)
        for name in self.arguments:
            is_read = isinstance(name, str) and re.search(rf"\b{re.escape(name)}\b", source)
            if name in reserved or not is_read:
                raise ValueError(
                    "chat_template: expected arguments that the chat template of the base reads, "
                    f"found {name!r}"
                )

    def _choose_content(self) -> None:
        """Find the form of content with which two questions give two chats."""
        errors = []
        for content in (as_text, as_parts):
            try:
                one, other = [self._render(content(probe)) for probe in PROBES]
            except ValueError as error:
                errors.append(str(error))
                continue
            if one != other:
                self._content = content
                return
            errors.append(
                "chat: expected a chat template that writes the question, found one that makes "
                "the same prompt of two questions; set chat_template_file, or chat: false"
            )
        self._error = errors[0]

    def text(self, question: str) -> str:
        """The chat of a question, up to where the reply begins.

        :raises ValueError: if there is no template, or it fails or drops the question.
        """
        if not self.tokenizer.chat_template:
            raise ValueError(
                "chat: expected a base with a chat template for chat prompts, found that its "
                "tokenizer has no chat template; set chat_template_file, or chat: false"
            )
        if self._error is not None:
            raise ValueError(self._error)
        return self._render(self._content(question))

    def _render(self, content: object) -> str:
        messages: list[dict[str, Any]] = [{"role": "user", "content": content}]
        try:
            text = self.tokenizer.apply_chat_template(
                messages, add_generation_prompt=True, tokenize=False, **self.rendering
            )
        except Exception as error:  # a template may raise whatever Python does
            message = " ".join(str(error).split())
            raise ValueError(
                "chat: expected a chat template that takes a single question, found "
                f"{type(error).__name__}: {message}; set chat_template_file, or chat: false"
            ) from error
        assert isinstance(text, str), "one chat is one text"
        return text


def writes_the_date(tokenizer: "PreTrainedTokenizerBase") -> bool:
    """Whether the chat template writes today's date, as Llama 3's does."""
    return re.search(rf"\b{CLOCK}\b", template_text(tokenizer)) is not None


def template_text(tokenizer: "PreTrainedTokenizerBase") -> str:
    """The chat template that a question is rendered by; empty if there is none.

    Of several named templates it is the one called `default`.
    """
    found: Any = tokenizer.chat_template or ""
    return found if isinstance(found, str) else str(found.get("default", ""))


def with_date(arguments: Mapping | None, date: datetime.date | None) -> dict[str, Any]:
    """Arguments for a template that writes the date: always this one.

    Otherwise the prompts of a run would change at midnight, and with them its scores.

    :param arguments: the other arguments.
    :param date: None changes nothing.
    """
    changed = dict(arguments or {})
    if date is not None:
        changed[CLOCK] = date
    return changed


def write_date(template: str, date: datetime.date) -> str:
    """A template in which a date stands where it asked for today's.

    Where the format of the date is computed the template stays as it is, and a warning says so.
    """
    moment = datetime.datetime.combine(date, datetime.time())

    def written(call: re.Match) -> str:
        return json.dumps(moment.strftime(call["format"]))

    found = re.sub(rf"""\b{CLOCK}\(\s*(["'])(?P<format>[^"']*)\1\s*\)""", written, template)
    if re.search(rf"\b{CLOCK}\s*\(", found):
        log.warning(
            "chat: the chat template writes the date in a computed form; on another day the same "
            "questions are other prompts"
        )
    return found


def with_chat_template(
    tokenizer: "PreTrainedTokenizerBase", path: str | Path | None
) -> "PreTrainedTokenizerBase":
    """The tokenizer with the chat template of a file; the given one stays as it is.

    :param path: a template, or a folder with one, such as an adapter's. None changes nothing.
    :raises ValueError: if there is no template.
    """
    if path is None:
        return tokenizer
    changed = copy.copy(tokenizer)
    changed.chat_template = read_chat_template(path)
    return changed


def read_chat_template(path: str | Path) -> str:
    """The chat template in a file, or in a folder as transformers saves one with a tokenizer.

    :raises ValueError: if there is none.
    """
    path = Path(path)
    places = [path] if path.is_file() else [path / TEMPLATE_FILE, path / CONFIG_FILE]
    for place in places:
        if not place.is_file():
            continue
        try:
            text = place.read_text(encoding="utf-8")
            template = text if place.suffix != ".json" else _template_in(json.loads(text))
        except (OSError, ValueError) as error:  # not UTF-8, or not JSON
            raise ValueError(
                f"chat_template_file: expected a chat template, found {place} with {error}"
            ) from error
        if template:
            return template
    raise ValueError(
        "chat_template_file: expected a file with a chat template, or a folder with "
        f"{TEMPLATE_FILE}, found none at {path}"
    )


def _template_in(config: object) -> str | None:
    """The default template in the settings of a tokenizer, where it may be one of several."""
    template = config.get("chat_template") if isinstance(config, dict) else None
    if isinstance(template, list):
        by_name = {entry.get("name"): entry.get("template") for entry in template}
        template = by_name.get("default")
    return template if isinstance(template, str) else None
