"""A search on ranks that can be killed and go on, run by test_distributed.py under torchrun.

    python resume_on_ranks.py FOLDER [RANK POPULATION]

RANK kills itself before it evaluates its share of that population.
"""

import os
import signal
import sys

import torch
import torch.distributed as dist
from evox.problems.numerical import Ackley
from evox.workflows import StdWorkflow

from evox_evogm import EvoGM, ResumableSearch
from evox_evogm.problems import DistributedProblem


class Counting(Ackley):
    """Notes its shares in a file, and kills its process at one of them."""

    def __init__(self, folder, kill_at):
        super().__init__()
        self.folder, self.kill_at, self.calls = folder, kill_at, 0

    def evaluate(self, pop):
        if self.calls == self.kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
        self.calls += 1
        with open(f"{self.folder}.shares", "a") as file:
            file.write(f"{len(pop)}\n")
        return super().evaluate(pop)


def main():
    torch.set_num_threads(1)
    ranks = int(os.environ.get("WORLD_SIZE", "1"))
    if ranks > 1:
        dist.init_process_group("gloo")
    mine = len(sys.argv) > 2 and int(sys.argv[2]) == dist.get_rank()
    torch.manual_seed(4)
    bounds = torch.full((3,), 4.0)
    algorithm = EvoGM(7, -bounds, bounds, n_iters=1, epochs=10, hidden_dims=(8,))
    problem = DistributedProblem(Counting(sys.argv[1], int(sys.argv[3]) if mine else None))
    ResumableSearch(StdWorkflow(algorithm, problem), sys.argv[1]).run(5)
    if ranks > 1:
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
