"""Experts that are far from the others are warned of with numbers; trained ones are not."""

import logging
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import evox_evogm
from evox_evogm.problems.adapters import odd_experts
from evox_evogm.problems.adapters.odd_experts import (
    LIMIT,
    spectra_of,
    spectrum_of,
    warnings_of_odd_experts,
)
from evox_evogm.problems.adapters.read_adapter import Expert, Factors, read_expert

DEMO = Path(evox_evogm.__file__).parent / "demo" / "experts"


@pytest.fixture(scope="module")
def trained():
    """The eight experts that are shipped, of ranks 2 to 8 and with different modules."""
    return [read_expert(folder) for folder in sorted(DEMO.iterdir()) if folder.is_dir()]


def random_factors(*before, r=3, d_in=7, d_out=5, scale=0.5, seed=0):
    generator = torch.Generator().manual_seed(seed)
    a = torch.randn(*before, r, d_in, generator=generator)
    b = torch.randn(*before, d_out, r, generator=generator)
    return Factors(a, b, scale, False, 0 if before else None)


def changed(expert, change):
    """An expert whose B are what a function of module and factors makes of them."""
    modules = {}
    for name, factors in expert.modules.items():
        modules[name] = replace(factors, b=change(name, factors))
    return replace(expert, modules=modules)


def noise(size):
    """Noise on B, in units of the root mean square of B."""
    generator = torch.Generator().manual_seed(0)

    def change(_, factors):
        b = factors.b
        return b + size * b.square().mean().sqrt() * torch.randn(b.shape, generator=generator)

    return change


def one_direction(where, size):
    """A last channel of B that makes a module's change so many times as large."""

    def change(name, factors):
        if where not in name:
            return factors.b
        b = factors.b.clone()
        norm = torch.linalg.matrix_norm(b @ factors.a)
        b[:, -1] = size * norm / factors.a[-1].norm() / math.sqrt(len(b))
        return b

    return change


@pytest.mark.parametrize("before", [(), (4,)])
def test_the_spectrum_is_that_of_the_dense_product(before):
    factors = random_factors(*before)
    found = spectrum_of(factors)
    dense = 0.5 * (factors.b.double() @ factors.a.double())
    squares = torch.linalg.svdvals(dense).square()[..., :3].flatten()
    assert found.norm == pytest.approx(float(squares.sum().sqrt()))
    assert found.share == pytest.approx(float(squares.max() / squares.sum()))
    shares = squares / squares.sum()
    spread = float(-(shares * shares.log()).sum()) / math.log(len(shares))
    assert found.log_odds == pytest.approx(math.log(spread / (1 - spread)))
    mean_square = float(dense.square().mean())
    assert found.log_size == pytest.approx(math.log(mean_square) / 2)


def test_of_one_direction_there_is_no_spread_to_compare():
    found = spectrum_of(random_factors(r=1))
    assert found.share == pytest.approx(1) and found.log_odds is None


def test_trained_experts_are_not_warned_of(trained, caplog):
    assert warnings_of_odd_experts(trained) == [] and not caplog.records
    for place in range(1, len(trained)):
        assert warnings_of_odd_experts([trained[0], trained[place]]) == []


@pytest.mark.parametrize("place", [0, 3, 7])
def test_an_expert_that_was_scaled_is_warned_of_with_its_norm(trained, place, caplog):
    experts = list(trained)
    experts[place] = changed(trained[place], lambda _, factors: 30 * factors.b)
    with caplog.at_level(logging.WARNING):
        (warning,) = warnings_of_odd_experts(experts)
    assert [record.getMessage() for record in caplog.records] == [warning]
    norms = [found.norm for found in spectra_of(experts)]
    others = [norm for norm in norms if norm is not norms[place]]
    assert warning.startswith(f"expert '{trained[place].name}': its changes are ")
    numbers = f"norm {norms[place]:.3g}, {min(others):.3g} to {max(others):.3g} with them"
    assert f"times those of the others: {numbers} (robust z " in warning
    assert norms[place] == pytest.approx(30 * spectra_of(trained)[place].norm)


@pytest.mark.parametrize("place", [0, 3, 7])
def test_noise_is_warned_of_by_its_flat_spectrum(trained, place):
    experts = list(trained)
    experts[place] = changed(trained[place], noise(3))
    (warning,) = warnings_of_odd_experts(experts)
    assert f"expert '{trained[place].name}': its spectrum is flatter, more like noise" in warning


@pytest.mark.parametrize("place", [0, 3, 7])
def test_a_huge_direction_in_one_module_is_named(trained, place):
    name = list(trained[place].modules)[5]
    experts = list(trained)
    experts[place] = changed(trained[place], one_direction(name, 100))
    (warning,) = warnings_of_odd_experts(experts)
    assert f"expert '{trained[place].name}': {name} changes " in warning
    assert "as much as its other modules suggest: norm " in warning
    assert "100 % of it in one direction" in warning


def test_a_direction_in_all_modules_is_a_steep_spectrum(trained):
    experts = [*trained[:7], changed(trained[7], one_direction("", 20))]
    (warning,) = warnings_of_odd_experts(experts)
    assert "its spectrum is steeper than the others'" in warning


def test_an_expert_without_any_change_is_named(trained):
    experts = [*trained[:2], changed(trained[2], lambda _, factors: 0 * factors.b)]
    (warning,) = warnings_of_odd_experts(experts)
    assert warning == (
        f"expert '{trained[2].name}': changes nothing, as its A or B is 0 in every module, which "
        "is how the training of a LoRA begins"
    )


def test_one_expert_has_nobody_to_be_compared_with(trained):
    assert warnings_of_odd_experts(trained[:1]) == []


def test_z_is_the_distance_to_the_median_in_robust_deviations():
    """By hand: the median of 1, 2, 3, 4, 10 is 3, of the distances 2, 1, 0, 1, 7 it is 1."""
    assert odd_experts._robust_z(9, [1, 2, 3, 4, 10], 0.1) == pytest.approx(6 / 1.4826)
    assert odd_experts._robust_z(9, [1, 2, 3, 4, 10], 3) == pytest.approx(2)


def test_the_z_of_a_warning_is_that_of_its_reason():
    """By hand: of the size it is 2.5 / .35 = 7.1, below 8; of the spectrum 2.2 / .4 = 5.5."""
    usual = odd_experts.Spectrum(norm=1.0, share=0.5, log_size=0.0, log_odds=0.0)
    odd = usual._replace(log_size=-2.5, log_odds=2.2)
    experts = []
    for number, spectrum in enumerate([usual, usual, usual, odd]):
        experts.append(odd_experts.ExpertSpectrum(str(number), {"layer.q_proj": spectrum}))
    (warning,) = odd_experts._warnings_among(experts, "")
    assert "its spectrum is flatter" in warning and "(robust z 5.5)" in warning


def test_kinds_of_modules_that_no_other_expert_has_are_compared_with_all():
    sizes = {"q_proj": 1.0, "k_proj": 1.0, "up_proj": 40.0}
    experts = []
    for seed, (kind, scale) in enumerate(sizes.items()):
        modules = {}
        for layer in range(3):
            factors = random_factors(r=4, d_in=16, d_out=16, scale=scale, seed=9 * seed + layer)
            modules[f"layers.{layer}.{kind}"] = factors
        experts.append(Expert(kind, Path(kind), "", modules))
    (warning,) = warnings_of_odd_experts(experts)
    assert warning.startswith("expert 'up_proj': its changes are ")
    z = float(warning.rpartition("robust z ")[2].partition(")")[0])
    assert z > LIMIT
