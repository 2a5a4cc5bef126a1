"""Norms and spectra of whole models: close to exact ones, and odd models are named with numbers."""

import math

import pytest
import torch
from builders import build_model
from safetensors.torch import load_file, save_file

from evox_evogm.problems.adapters.check_fit import fit_experts
from evox_evogm.problems.adapters.odd_experts import spectra_of, warnings_of_odd_experts
from evox_evogm.problems.checkpoints.checkpoint_spectra import spectrum_of
from evox_evogm.problems.checkpoints.read_experts import read_experts


def exact(matrix):
    """Norm, share of the largest squared singular value, and log-odds of the effective rank."""
    squares = torch.linalg.svdvals(matrix.double()).square()
    effective = float(squares.sum() ** 2 / squares.square().sum())
    spread = math.log(effective) / math.log(len(squares))
    share = float(squares[0] / squares.sum())
    return float(squares.sum().sqrt()), share, math.log(spread / (1 - spread))


@pytest.mark.parametrize("shape", [(60, 90), (90, 60)])
@pytest.mark.parametrize("decay", [0.0, 0.1, 0.5])
def test_a_spectrum_is_close_to_that_of_all_singular_values(shape, decay):
    torch.manual_seed(0)
    u, _, v = torch.linalg.svd(torch.randn(shape), full_matrices=False)
    matrix = u @ torch.diag(torch.exp(-decay * torch.arange(60.0))) @ v
    found, (norm, share, log_odds) = spectrum_of(matrix), exact(matrix)
    assert found.norm == pytest.approx(norm, rel=1e-5)
    assert found.log_size == pytest.approx(math.log(norm / math.sqrt(matrix.numel())), abs=1e-5)
    assert found.share == pytest.approx(share, rel=0.2)
    if decay:  # of equal singular values the log-odds are infinite
        assert found.log_odds == pytest.approx(log_odds, abs=0.4)
    else:
        assert found.log_odds > 3


def test_a_vector_has_a_norm_only_and_kernels_are_matrices():
    found = spectrum_of(torch.tensor([3.0, 4.0]))
    assert (found.norm, found.log_odds) == (5.0, None) and math.isnan(found.share)
    torch.manual_seed(0)
    kernels = torch.randn(8, 3, 2, 2)
    assert spectrum_of(kernels) == spectrum_of(kernels.flatten(1))
    assert spectrum_of(torch.zeros(2, 2)).log_size == -math.inf


@pytest.fixture
def spoil(write_model):
    """A function that adds to a weight of the last of four models; the warnings about all."""

    def warn(change=lambda weights, base: None):
        folders = [write_model(name, seed) for seed, name in enumerate("abcd")]
        base = dict(build_model().named_parameters())
        weights = load_file(folders[3] / "model.safetensors")
        change(weights, base)
        save_file(weights, folders[3] / "model.safetensors", metadata={"format": "pt"})
        fitted = fit_experts(read_experts(folders), build_model()).experts
        return warnings_of_odd_experts(fitted), spectra_of(fitted)

    return warn


def scale_all(weights, base):
    for name, weight in weights.items():
        weight.copy_(base[name] + 20 * (weight - base[name]))


def in_one_direction(weights, base):
    """One direction of 40 times the norm of a module's change."""
    name = "model.layers.1.mlp.up_proj.weight"
    change = weights[name] - base[name]
    one = torch.outer(torch.ones(len(change)), torch.ones(change.shape[1]))
    weights[name] += 40 * change.norm() / one.norm() * one


def test_models_of_one_kind_give_no_warning_and_the_norm_is_right(spoil):
    warnings, spectra = spoil()
    assert warnings == [] and [found.name for found in spectra] == list("abcd")
    torch.manual_seed(3)
    total = 0.0
    for parameter in build_model().parameters():  # as `changed` adds to it
        total += float((0.05 * torch.randn(parameter.shape)).square().sum())
    torch.manual_seed(3)
    assert spectra[3].norm == pytest.approx(math.sqrt(total), rel=0.05)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (scale_all, "times those of the others: norm 1"),
        pytest.param(
            in_one_direction,
            "model.layers.1.mlp.up_proj changes",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_an_odd_model_is_named_with_numbers(spoil, change, expected):
    warnings, _ = spoil(change)
    assert len(warnings) == 1 and warnings[0].startswith("expert 'd': ")
    assert expected in warnings[0] and "it may be damaged or hostile" in warnings[0]


def test_models_are_not_compared_with_adapters(write_model, make_adapter):
    model = build_model()
    experts = [write_model("whole", 0), make_adapter("one"), make_adapter("two", seed=1)]
    fitted = fit_experts(read_experts(experts), model).experts
    assert warnings_of_odd_experts(fitted) == []
    assert [found.name for found in spectra_of(fitted)] == ["whole", "one", "two"]
