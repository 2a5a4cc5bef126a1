"""A plain Python function: tune a PID controller against a simulation without torch.

python benchmarks/examples/python_function.py
"""

from concurrent.futures import ThreadPoolExecutor

import torch
from evox.core import Problem
from evox.workflows import EvalMonitor, StdWorkflow

from evox_evogm import SurrogateEvoGM


def mean_distance(gains: list[float]) -> float:
    """Mean distance from the target of a heavy cart that a controller moves for ten seconds."""
    proportional, integral, derivative = gains
    position = speed = total = cost = 0.0
    before = 1.0
    for _ in range(500):
        error = 1.0 - position
        total += 0.02 * error
        force = proportional * error + integral * total + derivative * (error - before) / 0.02
        speed += 0.02 * (max(-5.0, min(5.0, force)) - 0.3 * speed)
        position, before = position + 0.02 * speed, error
        cost += abs(error) / 500
    return cost


class PythonFunction(Problem):
    """Any function of a list of floats: a simulator, a program, a server. Not for compile, vmap."""

    def __init__(self, function, workers: int = 4):
        super().__init__()
        self.function = function
        self.workers = workers

    @torch.compiler.disable
    def evaluate(self, pop: torch.Tensor) -> torch.Tensor:
        with ThreadPoolExecutor(self.workers) as pool:
            values = list(pool.map(self.function, pop.tolist()))
        return torch.tensor(values, dtype=pop.dtype, device=pop.device)


torch.manual_seed(0)
monitor = EvalMonitor(topk=3)
algorithm = SurrogateEvoGM(pop_size=4, lb=torch.zeros(3), ub=torch.tensor([20.0, 5.0, 10.0]))
workflow = StdWorkflow(algorithm, PythonFunction(mean_distance), monitor)
workflow.init_step()
for _ in range(19):
    workflow.step()

print("| proportional | integral | derivative | mean distance |\n| ---: | ---: | ---: | ---: |")
solutions, costs = monitor.get_topk_solutions().tolist(), monitor.get_topk_fitness().tolist()
for (proportional, integral, derivative), cost in zip(solutions, costs, strict=True):
    print(f"| {proportional:.2f} | {integral:.2f} | {derivative:.2f} | {cost:.4f} |")
