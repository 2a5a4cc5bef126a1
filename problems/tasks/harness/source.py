"""One task of the harness with its documents: what it asks, and how it scores the answers."""

import hashlib
import logging
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import numpy as np

from evox_evogm.problems.failures import is_out_of_memory
from evox_evogm.problems.inference.language_model import LanguageModel
from evox_evogm.problems.inference.prompts import Prompts, Request, Tokens
from evox_evogm.problems.tasks.harness.encoder import (
    generation_prompt,
    gold_request,
    likelihood_request,
    make_encoder,
    rolling_requests,
)
from evox_evogm.problems.tasks.harness.generation import Generation, parse_generation
from evox_evogm.problems.tasks.harness.metric import NUMBER, HarnessMetric

log = logging.getLogger(__name__)
Answer = tuple[float, bool] | float | str  # of log-likelihood, rolling log-likelihood, generation
EMPTY_ANSWERS: dict[str, Answer] = {
    "loglikelihood": (-1.0, False),
    "loglikelihood_rolling": -1.0,
    "generate_until": "",
}


class ScoringFailed(RuntimeError):
    """The code of a task failed on the answers of a merge."""


class Prompting(NamedTuple):
    """How prompts are made of documents.

    :param num_fewshot: worked examples before each question.
    :param fewshot_seed: of their choice.
    :param chat: through the chat template of the tokenizer, worked examples as turns of the chat.
    :param system_instruction: goes before everything else, or None.
    """

    num_fewshot: int
    fewshot_seed: int
    chat: bool
    system_instruction: str | None


class InstanceTokens(NamedTuple):
    """One request of a document, in tokens.

    :param likelihoods: prompts and continuations whose likelihoods are wanted; of a rolling
        log-likelihood several, whose sum is.
    :param prompt: what an answer is generated after; empty otherwise.
    :param generation: how it is generated, or None.
    :param is_rolling: whether it is the log-likelihood of a whole text.
    """

    likelihoods: tuple[Request, ...]
    prompt: Tokens = ()
    generation: Generation | None = None
    is_rolling: bool = False

    @property
    def first_prompt(self) -> Tokens:
        """The prompt, or the first of them."""
        return self.prompt or self.likelihoods[0][0]

    @property
    def rows(self) -> list[Tokens]:
        """The tokens that the model reads, without those that it generates."""
        if self.generation is not None:
            return [self.prompt]
        return [(*prompt, *rest) for prompt, rest in self.likelihoods]


DocumentTokens = tuple[InstanceTokens, ...]


