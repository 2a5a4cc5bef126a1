"""What a device can do at most: its rate of matrix products, and of bytes read and written."""

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from benchmarks.gpu.random_bases import Regime
from evox_evogm.problems.inference.device_clock import synchronize


@dataclass(frozen=True)
class DeviceRates:
    """The measured limits of a device.

    :param operations: additions and multiplications a second, in large products.
    :param bytes: read and written a second, by large copies.
    """

    operations: float
    bytes: float


@dataclass(frozen=True)
class Work:
    """What the answers of a population need at least, whatever computes them.

    :param base: the language model.
    :param regime: what is asked.
    :param candidates: P.
    """

    base: torch.nn.Module
    regime: Regime
    candidates: int

    def seconds(self, rates: DeviceRates) -> float:
        """The time that the device's limits allow: the roofline.

        - Every token of every prompt goes through the layers, and what is scored through the output
          layer.
        - Every step of decoding reads all weights once, and the keys and values of all rows.
        - Attention, the experts and everything else count as nothing.
        """
        layers, output = _weights(self.base)
        rows = self.candidates * self.regime.examples
        scored = 1 if self.regime.new_tokens else 3  # tokens of the right answer
        products = rows * (layers * self.regime.tokens + output * scored)
        seconds = 2 * products / rates.operations
        size = self.base.dtype.itemsize
        for step in range(1, self.regime.new_tokens):
            by_products = 2 * rows * (layers + output) / rates.operations
            cached = rows * (self.regime.tokens + step) * _cached_numbers(self.base)
            by_bytes = size * (layers + output + cached) / rates.bytes
            seconds += max(by_products, by_bytes)
        return seconds

    @property
    def tokens(self) -> int:
        """Tokens that are read and written for all candidates."""
        new = self.regime.new_tokens
        return self.candidates * self.regime.examples * (self.regime.tokens + new)


def _weights(base: torch.nn.Module) -> tuple[int, int]:
    """The weights of all linear layers but the last, and of the last."""
    output = base.get_output_embeddings()
    layers = 0
    for module in base.modules():
        if isinstance(module, torch.nn.Linear) and module is not output:
            layers += module.weight.numel()
    return layers, output.weight.numel()


def _cached_numbers(base: torch.nn.Module) -> int:
    """The keys and values of a token in all layers."""
    config = base.config
    width = config.hidden_size // config.num_attention_heads * config.num_key_value_heads
    return 2 * config.num_hidden_layers * width


def measure_device(device: torch.device, dtype: torch.dtype) -> DeviceRates:
    """Time large matrix products and large copies."""
    on_cpu = device.type == "cpu"
    size = 256 if on_cpu else 8192  # a CPU without bfloat16 takes seconds for 1,024
    a, b = torch.randn(2, size, size, dtype=dtype, device=device)
    product_seconds = seconds_of(lambda: a @ b, device, repeats=10)
    numbers = 2**24 if on_cpu else 2**30
    source = torch.zeros(numbers, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    copy_seconds = seconds_of(lambda: target.copy_(source), device, repeats=10)
    return DeviceRates(2 * size**3 / product_seconds, 2 * numbers / copy_seconds)


def seconds_of(work: Callable[[], object], device: torch.device, repeats: int = 1) -> float:
    """The mean seconds of some runs, after one that does not count."""
    work()
    synchronize(device)
    start = time.perf_counter()
    for _ in range(repeats):
        work()
    synchronize(device)
    return (time.perf_counter() - start) / repeats
