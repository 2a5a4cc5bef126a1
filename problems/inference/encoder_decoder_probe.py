"""What an encoder-decoder gives rightly, found out on this very base with prompts of the run.

Prompts and answers of different length in one pass, steps with a cache, and candidates that share a
batch are compared with plain passes: one prompt and one answer, without padding or cache. A base
that gives something else is refused. Where experts cannot be added by hooks, or candidates change
each other, merges go into the weights one by one.
"""

from collections.abc import Sequence

import torch

from evox_evogm.problems.failures import in_one_line, is_out_of_memory_by_torch
from evox_evogm.problems.inference.capabilities import Capabilities
from evox_evogm.problems.inference.compare_modes import without_hooks
from evox_evogm.problems.inference.comparisons import Comparisons
from evox_evogm.problems.inference.encoder_decoder import Answer, EncoderDecoderModel
from evox_evogm.problems.inference.encoder_decoder_forward import pad_right
from evox_evogm.problems.inference.logit_differences import largest_difference
from evox_evogm.problems.inference.probe_rows import STEPS
from evox_evogm.problems.inference.prompts import Tokens
from evox_evogm.problems.inference.shared_batches import share_batches


class EncoderDecoderProbe(Comparisons):
    """Comparisons of shared passes with plain ones.

    The encoder reads a row, and the decoder writes its beginning.
    """

    model: EncoderDecoderModel

    def make_plain_passes(self) -> None:
        """Compute what everything else is compared with.

        :raises ValueError: if two passes differ, or later tokens change earlier logits.
        """
        for row in (self.short, self.other, self.long):
            self.expected[row] = self.plain(row, STEPS)
        self.measure_rounding()
        self.check_repeatable()
        changed = list(self._inputs(self.short, STEPS))
        changed[-1] = next(token for token in self.long if token != changed[-1])
        before = self._plain_logits(self.short, changed)[:-1]
        if not self.tolerance.agree(before, self.expected[self.short][:-1]):
            raise ValueError(
                "base: expected a decoder that writes from left to right, found "
                f"{type(self.model.model).__name__}, in which later tokens change earlier logits"
            )

    def without_comparison(self) -> Capabilities:
        """What is relied on where no logits are finite."""
        return self.able.note("found no finite logits, so nothing could be compared")

    def compare_base(self) -> None:
        """Compare passes and steps of the base alone.

        :raises ValueError: if they differ from plain passes.
        """
        answers = [
            Answer(0, self.short, self._inputs(self.short, STEPS)),
            Answer(0, self.long, self._inputs(self.long, STEPS - 2)),
            Answer(0, self.other, self._inputs(self.other, STEPS)),
        ]
        plain = [self.expected[answer.prompt][: len(answer.tokens)] for answer in answers]
        self._require("padding", largest_difference(self._pass(answers), plain))
        self._require("steps with a cache", self._apart_in_steps(answers, plain))

    def _inputs(self, row: Tokens, count: int) -> Tokens:
        """What the decoder reads: its start token, and the beginning of a row."""
        return (self.model.start_token, *row[: count - 1])

    def plain(self, row: Tokens, count: int) -> torch.Tensor:
        """The logits `(count, V)` of a row and its beginning, as a plain user computes them."""
        return self._plain_logits(row, self._inputs(row, count))

    def _plain_logits(self, row: Tokens, inputs: Sequence[int]) -> torch.Tensor:
        """The logits `(W, V)` of one prompt and one answer, as a plain user computes them."""
        forward = self.model.forward
        given = {
            "input_ids": torch.tensor([row], device=forward.device),
            "decoder_input_ids": torch.tensor([list(inputs)], device=forward.device),
            "use_cache": False,
        }
        return forward.run_model(given).logits[0].float()

    def _pass(self, answers: Sequence[Answer]) -> list[torch.Tensor]:
        """The logits of answers that share one pass, as tasks make it."""
        model = self.model
        owners = [answer.candidate for answer in answers]
        read = model.read([answer.prompt for answer in answers], owners)
        tokens = [answer.tokens for answer in answers]
        inputs, _ = pad_right(tokens, model.pad_id, model.device)
        lengths = [len(one) for one in tokens]
        logits = model.forward.decode(owners, read, inputs, lengths).float()  # (Q, V)
        return list(logits.split(lengths))

    def _apart_in_steps(self, answers: Sequence[Answer], expected: Sequence[torch.Tensor]) -> float:
        """The largest difference of answers that are decoded together; each ends by itself.

        :param expected: for each answer its logits.
        """
        model = self.model
        owners = [answer.candidate for answer in answers]
        read = model.read([answer.prompt for answer in answers], owners)
        rows = list(range(len(answers)))  # the answers that have not ended
        found: list[list[torch.Tensor]] = [[] for _ in answers]
        cache = None
        for step in range(max(len(answer.tokens) for answer in answers)):
            kept = [place for place, row in enumerate(rows) if step < len(answers[row].tokens)]
            if len(kept) < len(rows):
                assert cache is not None, "every answer has a first token"
                places = torch.tensor(kept, device=model.device)
                read = read.rows(places)
                cache.batch_select_indices(places)
                rows = [rows[place] for place in kept]
            tokens = torch.tensor([[answers[row].tokens[step]] for row in rows])
            of_rows = [owners[row] for row in rows]
            logits, cache = model.forward.step(of_rows, read, tokens.to(model.device), cache)
            for row, values in zip(rows, logits, strict=True):
                found[row].append(values.float())
        return largest_difference([torch.stack(rows) for rows in found], expected)

    def _require(self, what: str, apart: float) -> None:
        """Refuse a base on which a comparison does not agree.

        :param what: is compared.
        :param apart: the largest difference from plain passes.
        """
        if not self.tolerance.allows(apart):
            raise ValueError(
                f"base: expected passes that agree with plain ones, found for {what} that logits "
                f"differ by {apart:.2g}, where rounding moves them by {self.tolerance.rounding:.2g}"
            )

    def compare_candidates(self) -> None:
        """Compare experts by hooks and in the weights, and two candidates in one batch."""
        pop = self.two_candidates()
        answers = []
        for row, candidate in self.rows_of_candidates():
            count = STEPS if row != self.long else STEPS - 2
            answers.append(Answer(candidate, row, self._inputs(row, count)))

        def each_alone() -> list[torch.Tensor]:
            return [self._pass([answer])[0] for answer in answers]

        apart = self.compare_modes(pop, each_alone)
        if apart is None:
            return
        with share_batches(self.model, self.modules, pop):
            reason = self._reason_against_mixing(answers, apart)
        if reason is not None:
            self.able = without_hooks(self.able, reason, self.merger)

    def _reason_against_mixing(
        self, answers: Sequence[Answer], apart: Sequence[torch.Tensor]
    ) -> str | None:
        """What speaks against two candidates in one batch, or None.

        :param apart: the logits of each answer alone.
        """
        try:
            moved = largest_difference(self._pass(answers), apart)
            moved = max(moved, self._apart_in_steps(answers, apart))
        except Exception as error:  # each model raises its own
            if is_out_of_memory_by_torch(error):
                raise
            return f"make the base raise {in_one_line(error)} for two candidates in one batch"
        if self.tolerance.allows(moved):
            return None
        return f"give logits that differ by {moved:.2g} for two candidates in one batch"
