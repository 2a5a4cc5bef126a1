"""Steps of decoding whose shapes and places in memory stay the same, with a cache of full length.

On a CUDA device the second step is captured as a graph, and those behind it replay it: one launch
in place of hundreds. Elsewhere, and where a step cannot be captured, each runs as any pass does.
"""

import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from evox_evogm.problems.failures import in_one_line, is_out_of_memory_by_torch
from evox_evogm.problems.inference.capabilities import changing_context

if TYPE_CHECKING:
    from transformers import Cache

    from evox_evogm.problems.inference.forward import Forward

log = logging.getLogger(__name__)
WAITING = "synchronizing CUDA operation"  # in a warning of torch


@dataclass
class StaticUse:
    """What all copies of a forward pass know of static caches.

    :param passes: how many passes were made; replays are none.
    :param failed: why static caches are used no more, or None.
    :param lacked_memory: whether memory for one could not be had, at some time.
    """

    passes: int = 0
    failed: str | None = None
    lacked_memory: bool = False

    def stop(self, error: Exception) -> None:
        """Use static caches no more, and log why."""
        if self.failed is None:
            self.failed = in_one_line(error)
            log.warning("decoding goes on without a static cache: %s", self.failed)


class StaticSteps:
    """Steps of N rows that get one token each.

    :param forward: makes the passes.
    :param candidates: for each row its candidate.
    :param cache: of what has run, a growing one. It stays as it is.
    :param mask: an `(N, W)` tensor of what has run, 0 at the padding.
    :param steps: how many steps there are at most.
    """

    def __init__(
        self,
        forward: "Forward",
        candidates: Sequence[int],
        cache: "Cache",
        mask: torch.Tensor,
        steps: int,
    ):
        rows, self.filled = mask.shape
        self.graph: torch.cuda.CUDAGraph | None = None
        self.logits = torch.empty(0)  # (N, V), which a replay writes
        self.has_run = False  # what is done once for these shapes cannot be captured
        self.passes_before = 0
        self.forward = forward
        self.candidates = list(candidates)
        self.cache: Any = static_cache_of(cache, self.filled + steps, forward)
        self.mask = torch.cat([mask, mask.new_zeros(rows, steps)], 1)  # (N, W + steps)
        self.tokens = mask.new_zeros(rows, 1)

    def __call__(self, tokens: torch.Tensor) -> torch.Tensor:
        """The logits `(N, V)` behind one token `(N, 1)` of each row."""
        if self.filled == self.mask.shape[1]:  # on a device nothing would say so
            raise ValueError(f"expected at most {self.filled} tokens in a static cache")
        self.tokens.copy_(tokens)
        self.mask[:, self.filled] = 1
        self.filled += 1
        use = self.forward.static_use
        if self.passes_before != use.passes:  # what another pass left is not what was captured
            self._forget_graph()
        if self.has_run and self.graph is None and self._may_capture():
            self._capture()
        if self.graph is not None:
            self.graph.replay()
            logits = self.logits.clone()  # the next step writes to the same place
        elif self._may_capture():
            logits = self._run_before_capture()
        else:
            logits = self._run()
        self.has_run = True
        self.passes_before = use.passes
        return logits

    def keep_rows(self, places: Sequence[int]) -> None:
        """Let the other rows leave.

        :param places: of the rows that stay.
        """
        self.candidates = [self.candidates[place] for place in places]
        kept = torch.tensor(places, device=self.mask.device)
        for layer in self.cache.layers:
            layer.keys = layer.keys[kept]
            layer.values = layer.values[kept]
            layer.batch_size = len(places)
        self.mask = self.mask[kept]
        self.tokens = self.tokens[kept]
        self._forget_graph()

    def _run(self) -> torch.Tensor:
        scored = [1] * len(self.candidates)
        return self.forward(self.candidates, self.tokens, self.mask, scored, self.cache)

    def _forget_graph(self) -> None:
        self.graph = None
        self.logits = torch.empty(0)
        self.has_run = False

    def _may_capture(self) -> bool:
        return self.mask.device.type == "cuda" and self.forward.static_use.failed is None

    def _run_before_capture(self) -> torch.Tensor:
        """A step that says whether steps can be captured: those that wait for the device cannot."""
        if self.forward.select is not None:
            self.forward.select(self.candidates, None)  # copies candidates that are new
        with waits_for_device() as waits:
            logits = self._run()
        if waits:
            self.forward.static_use.stop(RuntimeError("a step of this base waits for the device"))
        return logits

    def _capture(self) -> None:
        """Capture a step, which does not run it. If that fails, steps go on without a graph."""
        graph = torch.cuda.CUDAGraph()
        device = self.mask.device
        try:
            with (
                torch.cuda.device(device),
                # Restores the stream where the block behind it fails to.
                torch.cuda.stream(torch.cuda.current_stream(device)),
                torch.cuda.graph(
                    graph,
                    stream=torch.cuda.Stream(device),  # torch's own may be of another device
                    capture_error_mode="thread_local",
                ),
            ):
                logits = self._run()
        except Exception as error:  # each model and driver raises its own
            self.forward.static_use.stop(error)
            return
        self.graph, self.logits = graph, logits


def make_static_steps(
    forward: "Forward", candidates: Sequence[int], cache: "Cache", mask: torch.Tensor, steps: int
) -> StaticSteps | None:
    """The steps, or None where a cache cannot be static or its memory cannot be had."""
    if forward.static_use.failed is not None or not may_be_static(forward):
        return None
    if cache.get_seq_length() == 0:  # of a pass that computes nothing
        return None
    try:
        return StaticSteps(forward, candidates, cache, mask, steps)
    except Exception as error:  # transformers of other versions raise their own
        if is_out_of_memory_by_torch(error):  # of this batch; a smaller one may have room
            forward.static_use.lacked_memory = True
        else:
            forward.static_use.stop(error)
        return None


def may_be_static(forward: "Forward") -> bool:
    """Whether caches hold all keys and values of every layer, and masks are given."""
    from transformers.cache_utils import DynamicLayer

    if forward.cache_argument != "past_key_values" or not forward.give_positions:
        return False
    if changing_context(forward.model)[0] is not None:  # frequencies depend on the tokens
        return False
    if len({parameter.device for parameter in forward.model.parameters()}) > 1:
        return False
    return all(type(layer) is DynamicLayer for layer in forward.new_cache().layers)


def static_cache_of(cache: "Cache", length: int, forward: "Forward") -> "Cache":
    """A static cache with the same keys and values.

    :param length: how many tokens of each row it can hold.
    """
    from transformers import StaticCache

    static = StaticCache(config=forward.model.config, max_cache_len=length)
    parts: list[Any] = list(cache.layers)
    layers: list[Any] = list(static.layers)
    for layer, part in zip(layers, parts, strict=True):
        layer.update(part.keys, part.values)
    return static


@contextmanager
def waits_for_device() -> Iterator[list[str]]:
    """Inside the block torch says where the host waits for a CUDA device.

    :return: what it said, complete behind the block.
    """
    mode = torch.cuda.get_sync_debug_mode()
    waits: list[str] = []
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("warn")  # warns itself that it is a prototype
            yield waits
    finally:
        torch.cuda.set_sync_debug_mode(mode)
    waits += [str(warning.message) for warning in caught if WAITING in str(warning.message)]