class HarnessSource:
    """A task of the harness, whose requests are made once.

    :param task: the harness's own object, with the documents that are asked.
    :param metric: how answers become scores.
    :param prompting: how documents become prompts.
    :raises ValueError: if it asks for something that is not answered here.
    """

    def __init__(self, task, metric: HarnessMetric, prompting: Prompting):
        self.task = task
        self.metric = metric
        self.prompting = prompting
        self.documents: list[dict] = task.eval_docs
        self.instances: list[list[Any]] = self._make_instances(None)
        self.generations: list[Generation | None] = self._parse_generations()
        metric.read_documents(self.documents, self.instances)
        if metric.kind == NUMBER and not getattr(task, "UNSAFE_CODE", False):
            self._find_missing()
        self._tokens: WeakKeyDictionary[Prompts, list[DocumentTokens]] = WeakKeyDictionary()

    @property
    def name(self) -> str:
        """Of the task, as the harness knows it."""
        return self.task.config.task

    def _make_instances(self, chat_template: Callable | None) -> list[list[Any]]:
        """The requests of each document, as `build_all_requests` of the harness makes them."""
        prompting = self.prompting
        task = self.task
        task.set_fewshot_seed(seed=prompting.fewshot_seed)
        by_document = []
        for place, document in enumerate(self.documents):
            context = task.fewshot_context(
                document,
                num_fewshot=prompting.num_fewshot,
                system_instruction=prompting.system_instruction,
                apply_chat_template=chat_template is not None,
                fewshot_as_multiturn=chat_template is not None,
                chat_template=chat_template,
                gen_prefix=task.doc_to_prefix(document),
            )
            instances = task.construct_requests(
                doc=document,
                ctx=context,
                metadata=(self.name, place, task.config.repeats),
                apply_chat_template=chat_template is not None,
                chat_template=chat_template,
            )
            by_document.append(instances if isinstance(instances, list) else [instances])
        return by_document

    def _parse_generations(self) -> list[Generation | None]:
        """How each request of a document is answered; the same for all documents."""
        return [
            parse_generation(instance.args[1])
            if instance.request_type == "generate_until"
            else None
            for instance in self.instances[0]
        ]

    def prompt_text(self, place: int) -> str:
        """The context of a document's first request, without chat template."""
        return str(self.instances[place][0].args[0])

    def gold_text(self, place: int) -> str:
        """The text of a right answer, or what stands in its place."""
        return self.metric.gold_text(place)

    def requests_sha256(self, place: int) -> str:
        """A digest of all that a document asks."""
        asked = [(found.request_type, found.args) for found in self.instances[place]]
        return hashlib.sha256(repr(asked).encode()).hexdigest()

    def tokens(self, model: LanguageModel) -> list[DocumentTokens]:
        """The requests of every document in tokens. They are kept as long as the tokenizer is."""
        kept = self._tokens.get(model.prompts)
        if kept is None:
            kept = self._tokens[model.prompts] = self._tokenize(model)
        return kept

    def _tokenize(self, model: LanguageModel) -> list[DocumentTokens]:
        encoder = self._encoder(model)
        instances = self.instances
        if self.prompting.chat:
            model.prompts.chat_template.text("?")  # refuses a base without a usable template
            instances = self._make_instances(encoder.apply_chat_template)
        tokens = []
        for place, of_document in enumerate(instances):
            try:
                tokens.append(tuple(self._encode(encoder, instance) for instance in of_document))
            except ValueError as error:
                raise ValueError(f"document {place} of {self.name}: {error}") from error
        if encoder.texts_cut:
            log.warning(
                "lm_eval task %s: found %d texts of more than the %d tokens that the base takes; "
                "they lose their beginning, as with the harness",
                self.name,
                encoder.texts_cut,
                encoder.max_length,
            )
        return tokens

    @staticmethod
    def _encoder(model: LanguageModel):
        arguments = model.prompts.chat_template.rendering
        return make_encoder(model.model, model.tokenizer, arguments)

    def _encode(self, encoder, instance) -> InstanceTokens:
        if instance.request_type == "loglikelihood":
            return InstanceTokens((likelihood_request(encoder, instance),))
        if instance.request_type == "loglikelihood_rolling":
            return InstanceTokens(tuple(rolling_requests(encoder, instance)), is_rolling=True)
        generation = parse_generation(instance.args[1])
        text = instance.args[0]
        prompt = generation_prompt(encoder, text, generation.max_new_tokens)
        return InstanceTokens((), prompt, generation)

    def gold_requests(self, model: LanguageModel, places: Sequence[int]) -> list[Request]:
        """The prompts of documents with their right answers and the end of the text, in tokens.

        :raises ValueError: if a document has no right answer.
        """
        encoder = self._encoder(model)
        instances = self.instances
        if self.prompting.chat:
            instances = self._make_instances(encoder.apply_chat_template)
        requests = []
        for place in places:
            number = self.metric.gold_instance(place)
            tokens = self.tokens(model)[place][number]
            if tokens.generation is None:
                prompt, rest = tokens.likelihoods[0]
            else:
                delimiter = "" if self.prompting.chat else self.task.config.target_delimiter
                target = f"{delimiter}{self.gold_text(place)}"
                prompt, rest = gold_request(encoder, instances[place][number].args[0], target)
            requests.append((prompt, (*rest, model.end_token)))
        return requests

    def score(self, places: Sequence[int], answers: Sequence[Sequence[Answer]]) -> np.ndarray:
        """Score the answers to some documents by the harness's own filter and metric.

        :param places: of S documents.
        :param answers: to the requests of each.
        :return: S numbers, better when higher. Where the metric is one of all documents together,
            each is that.
        """
        return self.metric.scores(self._process_results(places, answers))

    def _find_missing(self) -> None:
        """Have the metric find out whether all documents have it, by answers that say nothing."""
        answers: list[list[Answer]] = []
        for instances in self.instances:
            answers.append([EMPTY_ANSWERS[instance.request_type] for instance in instances])
        try:
            values = self._process_results(range(len(answers)), answers)
        except Exception:  # of the task's own code, which takes no such answers
            return
        self.metric.find_missing(values)

    def _process_results(
        self, places: Sequence[int], answers: Sequence[Sequence[Answer]]
    ) -> list[dict]:
        """What the harness gives for the answers to some documents, by metric; as of `score`."""
        by_document = [self.instances[place] for place in places]
        flat = []
        for instances, of_document in zip(by_document, answers, strict=True):
            for instance, answer in zip(instances, of_document, strict=True):
                instance.resps = [answer]
                instance.filtered_resps = {}
                flat.append(instance)
        chosen = self.metric.filter
        values = []
        try:
            chosen.apply(flat)
            for place, instances in zip(places, by_document, strict=True):
                filtered = [instance.filtered_resps[chosen.name] for instance in instances]
                values.append(self.task.process_results(self.documents[place], filtered))
        except Exception as error:  # of the task's own code, which may ask other machines
            if is_out_of_memory(error):
                raise
            reason = " ".join(str(error).split()) or "no message"
            raise ScoringFailed(
                f"lm_eval task {self.name!r}: expected scores of its answers, found that its own "
                f"code failed: {type(error).__name__}: {reason}"
            ) from error
        return values
