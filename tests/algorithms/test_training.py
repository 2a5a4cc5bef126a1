"""The training loop beside a plain one: nn.Module, autograd, torch.optim.Adam."""

import pytest
import torch
from plain_evogm import as_module, plain_training

from evox_evogm.algorithms.archive import winner_count
from evox_evogm.algorithms.generators import (
    forward,
    generate,
    initial_parameters,
    layer_by_layer,
    pack,
    parameter_count,
    unpack,
)
from evox_evogm.algorithms.training import train

SIZES = [3, 8, 5, 3]


def a_run(networks=2, *, seed=0, count=11, dtype=torch.float64, epochs=15):
    """Arguments of `train` for a history of `count` rows in an archive of 16."""
    torch.manual_seed(seed)
    parameters = initial_parameters(SIZES, networks, dtype, torch.device("cpu"))
    points = torch.zeros(16, 3, dtype=dtype)
    points[:count] = 2 * torch.rand(count, 3, dtype=dtype) - 1
    return {
        "parameters": parameters,
        "moments": torch.zeros(2, *parameters.shape, dtype=dtype),
        "steps": torch.tensor(0),
        "points": points,
        "count": torch.tensor(count),
        "draws": torch.rand(epochs, 16, dtype=dtype),
        "settings": torch.tensor([3e-3, 0.3, 100.0, 1.0], dtype=dtype),
        "seed": torch.tensor(seed + 100),
    }


@pytest.mark.parametrize("networks", [1, 2])
@pytest.mark.parametrize("weights", [(100.0, 1.0), (0.0, 1.0), (5.0, 0.3)])
def test_training_equals_autograd_and_adam(networks, weights):
    run = a_run(networks)
    run["settings"][2:] = torch.tensor(weights, dtype=torch.float64)
    parameters, _, losses = train(*run.values(), SIZES)
    expected, expected_losses, _ = plain_training(
        run["parameters"], run["points"], 11, run["draws"], 3e-3, 0.3, *weights, SIZES
    )
    assert not torch.allclose(parameters[0], run["parameters"][0], atol=1e-3)
    torch.testing.assert_close(parameters, expected, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(losses, expected_losses.to(losses.dtype), rtol=1e-9, atol=1e-12)


def test_training_in_float32_agrees_with_autograd_to_rounding():
    run = a_run(dtype=torch.float32)
    parameters, _, _ = train(*run.values(), SIZES)
    expected, *_ = plain_training(
        run["parameters"], run["points"], 11, run["draws"], 3e-3, 0.3, 100.0, 1.0, SIZES
    )
    torch.testing.assert_close(parameters, expected, rtol=1e-3, atol=1e-4)


def test_training_in_two_halves_equals_training_at_once():
    run = a_run(epochs=10)
    whole, whole_moments, _ = train(*run.values(), SIZES)
    first = {**run, "draws": run["draws"][:4]}
    parameters, moments, _ = train(*first.values(), SIZES)
    second = {
        **run,
        "parameters": parameters,
        "moments": moments,
        "steps": torch.tensor(4),
        "draws": run["draws"][4:],
    }
    parameters, moments, _ = train(*second.values(), SIZES)
    torch.testing.assert_close(parameters, whole)
    torch.testing.assert_close(moments, whole_moments)


def test_many_runs_at_once_equal_each_run_alone():
    runs = [a_run(seed=seed, count=count) for seed, count in ((0, 11), (1, 3), (2, 16))]
    runs[1]["settings"] = torch.tensor([1e-2, 0.5, 1.0, 2.0], dtype=torch.float64)
    stacked = {name: torch.stack([run[name] for run in runs]) for name in runs[0]}
    together = train.run_many(*stacked.values(), SIZES)
    under_vmap = torch.vmap(lambda *tensors: train(*tensors, SIZES))(*stacked.values())
    for index, run in enumerate(runs):
        for alone, joint, mapped in zip(
            train(*run.values(), SIZES), together, under_vmap, strict=True
        ):
            torch.testing.assert_close(joint[index], alone, rtol=1e-9, atol=1e-12)
            torch.testing.assert_close(mapped[index], alone, rtol=1e-9, atol=1e-12)


def test_a_run_whose_round_begins_gets_fresh_generators_beside_one_that_is_trained():
    runs = [a_run(seed=0), a_run(seed=1)]
    runs[0]["steps"], runs[0]["moments"] = torch.tensor(-1), torch.ones_like(runs[0]["moments"])
    stacked = {name: torch.stack([run[name] for run in runs]) for name in runs[0]}
    parameters, moments, losses = train.run_many(*stacked.values(), SIZES)
    fresh = initial_parameters(SIZES, 2, torch.float64, torch.device("cpu"), seed=100)
    assert torch.equal(parameters[0], fresh) and not torch.equal(fresh, runs[0]["parameters"])
    assert not moments[0].any() and not losses[0].any()
    assert not torch.equal(parameters[1], runs[1]["parameters"]) and losses[1].all()
    alone, _, _ = train(*runs[0].values(), SIZES)
    assert torch.equal(alone, fresh)


def test_a_generator_is_the_network_that_torch_builds():
    parameters = initial_parameters(SIZES, 2, torch.float64, torch.device("cpu"))
    points = torch.randn(6, 3, dtype=torch.float64)
    assert parameters.shape == (2, parameter_count(SIZES)) == (2, 3 * 8 + 8 + 8 * 5 + 5 + 5 * 3 + 3)
    torch.testing.assert_close(
        generate(parameters[1], SIZES, points), as_module(parameters[1], SIZES)(points).detach()
    )
    _, layers = layer_by_layer(parameters, SIZES)
    rows = [points.expand(2, 6, 3), *(points.new_empty(2, 6, width) for width in SIZES[1:-1])]
    both = forward(layers, rows)
    torch.testing.assert_close(both[0], as_module(parameters[0], SIZES)(points).detach())


def test_parameters_laid_out_layer_by_layer_pack_to_what_they_were():
    parameters = initial_parameters(SIZES, 2, torch.float64, torch.device("cpu"))
    vector, layers = layer_by_layer(parameters, SIZES)
    assert torch.equal(pack(layers), parameters) and vector.numel() == parameters.numel()
    assert all(
        part.is_contiguous() and part.data_ptr() >= vector.data_ptr()
        for layer in layers
        for part in layer
    )


def test_initial_numbers_fill_the_bounds_of_torch_linear():
    torch.manual_seed(0)
    sizes = [50, 400, 300]
    (parameters,) = initial_parameters(sizes, 1, torch.float32, torch.device("cpu"))
    for (weight, bias), d_in in zip(unpack(parameters[None], sizes), (50, 400), strict=True):
        for values in (weight, bias):
            assert values.abs().max() <= d_in**-0.5
            assert values.min() < -0.9 * d_in**-0.5 and values.max() > 0.9 * d_in**-0.5


def test_the_winners_that_train_are_those_of_the_archive():
    # 7 rows give 2 winners: moving a loser changes the result only through the draws, moving a
    # winner always.
    run = a_run(count=7, epochs=1)
    run["draws"] = torch.zeros(1, 16, dtype=torch.float64)  # only row 2, the first loser, is drawn
    assert int(winner_count(run["count"], run["settings"][1])) == 2
    before, _, _ = train(*run.values(), SIZES)
    for row, matters in ((0, True), (1, True), (2, True), (3, False), (6, False), (9, False)):
        changed = {**run, "points": run["points"].clone()}
        changed["points"][row] += 0.1
        after, _, _ = train(*changed.values(), SIZES)
        assert torch.equal(before, after) != matters
