"""Which documents of a harness task the search sees, and which are kept for the test.

The test documents are those that the harness evaluates. The dev documents come from the validation
or the training documents, else from the head of the others. No document is in both, and a dev
document is shown neither itself nor a test document as a worked example.
"""

import copy
import json
from collections.abc import Iterable
from typing import Any, NamedTuple

Document = dict[str, Any]


class Documents(NamedTuple):
    """The documents of a task.

    :param dev: what the search sees.
    :param test: what is kept.
    :param is_official: whether the test documents are those that the harness evaluates, or the
        first of them.
    :param left_out: how many documents are not in dev because they are in test.
    """

    dev: list[Document]
    test: list[Document]
    is_official: bool
    left_out: int = 0


def choose_documents(task, dev: int | None, test: int | None) -> Documents:
    """Choose the documents of a harness task.

    :param dev: how many, or None for all of another split.
    :param test: how many, or None for all.
    :raises ValueError: if there are none for dev or for test.
    """
    official = task.eval_docs
    for docs in other_splits(task):
        count = len(official) if test is None else test
        chosen = [official[place] for place in range(min(count, len(official)))]
        found, left_out = different_documents(task, docs, chosen, dev)
        if found:
            return Documents(found, chosen, True, left_out)
    if dev is None:
        raise ValueError(
            "expected dev to be a number of documents, found none: the task has no training or "
            f"validation documents beside the {len(official)} that it evaluates"
        )
    head, _ = different_documents(task, official, [], dev)
    rest, _ = different_documents(task, official, head, test)
    if not rest:
        raise ValueError(
            f"expected more than {dev} documents, of which some are left for the test, "
            f"found {len(official)} and no training or validation documents"
        )
    return Documents(head, rest, is_official=False)


def other_splits(task) -> list[Any]:
    """The validation and the training documents of a task that evaluates others."""
    config = task.config
    used = config.test_split if task.has_test_docs() else config.validation_split
    splits = []
    if task.has_validation_docs() and config.validation_split != used:
        splits.append(task.validation_docs())
    if task.has_training_docs() and config.training_split != used:
        splits.append(task.training_docs())
    return splits


def different_documents(
    task, docs: Iterable[Document], besides: Iterable[Document], count: int | None
) -> tuple[list[Document], int]:
    """The first documents whose questions differ, from each other and from others.

    :param besides: documents that are left out.
    :param count: how many, or None for all.
    :return: the documents, and how many were left out because others have their questions.
    """
    others = {question_key(task, document) for document in besides}
    seen = set(others)
    left_out = 0
    found: list[Document] = []
    for document in docs:
        if count is not None and len(found) >= count:
            break
        key = question_key(task, document)
        left_out += key in others
        if key not in seen:
            seen.add(key)
            found.append(document)
    return found, left_out


def question_key(task, document: Document) -> str:
    """What a document asks, without its number and the like."""
    choices = task.doc_to_choice(document) if task.config.doc_to_choice is not None else None
    return repr((task.doc_to_text(document), task.doc_to_target(document), choices))


def content_of(document: Document) -> str:
    """A document as text."""
    return json.dumps(document, sort_keys=True, default=repr)


def with_documents(task, documents: list[Document], hidden: Iterable[Document] | None = None):
    """A harness task that evaluates other documents; the given one stays as it is.

    :param documents: that it evaluates, in this order.
    :param hidden: documents that are not shown as worked examples, and with which a document is
        not shown itself. None leaves the choice to the harness.
    """
    kind: Any = type(task)

    class WithDocuments(kind):
        """The task with documents of its own, which are rendered once."""

        @property
        def eval_docs(self):
            return documents

        def doc_to_target(self, doc, *others):
            if others:
                return super().doc_to_target(doc, *others)
            return self._rendered_once("target", doc, super().doc_to_target)

        def doc_to_choice(self, doc, *others):
            if others:
                return super().doc_to_choice(doc, *others)
            return self._rendered_once("choice", doc, super().doc_to_choice)

        def doc_to_text(self, doc, *others):
            if others:
                return super().doc_to_text(doc, *others)
            return self._rendered_once("text", doc, super().doc_to_text)

        def _rendered_once(self, name, doc, render):
            place = self._places.get(id(doc))
            if place is None:
                return render(doc)
            key = (name, place)
            if key not in self._rendered:
                self._rendered[key] = render(doc)
            return copy.copy(self._rendered[key])

        def fewshot_context(self, doc, *others, **named):
            if self._pool is not None:
                own = content_of(doc)
                pool = [shown for content, shown in self._pool if content != own]
                self.sampler.replace_df(pool)
            return super().fewshot_context(doc, *others, **named)

    other = copy.copy(task)
    other.__class__ = WithDocuments
    other._config = copy.copy(task._config)
    other._places = {id(document): place for place, document in enumerate(documents)}
    other._rendered = {}
    other._pool = None
    if hasattr(task, "sampler"):
        other.sampler = copy.copy(task.sampler)
        if hidden is not None and task.config.num_fewshot:
            left_out = {content_of(document) for document in hidden}
            # Of a copy: it may change the sampler. The pool has only what its indices choose.
            pool = [(content_of(shown), shown) for shown in copy.copy(task.sampler).fewshot_docs()]
            other._pool = [pair for pair in pool if pair[0] not in left_out]
            other.sampler.fewshot_indices = None
    return other
