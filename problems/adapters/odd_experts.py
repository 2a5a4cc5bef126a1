"""Find experts whose changes are far from the others': damaged or hostile adapters, wrong scales.

Of a module, tau = s B A has a Frobenius norm and singular values. Both come from the r x r matrices
A A^T and B^T B. Three numbers are compared:

- **Size** of an expert: the median over its modules of log(norm / sqrt(D_in D_out)), less what is
  usual for modules of the same last name, such as `q_proj`.
- **A single module**: the same, less the size of its expert.
- **Spectrum** of an expert: the median over its modules of the log-odds of H / log r, where H is
  the entropy of the shares of squared singular values and exp(H) the effective rank (Roy and
  Vetterli 2007). It is high where an adapter is noise, low where one direction is all.

Each is compared with the other experts by a robust z: the distance to their median in units of
1.4826 times their median absolute deviation, which has a floor, as few experts say little. Whole
models, whose spectra `checkpoint_spectra.py` estimates, are compared with whole models, adapters
with adapters.
"""

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import NamedTuple

import torch

from evox_evogm.problems.adapters.read_adapter import Expert, Factors
from evox_evogm.problems.checkpoints.checkpoint_spectra import spectra_of_checkpoint

log = logging.getLogger(__name__)

UNTRAINED = "as its A or B is 0 in every module, which is how the training of a LoRA begins"
LIMIT = 5.0  # robust z from which a size or a spectrum is odd
LIMIT_OF_EXTREMES = 8.0  # of a single module, the largest of hundreds, and of small sizes
FLOOR_OF_SIZE = 0.35  # at these limits norms are 6 and 16 times as large as usual
FLOOR_OF_SPECTRUM = 0.4
ADVICE = "it may be damaged or hostile, or have another scale"
NORMAL = 1.4826  # the standard deviation of a normal distribution, in absolute deviations
EDGE = 1e-6  # log-odds are those of numbers between this and 1 less this


class Spectrum(NamedTuple):
    """The size of a change of a module's weights, and how it is spread.

    :param norm: the Frobenius norm of s B A.
    :param share: that the largest singular value has of all squared; NaN where there is no change.
    :param log_size: log of the root mean square of its entries; -inf where there is no change.
    :param log_odds: of the entropy, see above; None of rank 1.
    """

    norm: float
    share: float
    log_size: float
    log_odds: float | None


class Reason(NamedTuple):
    """One way in which an expert is far from the others.

    :param words: which.
    :param z: the robust z of that number.
    """

    words: str
    z: float


@dataclass(frozen=True)
class ExpertSpectrum:
    """What is known of the changes of an expert.

    :param name: of the expert.
    :param modules: by name, those that change.
    """

    name: str
    modules: dict[str, Spectrum]

    @property
    def norm(self) -> float:
        """The Frobenius norm over all modules together."""
        return math.sqrt(sum(found.norm**2 for found in self.modules.values()))

    @property
    def share(self) -> float:
        """The median over modules of the share of the largest singular value."""
        shares = [found.share for found in self.modules.values() if not math.isnan(found.share)]
        return median(shares) if shares else math.nan

    @property
    def log_odds(self) -> float | None:
        """The median over modules of the log-odds; None where all are of rank 1."""
        odds = [found.log_odds for found in self.modules.values() if found.log_odds is not None]
        return median(odds) if odds else None

    def by_kind(self) -> dict[str, float]:
        """The median of log sizes by the last name of modules."""
        sizes: dict[str, list[float]] = {}
        for name, found in self.modules.items():
            sizes.setdefault(_kind(name), []).append(found.log_size)
        return {kind: median(values) for kind, values in sizes.items()}


