"""Compressed merges, beside the singular value decomposition of the dense product by numpy."""

import numpy as np
import pytest
import torch
from builders import build_model, mixed_adapters, stack_folders
from other_bases import logits_of, peft_logits

from evox_evogm.problems.adapters.compression import compress
from evox_evogm.problems.adapters.export import merge_factors, write_adapter
from evox_evogm.problems.adapters.factor_norms import product_norm, relative_error
from evox_evogm.problems.adapters.read_adapter import Factors, read_expert

SHAPES = {"wide": (12, 30, 9), "tall": (40, 8, 6), "full": (5, 6, 14)}  # D_out, D_in, R


def make_factors(seed=0, **more):
    """Random factors of modules of three shapes; the last has more channels than dimensions."""
    generator = torch.Generator().manual_seed(seed)
    factors = {}
    for name, (outputs, inputs, rank) in SHAPES.items():
        a = torch.randn(rank, inputs, generator=generator)
        b = torch.randn(outputs, rank, generator=generator)
        factors[name] = Factors(a, b, 1.0, embedding=False, **more)
    return factors


def dense(factors):
    return (factors.scale * factors.b.double() @ factors.a.double()).numpy()


@pytest.mark.parametrize("rank", [1, 3, 5])
def test_each_module_is_the_best_approximation_of_the_rank(rank):
    factors = make_factors()
    found = compress(factors, rank=rank)
    assert found.rank == rank
    dropped, total = 0.0, 0.0
    for name, module in factors.items():
        u, values, vt = np.linalg.svd(dense(module), full_matrices=False)
        best = u[:, :rank] * values[:rank] @ vt[:rank]
        kept = found.factors[name]
        assert kept.a.shape[0] == kept.b.shape[1] == rank
        np.testing.assert_allclose(dense(kept), best, atol=1e-5)
        lost = np.linalg.norm(values[rank:])
        expected = lost / np.linalg.norm(values)
        assert found.error.by_module[name] == pytest.approx(expected, rel=1e-5, abs=1e-7)
        dropped += lost**2
        total += np.linalg.norm(values) ** 2
    assert found.error.overall == pytest.approx((dropped / total) ** 0.5, rel=1e-5)


def test_no_module_gets_more_channels_than_it_has_directions():
    found = compress(make_factors(), rank=64)
    assert {name: module.a.shape[0] for name, module in found.factors.items()} == {
        "wide": 9,
        "tall": 6,
        "full": 5,
    }
    assert found.rank == 9 and found.error.overall < 1e-6


@pytest.mark.parametrize("tolerance", [0.5, 0.2, 0.05])
def test_a_tolerance_is_kept_with_the_fewest_channels(tolerance):
    factors = make_factors()
    found = compress(factors, tolerance=tolerance)
    values = [np.linalg.svd(dense(module), compute_uv=False) for module in factors.values()]
    energies = np.sort(np.concatenate(values) ** 2)
    # As many of the smallest as fit below the allowed error.
    fits = np.cumsum(energies) <= tolerance**2 * energies.sum()
    channels = sum(module.a.shape[0] for module in found.factors.values())
    assert channels == len(energies) - fits.sum()
    assert found.error.overall <= tolerance
    assert found.error.overall == pytest.approx(
        (energies[: fits.sum()].sum() / energies.sum()) ** 0.5, rel=1e-4
    )


def test_the_scale_goes_into_the_factors():
    factors = {"m": Factors(torch.ones(1, 3), torch.ones(2, 1), -2.5, embedding=False)}
    found = compress(factors, rank=1)
    assert found.factors["m"].scale == 1.0
    np.testing.assert_allclose(dense(found.factors["m"]), np.full((2, 3), -2.5), rtol=1e-6)


def test_the_matrices_of_a_parameter_share_a_rank_and_each_is_approximated():
    generator = torch.Generator().manual_seed(1)
    a = torch.randn(4, 6, 10, generator=generator)
    b = torch.randn(4, 7, 6, generator=generator)
    found = compress({"p": Factors(a, b, 1.0, False, place=0)}, rank=2)
    kept = found.factors["p"]
    assert kept.a.shape == (4, 2, 10) and kept.b.shape == (4, 7, 2) and kept.place == 0
    lost = []
    for number in range(4):
        product = (b[number].double() @ a[number].double()).numpy()
        u, values, vt = np.linalg.svd(product, full_matrices=False)
        approximation = kept.b[number].double() @ kept.a[number].double()
        np.testing.assert_allclose(approximation, u[:, :2] * values[:2] @ vt[:2], atol=1e-5)
        lost.append((np.sum(values[2:] ** 2), np.sum(values**2)))
    lost_sum, total = np.sum(lost, axis=0)
    assert found.error.overall == pytest.approx((lost_sum / total) ** 0.5, rel=1e-5)


def test_a_module_that_is_not_kept_counts_as_lost():
    weak = Factors(torch.ones(1, 3) * 1e-3, torch.ones(3, 1), 1.0, embedding=False)
    strong = Factors(torch.eye(3), torch.eye(3), 1.0, embedding=False)
    found = compress({"weak": weak, "strong": strong}, tolerance=0.01)
    assert set(found.factors) == {"strong"}
    assert found.error.by_module["weak"] == 1.0
    assert found.error.overall == pytest.approx(3e-3 / 3**0.5, rel=1e-3)


def test_norms_are_those_of_the_products():
    for module in make_factors(3).values():
        expected = np.linalg.norm(dense(module))
        assert product_norm(module.b, module.a) == pytest.approx(expected, rel=1e-12)
    one, other = make_factors(4), make_factors(5)
    error = relative_error(one, other)
    for name in SHAPES:
        apart = np.linalg.norm(dense(one[name]) - dense(other[name]))
        expected = apart / np.linalg.norm(dense(other[name]))
        assert error.by_module[name] == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize(
    ("wanted", "words"),
    [
        ({}, "either a rank or a tolerated error, found none"),
        ({"rank": 4, "tolerance": 0.1}, "either a rank or a tolerated error, found both"),
        ({"rank": 0}, "a whole number of at least 1, found 0"),
        ({"rank": True}, "a whole number of at least 1, found True"),
        ({"rank": 2.0}, "a whole number of at least 1, found 2.0"),
        ({"tolerance": 0.0}, "a relative error between 0 and 1, found 0.0"),
        ({"tolerance": 1.0}, "a relative error between 0 and 1, found 1.0"),
        ({"tolerance": float("nan")}, "a relative error between 0 and 1, found nan"),
    ],
)
def test_what_says_no_rank_is_refused(wanted, words):
    with pytest.raises(ValueError, match=words):
        compress(make_factors(), **wanted)


def test_embeddings_output_layers_and_rslora_are_compressed_too(make_adapter, tmp_path):
    from evox_evogm.problems.adapters.merging import merged

    folders = mixed_adapters(make_adapter)
    coefficients = torch.tensor([0.7, -1.3, 0.4, 2.1])
    factors = merge_factors([read_expert(folder) for folder in folders], coefficients)
    write_adapter(compress(factors, rank=64).factors, tmp_path / "merge", base="")
    model = build_model()
    with merged(model, stack_folders(folders), coefficients):
        expected = logits_of(model)
    found = peft_logits(build_model(), tmp_path / "merge")
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
