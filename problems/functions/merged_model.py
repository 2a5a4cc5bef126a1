"""What a function of the user's own receives: one merge, or a population, as a callable model."""

from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch

from evox_evogm.problems.adapters.weight_merger import merged_in_place
from evox_evogm.problems.inference.language_model import LanguageModel
from evox_evogm.problems.inference.scored_model import ScoredModel
from evox_evogm.problems.inference.shared_batches import share_batches
from evox_evogm.problems.inference.stop_texts import cut, may_stop_after, stops
from evox_evogm.problems.inference.texts import reading_texts

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from evox_evogm.problems.population_scorer import PopulationScorer

MAX_NEW_TOKENS = 64


class MergedModel:
    """A merge that a function can ask, and the transformers model with the merge in it.

    Prompts of one call share batches. A merge may be used until the function returns.

    :param language_model: the base, at present merged.
    :param coefficients: the n g effective coefficients of the merge.
    """

    def __init__(self, language_model: ScoredModel, coefficients: Sequence[float]):
        self._language_model = language_model
        self.coefficients = tuple(coefficients)

    @property
    def model(self) -> "PreTrainedModel":
        """The transformers model, which computes as the merge: call it, or its `generate`."""
        return self._language_model.model

    @property
    def tokenizer(self) -> "PreTrainedTokenizerBase":
        """The tokenizer of the base."""
        return reading_texts(self._language_model).tokenizer

    @property
    def device(self) -> torch.device:
        """Where the base computes."""
        return self._language_model.device

    def generate(
        self,
        prompts: Sequence[str],
        *,
        max_new_tokens: int = MAX_NEW_TOKENS,
        chat: bool = False,
        stop: Sequence[str] = (),
    ) -> list[str]:
        """Greedy continuations of N prompts.

        :param prompts: texts.
        :param max_new_tokens: the length of a continuation, in tokens.
        :param chat: put prompts through the chat template.
        :param stop: texts; a continuation ends before the first of them.
        :return: N texts, without the prompts.
        :raises ValueError: if `prompts` is no list of texts.
        """
        candidates = [0] * len(check_texts("prompts", prompts))
        model = reading_texts(self._language_model)
        return greedy_texts(model, prompts, candidates, max_new_tokens, chat, stop)

    def log_probabilities(
        self, prompts: Sequence[str], continuations: Sequence[str], *, chat: bool = False
    ) -> torch.Tensor:
        """Log-probabilities of N continuations after their prompts.

        :param prompts: texts.
        :param continuations: a text for each prompt. A blank goes between the two, not in a chat.
        :param chat: put prompts through the chat template.
        :return: an `(N,)` tensor on the CPU, the sum over the tokens of each, in nats.
        :raises ValueError: if one of the two is no list of texts, or their lengths differ.
        """
        candidates = [0] * len(check_texts("prompts", prompts))
        model = reading_texts(self._language_model)
        return log_probabilities(model, prompts, continuations, candidates, chat)


class MergedPopulation:
    """P merges that answer together, in the batches of the population engine.

    :param language_model: the base.
    :param pop: a `(P, n g)` tensor of effective coefficients.
    :param scorer: merges them; None if the only one is the model as it is.
    :param mode: `"unmerged"` or `"merged"`, see `PopulationScorer`.
    """

    def __init__(
        self,
        language_model: ScoredModel,
        pop: torch.Tensor,
        scorer: "PopulationScorer | None" = None,
        mode: str = "unmerged",
    ):
        self._language_model = language_model
        self._scorer = scorer
        self._mode = mode
        self.coefficients = pop

    def __len__(self) -> int:
        return len(self.coefficients)

    @property
    def tokenizer(self) -> "PreTrainedTokenizerBase":
        """The tokenizer of the base."""
        return reading_texts(self._language_model).tokenizer

    @property
    def device(self) -> torch.device:
        """Where the base computes."""
        return self._language_model.device

    def generate(
        self,
        prompts: Sequence[str],
        *,
        max_new_tokens: int = MAX_NEW_TOKENS,
        chat: bool = False,
        stop: Sequence[str] = (),
    ) -> list[list[str]]:
        """Greedy continuations of N prompts by all P merges, see `MergedModel.generate`.

        :return: P lists of N texts.
        :raises ValueError: if `prompts` is no list of texts.
        """
        check_texts("prompts", prompts)
        model = reading_texts(self._language_model)

        def answer(count: int) -> list[str]:
            every, candidates = repeat(prompts, count)
            return greedy_texts(model, every, candidates, max_new_tokens, chat, stop)

        texts: list[str] = []
        for part in self._answers(answer):
            texts += part
        size = len(prompts)
        return [texts[row * size : (row + 1) * size] for row in range(len(self))]

    def log_probabilities(
        self, prompts: Sequence[str], continuations: Sequence[str], *, chat: bool = False
    ) -> torch.Tensor:
        """Log-probabilities of N continuations for all P merges, see `MergedModel`.

        :return: a `(P, N)` tensor on the CPU, in nats.
        :raises ValueError: if one of the two is no list of texts, or their lengths differ.
        """
        check_texts("prompts", prompts)
        model = reading_texts(self._language_model)

        def answer(count: int) -> torch.Tensor:
            every, candidates = repeat(prompts, count)
            return log_probabilities(model, every, list(continuations) * count, candidates, chat)

        return torch.cat(list(self._answers(answer))).view(len(self), len(prompts))

    def _answers(self, answer: Callable) -> Iterator:
        """What a function answers for all merges at once, or for one merge after another."""
        if self._scorer is None:
            yield answer(1)
            return
        if self._mode == "merged":
            for _ in loaded(self._scorer, self.coefficients):
                yield answer(1)
            return
        with in_shared_batches(self._scorer, self.coefficients):
            yield answer(len(self))


