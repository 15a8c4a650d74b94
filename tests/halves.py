"""Updates on a part of a batch each, as a process of torchrun makes them.

    torchrun --nproc-per-node 2 tests/halves.py FOLDER [DEVICE]

reads each NAME.task there and writes NAME.0 and NAME.1; without torchrun, NAME.whole.
"""

import importlib
import os
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent.parent))
FOLDER, SHUFFLE = Path(sys.argv[1]), torch.randperm
DEVICE = sys.argv[2] if len(sys.argv) > 2 else "cpu"
IN_TWO_AXES = "rewards", "terminated", "truncated"


def part_of(batch: dict, rank: int, processes: int) -> dict:
    """What the environments of one process contributed."""
    u, n = batch["rewards"].shape
    mine = torch.arange(n).tensor_split(processes)[rank]
    ended = (batch["terminated"] | batch["truncated"]).flatten()
    final = batch["observations"].new_zeros(u * n, batch["observations"].shape[-1])
    final[ended] = batch["final_observations"]
    part = {name: batch[name][:, mine] for name in IN_TWO_AXES}
    for name in "observations", "actions", "log_prob_old":
        x = batch[name]
        part[name] = x.unflatten(0, (u, n))[:, mine].flatten(0, 1)
    final = final.unflatten(0, (u, n))[:, mine].flatten(0, 1)
    part["final_observations"] = final[
        (part["terminated"] | part["truncated"]).flatten()
    ]
    part["last_observations"] = batch["last_observations"][mine]
    return part


def orders(u: int, n: int, minibatches: int, rank: int, processes: int):
    """Shuffles such that the processes' minibatches together are those of the whole."""
    generator, per = torch.Generator().manual_seed(5), n // 2
    while True:
        own = [SHUFFLE(u * per, generator=generator) for _ in range(2)]
        if processes == 2:
            yield own[rank]
            continue
        # from (step, environment of the process) to (step, environment)
        whole = [x // per * n + x % per + half * per for half, x in enumerate(own)]
        parts = zip(*[x.tensor_split(minibatches) for x in whole], strict=True)
        yield torch.cat([x for part in parts for x in part])


def answer(path: Path) -> None:
    task = torch.load(path, weights_only=True)
    script = importlib.import_module(task["algorithm"])
    rank, processes = script.RANK, script.WORLD
    config = script.Config(**task["config"] | {"device": DEVICE})
    agent, optimizer, *_ = script.make_agent(config)
    agent.load_state_dict(task["agent"])  # as after a resume
    shape = *task["batch"]["rewards"].shape, config.num_minibatches
    order = orders(*shape, rank, processes)
    torch.randperm = lambda _: next(order)
    part = part_of(task["batch"], rank, processes)
    batch = script.Batch(**{name: x.to(DEVICE) for name, x in part.items()})
    metrics = script.update(agent, optimizer, batch, config)
    metrics |= script.measure(agent.policy, batch)
    agent.statistics.absorb(batch.observations)
    agent.return_statistics.absorb(batch.rewards.flatten())
    result = {"metrics": metrics, "agent": agent.state_dict()}
    who = rank if processes > 1 else "whole"
    torch.save(result, path.with_suffix(f".{who}"))


def main() -> None:
    if "RANK" in os.environ:
        backend = {"cpu": "gloo", "cuda": "nccl"}[DEVICE]
        torch.distributed.init_process_group(backend)
    for path in sorted(FOLDER.glob("*.task")):
        answer(path)
    os._exit(0)  # as the scripts do


if __name__ == "__main__":
    main()
