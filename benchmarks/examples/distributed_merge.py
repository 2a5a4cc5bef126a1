"""A search over merges on several processes or machines.

Every rank loads the base and scores its share of each population. Without torchrun it runs in one
process and gives the same result.

    torchrun --nproc-per-node 2 benchmarks/examples/distributed_merge.py [BASE EXPERT EXPERT...]
"""

import os
import sys
from pathlib import Path

import torch
from evox.workflows import EvalMonitor, StdWorkflow

import evox_evogm
from evox_evogm import SurrogateEvoGM
from evox_evogm.problems import DistributedProblem, LoRAMergeProblem, read_reasoning_gym

rank, local_rank = int(os.environ.get("RANK", 0)), int(os.environ.get("LOCAL_RANK", 0))
if "RANK" in os.environ:
    # Points and scores travel; the models stay where they are.
    torch.distributed.init_process_group("gloo")
device = f"cuda:{local_rank}" if torch.cuda.is_available() else "cpu"
if device != "cpu":
    torch.cuda.set_device(device)

shipped = Path(evox_evogm.__file__).parent / "demo/experts"
default = ["smollm2-135m-instruct", shipped / "gcd", shipped / "chain_sum"]
base, *experts = sys.argv[1:] or default
tasks = [read_reasoning_gym(source, dev=8, test=1)[0] for source in ("gcd", "chain_sum")]
problem = LoRAMergeProblem(base, experts, tasks, device=device)

torch.manual_seed(0)  # the same on every rank
upper = torch.ones(problem.n_experts)
monitor = EvalMonitor()
algorithm = SurrogateEvoGM(7, -upper, upper)
workflow = StdWorkflow(algorithm, DistributedProblem(problem), monitor, opt_direction="max")
workflow.init_step()
workflow.step()
workflow.step()

if rank == 0:
    print("| population | best score | mean score |\n| ---: | ---: | ---: |")
    for index, scores in enumerate(monitor.get_fitness_history()):
        print(f"| {index} | {scores.max():.3f} | {scores.mean():.3f} |")
if torch.distributed.is_initialized():
    torch.distributed.destroy_process_group()