def spectrum_of(factors: Factors) -> Spectrum:
    """The norm and the spectrum of s B A, without the product.

    The E products of a parameter count as one matrix with the singular values of all.
    """
    a, b = factors.a.double(), factors.b.double()
    values, vectors = torch.linalg.eigh(b.mT @ b)
    root = vectors * values.clamp(min=0).sqrt().unsqueeze(-2)  # root root^T = B^T B
    squares = torch.linalg.eigvalsh(root.mT @ (a @ a.mT) @ root).clamp(min=0)  # (..., r)
    total = float(squares.sum())
    matrices = squares.numel() // squares.shape[-1]
    rank = min(a.shape[-2], a.shape[-1], b.shape[-2]) * matrices
    norm = math.sqrt(total) * abs(factors.scale)
    if norm == 0 or not math.isfinite(norm):
        return Spectrum(norm, math.nan, -math.inf, None)
    entries = a.shape[-1] * b.shape[-2] * matrices
    share = float(squares.max()) / total
    log_odds = None
    if rank > 1:
        shares = squares.flatten() / total
        log_odds = log_odds_of(float(torch.special.entr(shares).sum()) / math.log(rank))
    return Spectrum(norm, share, math.log(norm) - math.log(entries) / 2, log_odds)


def log_odds_of(spread: float) -> float:
    """The log-odds of a number between 0, all in one direction, and 1, as in noise."""
    spread = min(max(spread, EDGE), 1 - EDGE)
    return math.log(spread / (1 - spread))


def spectra_of(experts: Sequence[Expert]) -> list[ExpertSpectrum]:
    """The spectra of experts that fit a base. Modules without a change are left out."""
    spectra = []
    for expert in experts:
        if expert.checkpoint is not None:
            found = spectra_of_checkpoint(expert)
        else:
            found = {name: spectrum_of(factors) for name, factors in expert.modules.items()}
        changed = {name: one for name, one in found.items() if math.isfinite(one.log_size)}
        if found:
            spectra.append(ExpertSpectrum(expert.name, changed))
    return spectra


def warnings_of_odd_experts(experts: Sequence[Expert]) -> list[str]:
    """A sentence for every way in which an expert is far from the others. They are logged too.

    :param experts: of one base, with the names that the base has for their modules.
    """
    adapters = [expert for expert in experts if expert.checkpoint is None]
    models = [expert for expert in experts if expert.checkpoint is not None]
    warnings = _warnings_among(spectra_of(adapters), UNTRAINED)
    warnings += _warnings_among(spectra_of(models), "as its weights are those of the base")
    for warning in warnings:
        log.warning("%s", warning)
    return warnings


def _warnings_among(spectra: Sequence[ExpertSpectrum], why_unchanged: str) -> list[str]:
    """The warnings of experts of one kind.

    :param why_unchanged: why one of them may change nothing.
    """
    warnings = []
    for found in spectra:
        if not found.modules:
            warnings.append(f"expert {found.name!r}: changes nothing, {why_unchanged}")
    changed = [found for found in spectra if found.modules]
    for own in changed:
        others = [found for found in changed if found is not own]
        if others:
            warnings += _warnings_of(own, others)
    return warnings


def _warnings_of(own: ExpertSpectrum, others: Sequence[ExpertSpectrum]) -> list[str]:
    usual = _usual_sizes(others)
    found = (
        _odd_size(own, others, usual),
        _odd_spectrum(own, others),
        _odd_module(own, others, usual),
    )
    reasons = [reason for reason in found if reason is not None]
    if not reasons:
        return []
    words = "; ".join(reason.words for reason in reasons)
    z = max((reason.z for reason in reasons), key=abs)
    return [f"expert {own.name!r}: {words} (robust z {z:.1f}); {ADVICE}"]


def _odd_size(
    own: ExpertSpectrum, others: Sequence[ExpertSpectrum], usual: dict[str, float]
) -> Reason | None:
    """Whether all its changes are much larger or smaller than those of the others."""
    size, sizes = _size(own, usual), [_size(other, usual) for other in others]
    z = _robust_z(size, sizes, FLOOR_OF_SIZE)
    if -LIMIT_OF_EXTREMES <= z <= LIMIT:
        return None
    times = _times(math.exp(size - median(sizes)))
    return Reason(f"its changes are {times} those of the others: norm {_norms(own, others)}", z)