@contextmanager
def in_shared_batches(scorer: "PopulationScorer", pop: torch.Tensor) -> Iterator[None]:
    """Inside the block requests may be for any merge of a population, in unmerged mode.

    The model computes as the first merge where nothing says which.
    """
    with share_batches(scorer.language_model, scorer.stacked, pop):
        yield


def loaded(scorer: "PopulationScorer", pop: torch.Tensor) -> Iterator[None]:
    """Make the model one merge of a population after another, in its weights."""
    with merged_in_place(scorer.weight_merger, pop) as candidates:
        yield from candidates


def one_by_one(
    scorer: "PopulationScorer", pop: torch.Tensor, mode: str
) -> Generator[None, None, None]:
    """Make the model one merge of a population after another, in either mode."""
    if mode == "merged":
        yield from loaded(scorer, pop)
        return
    for coefficients in pop:
        with in_shared_batches(scorer, coefficients[None]):
            yield


def repeat(prompts: Sequence[str], count: int) -> tuple[list[str], list[int]]:
    """N prompts for each of `count` candidates, and the candidate of each."""
    candidates = []
    for candidate in range(count):
        candidates += [candidate] * len(prompts)
    return list(prompts) * count, candidates


def greedy_texts(
    model: LanguageModel,
    prompts: Sequence[str],
    candidates: Sequence[int],
    max_new_tokens: int,
    chat: bool,
    stop: Sequence[str],
) -> list[str]:
    """Greedy continuations of prompts, each by its candidate, cut before the texts in `stop`."""
    if not prompts:
        return []
    ends = (stop,) if isinstance(stop, str) else tuple(stop)
    ends_with = may_stop_after(model, ends)
    texts = model.generate(
        [model.prompt_tokens(prompt, chat=chat) for prompt in prompts],
        max_new_tokens,
        candidates,
        lambda _, text: stops(text, ends),
        may_stop=lambda _, token: ends_with(token),
    )
    return [cut(text, ends) for text in texts]


def log_probabilities(
    model: LanguageModel,
    prompts: Sequence[str],
    continuations: Sequence[str],
    candidates: Sequence[int],
    chat: bool,
) -> torch.Tensor:
    """Log-probabilities `(N,)` of continuations in nats, each by its candidate."""
    check_texts("continuations", continuations)
    if len(continuations) != len(prompts):
        expected = f"expected a continuation for each of {len(prompts)} prompts"
        raise ValueError(f"log_probabilities: {expected}, found {len(continuations)}")
    if not prompts:
        return torch.zeros(0)
    requests = []
    for prompt, continuation in zip(prompts, continuations, strict=True):
        requests.append(model.request(prompt, continuation, chat=chat))
    return model.likelihoods(requests, candidates).log_probability


def check_texts(name: str, texts: Sequence[str]) -> Sequence[str]:
    """The texts, if it is a list of texts.

    :raises ValueError: if it is one text, or holds something else.
    """
    if isinstance(texts, str) or not all(isinstance(text, str) for text in texts):
        raise ValueError(f"{name}: expected a list of texts, found {texts!r:.100}")
    return texts
