"""EvoGM the way anybody would write it first: nn.Module, autograd, torch.optim.Adam, Python lists.

The tests hold the package against this transcription of Algorithm 1 (arXiv 2605.29295), on the
same random numbers.
"""

import torch

from evox_evogm.algorithms.generators import initial_parameters, unpack


def as_module(parameters: torch.Tensor, sizes) -> torch.nn.Sequential:
    """The generator of a flat vector as torch modules."""
    modules = []
    for weight, bias in unpack(parameters[None], sizes):
        linear = torch.nn.utils.skip_init(
            torch.nn.Linear, *weight.shape[1:], dtype=parameters.dtype
        )
        linear.weight.data = weight[0].T.clone()
        linear.bias.data = bias[0, 0].clone()
        modules += [linear, torch.nn.ReLU()]
    return torch.nn.Sequential(*modules[:-1], torch.nn.Tanh())


def flat(module: torch.nn.Sequential) -> torch.Tensor:
    return torch.cat(
        [(p.data.mT if p.ndim == 2 else p.data).flatten() for p in module.parameters()]
    )


def plain_training(
    parameters,
    points,
    count,
    draws,
    lr,
    ratio,
    cycle_weight,
    opt_weight,
    sizes,
    optimizer_state=None,
):
    """Train generators on the first `count` points, which stand with the best first.

    :return: flat parameters, the last (cycle, optimisation) losses, and the state of the optimiser.
    """
    modules = [as_module(row, sizes) for row in parameters]
    optimizer = torch.optim.Adam([p for m in modules for p in m.parameters()], lr=lr)
    if optimizer_state is not None:
        optimizer.load_state_dict(optimizer_state)
    wins = max(1, int(ratio * count + 1e-9))
    winners = points[:wins]
    mse = torch.nn.functional.mse_loss
    for draw in draws:
        losers = points[[wins + int(u * (count - wins)) for u in draw[:wins]]]
        forth = modules[0]
        opt = mse(forth(losers), winners.mean(0).expand_as(losers))
        cycle = torch.zeros_like(opt)
        loss = opt_weight * opt
        if len(modules) == 2:
            back = modules[1]
            cycle = mse(back(forth(losers)), losers) + mse(forth(back(winners)), winners)
            loss = loss + cycle_weight * cycle
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    losses = torch.stack([cycle, opt]).detach()
    return torch.stack([flat(m) for m in modules]), losses, optimizer.state_dict()


def plain_algorithm_1(
    evaluate,
    pop_size,
    dim,
    *,
    n_rounds,
    n_iters,
    epochs,
    hidden_dims,
    steps,
    lr=1e-4,
    ratio=0.3,
    a_c=100.0,
    a_o=1.0,
    dual=True,
):
    """Run `steps` steps (the first points count as one) in the box [-1, 1]^n without clamping.

    Random numbers are drawn in the order in which `EvoGM` draws them.

    :return: the evaluated points of every step, and their fitness.
    """
    sizes, networks, cpu = [dim, *hidden_dims, dim], 2 if dual else 1, torch.device("cpu")
    capacity = dim + pop_size * (n_iters + 1)
    generators = initial_parameters(sizes, networks, torch.float64, cpu)
    evaluated, scores = [], []
    basis = torch.eye(dim, dtype=torch.float64)
    history = []  # (fitness, point in the basis of the round)
    optimizer_state = None

    def uniform(rows):
        return 2 * torch.rand(rows, dim, dtype=torch.float64) - 1

    def evaluate_all(points):
        evaluated.append(points @ basis)
        scores.append(evaluate(evaluated[-1]))
        history.extend(zip(scores[-1].tolist(), points, strict=True))
        history.sort(key=lambda row: row[0])
        del history[capacity:]  # only in steps beyond the plan, which the paper does not have

    evaluate_all(
        torch.cat(
            [
                torch.eye(dim, dtype=torch.float64),
                torch.full((1, dim), 1 / dim, dtype=torch.float64),
                uniform(pop_size - dim - 1),
            ]
        )
    )
    for step in range(1, steps):
        starts = step % (n_iters + 1) == 0 and step < n_rounds * (n_iters + 1)
        if starts:
            best = history[:dim]
            basis = torch.stack([point for _, point in best]) @ basis
            history = [
                (fitness, one_hot)
                for (fitness, _), one_hot in zip(
                    best, torch.eye(dim, dtype=torch.float64), strict=True
                )
            ]
        seed = int(torch.randint(2**62, ()))
        draws = torch.rand(epochs, capacity, dtype=torch.float64)
        if starts:
            generators, optimizer_state = (
                initial_parameters(sizes, networks, torch.float64, cpu, seed),
                None,
            )
        else:
            points = torch.stack([point for _, point in history])
            generators, _, optimizer_state = plain_training(
                generators, points, len(history), draws, lr, ratio, a_c, a_o, sizes, optimizer_state
            )
        first = uniform(pop_size - 1)
        if starts:
            evaluate_all(torch.cat([torch.full((1, dim), 1 / dim, dtype=torch.float64), first]))
        else:
            population = torch.stack([point for _, point in history[:pop_size]])
            evaluate_all(as_module(generators[0], sizes)(population).detach())
    return evaluated, scores
