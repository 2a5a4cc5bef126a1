"""Launches and waits, counted on work whose numbers are known by hand."""

import torch

from benchmarks.gpu.random_bases import build_config, build_model, build_tokenizer
from benchmarks.speed.pass_cost import count
from evox_evogm.problems.inference.language_model import LanguageModel
from evox_evogm.problems.inference.measure_batches import RandomBatches
from evox_evogm.problems.inference.static_steps import StaticSteps


def test_views_are_no_launches_and_nothing_waits():
    values = torch.ones(4, 3)
    found = count(lambda: values.view(3, 4).t()[0] + 1)
    assert (found.passes, found.launches, found.waits) == (0, 1, 0)


def test_products_and_writing_in_place_are_launches():
    values = torch.ones(3, 3)
    assert count(lambda: (values @ values).mul_(2)).launches == 2


def test_numbers_and_tensors_that_come_to_the_host_wait():
    values = torch.arange(4.0)
    assert count(lambda: float(values.sum())).waits == 1
    assert count(lambda: bool((values > 1).any())).waits == 1
    assert count(lambda: values[values > 1]).waits == 1
    assert count(lambda: values.cpu()).waits == 1
    assert count(lambda: values.tolist()).waits == 1
    assert count(lambda: values[torch.tensor([0, 2])]).waits == 0


@torch.no_grad()
def test_a_step_with_a_static_cache_waits_for_nothing():
    """So it can be captured."""
    config = build_config("Llama-3.1-8B", tiny=True)
    model = build_model(config, torch.float32, torch.device("cpu"))
    scorer = LanguageModel(model, build_tokenizer(config.vocab_size))
    batches = RandomBatches(scorer, 1)
    cache, mask, tokens = batches.filled_cache(4)
    steps = StaticSteps(scorer.forward, [0] * 4, cache, mask, 2)
    steps(tokens)
    assert count(lambda: steps(tokens)).waits == 0
    assert count(batches.step(4)).waits > 0