def _odd_spectrum(own: ExpertSpectrum, others: Sequence[ExpertSpectrum]) -> Reason | None:
    """Whether its changes are in fewer or more directions than those of the others."""
    z = _z_of_spectrum(own, others)
    if abs(z) <= LIMIT:
        return None
    share = 100 * own.share
    shares = [100 * other.share for other in others]
    words = (
        f"its spectrum is {_spread(z)} the others': {share:.3g} % of a module's change is in one "
        f"direction, {min(shares):.3g} to {max(shares):.3g} % with them"
    )
    return Reason(words, z)


def _odd_module(
    own: ExpertSpectrum, others: Sequence[ExpertSpectrum], usual: dict[str, float]
) -> Reason | None:
    """The module that is furthest above what is usual, if it is far from it."""
    residuals: list[float] = []
    for other in others:
        residuals += _residuals(other, usual).values()
    found = _residuals(own, usual)
    name = max(found, key=lambda name: found[name])  # what adds little does no harm
    z = _robust_z(found[name], residuals, FLOOR_OF_SIZE)
    if z <= LIMIT_OF_EXTREMES:
        return None
    module, times = own.modules[name], _times(math.exp(found[name]))
    words = f"{name} changes {times} as much as its other modules suggest: norm {module.norm:.3g}"
    if not math.isnan(module.share):  # as of a vector
        words += f", {100 * module.share:.3g} % of it in one direction"
    return Reason(words, z)


def _usual_sizes(spectra: Sequence[ExpertSpectrum]) -> dict[str, float]:
    """The median log size of modules by their last name; under "" that of all."""
    sizes: dict[str, list[float]] = {}
    for found in spectra:
        for kind, size in found.by_kind().items():
            sizes.setdefault(kind, []).append(size)
    usual = {kind: median(values) for kind, values in sizes.items()}
    return {"": median(usual.values()), **usual}


def _size(found: ExpertSpectrum, usual: dict[str, float]) -> float:
    """The size of an expert."""
    return median(_relative(found, usual).values())


def _residuals(found: ExpertSpectrum, usual: dict[str, float]) -> dict[str, float]:
    """The log size of each module, less what is usual and less the size of the expert."""
    relative = _relative(found, usual)
    size = median(relative.values())
    return {name: value - size for name, value in relative.items()}


def _relative(found: ExpertSpectrum, usual: dict[str, float]) -> dict[str, float]:
    """The log size of each module, less what is usual for its last name."""
    relative = {}
    for name, module in found.modules.items():
        relative[name] = module.log_size - usual.get(_kind(name), usual[""])
    return relative


def _z_of_spectrum(own: ExpertSpectrum, others: Sequence[ExpertSpectrum]) -> float:
    odds = [other.log_odds for other in others]
    known = [value for value in odds if value is not None]
    if own.log_odds is None or not known:
        return 0.0
    return _robust_z(own.log_odds, known, FLOOR_OF_SPECTRUM)


def _robust_z(value: float, others: Sequence[float], floor: float) -> float:
    """How far a value is from others, in their robust standard deviations.

    :param floor: of the standard deviation.
    """
    center = median(others)
    deviation = median(abs(other - center) for other in others)
    return (value - center) / max(floor, NORMAL * deviation)


def _kind(module: str) -> str:
    return module.rpartition(".")[2]


def _spread(z: float) -> str:
    return "flatter, more like noise, than" if z > 0 else "steeper than"


def _times(factor: float) -> str:
    return f"{factor:.3g} times"


def _norms(own: ExpertSpectrum, others: Sequence[ExpertSpectrum]) -> str:
    norms = [other.norm for other in others]
    return f"{own.norm:.3g}, {min(norms):.3g} to {max(norms):.3g} with them"
