"""One round of EvoGM as anybody would write it first: nn.Module, autograd, torch.optim.Adam."""

from collections.abc import Sequence
from itertools import pairwise

import torch

from evox_evogm.algorithms.training import train


class PlainEvoGM:
    """One round on the sphere function.

    :param n: dimensions.
    :param pop_size: P.
    :param sizes: layer sizes of a generator.
    :param epochs: a step.
    :param settings: learning rate, winner ratio, a_c and a_o.
    """

    def __init__(
        self,
        n: int,
        pop_size: int,
        sizes: Sequence[int],
        epochs: int,
        settings: tuple[float, float, float, float],
    ):
        self.pop_size = pop_size
        self.epochs = epochs
        self.lr, self.winner_ratio, self.cycle_weight, self.opt_weight = settings
        self.sizes = list(sizes)
        self.forward_generator = plain_generator(sizes)
        self.backward_generator = plain_generator(sizes)
        weights = [*self.forward_generator.parameters(), *self.backward_generator.parameters()]
        self.optimizer = torch.optim.Adam(weights, lr=self.lr)
        self.points = 2 * torch.rand(pop_size, n) - 1
        self.fitness = (self.points**2).sum(1)

    def step(self) -> None:
        """Train on winners and losers, and evaluate what the generator makes of the best points."""
        self.sort()
        self.train(torch.rand(self.epochs, len(self.points)))
        with torch.no_grad():
            offspring = self.forward_generator(self.points[: self.pop_size])
        self.points = torch.cat([self.points, offspring])
        self.fitness = torch.cat([self.fitness, (offspring**2).sum(1)])

    def sort(self) -> None:
        """The best first."""
        order = self.fitness.argsort()
        self.points, self.fitness = self.points[order], self.fitness[order]

    def train(self, draws: torch.Tensor) -> None:
        """Train both generators on sorted points.

        :param draws: an `(epochs, H)` tensor of uniform numbers that choose the losers.
        """
        mse = torch.nn.functional.mse_loss
        wins = int(self.winner_ratio * len(self.points) + 1e-4)
        winners, losers = self.points[:wins], self.points[wins:]
        target = winners.mean(0).expand_as(winners)
        for draw in draws:
            batch = losers[(draw[:wins] * len(losers)).long()]
            moved = self.forward_generator(batch)
            there_and_back = mse(self.backward_generator(moved), batch)
            back_and_there = mse(self.forward_generator(self.backward_generator(winners)), winners)
            cycle_loss = there_and_back + back_and_there
            loss = self.cycle_weight * cycle_loss + self.opt_weight * mse(moved, target)
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()

    def parameters(self) -> torch.Tensor:
        """A `(2, N)` tensor, as `training.train` has them."""
        return torch.stack([flat(self.forward_generator), flat(self.backward_generator)])


def plain_generator(sizes: Sequence[int]) -> torch.nn.Sequential:
    """Linear layers with ReLU, and tanh in the end."""
    layers = []
    for d_in, d_out in pairwise(sizes):
        layers += [torch.nn.Linear(d_in, d_out), torch.nn.ReLU()]
    return torch.nn.Sequential(*layers[:-1], torch.nn.Tanh())


def flat(module: torch.nn.Module) -> torch.Tensor:
    """All parameters in a row, weights as `(D_in, D_out)`."""
    parts = []
    for parameter in module.parameters():
        parameter = parameter.detach()
        parts.append((parameter.mT if parameter.ndim == 2 else parameter).flatten())
    return torch.cat(parts)


def train_both_ways(plain: PlainEvoGM) -> tuple[float, float]:
    """Train on the same draws by `PlainEvoGM` and by `training.train`.

    :return: by how much the parameters moved at most, and by how much the two ways differ at most.
    """
    plain.sort()
    before = plain.parameters()
    draws = torch.rand(plain.epochs, plain.pop_size)
    settings = [plain.lr, plain.winner_ratio, plain.cycle_weight, plain.opt_weight]
    ours, _, _ = train(
        before,
        torch.zeros(2, *before.shape),  # Adam's moments
        torch.tensor(0),  # Adam's steps
        plain.points,
        torch.tensor(plain.pop_size),
        draws,
        torch.tensor(settings),
        torch.tensor(0),
        plain.sizes,
    )
    plain.train(draws)
    theirs = plain.parameters()
    return float((theirs - before).abs().max()), float((ours - theirs).abs().max())
