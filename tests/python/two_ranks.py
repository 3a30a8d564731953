"""Started by apply_test.py on two ranks: one step with recoup and one without are compared."""
import sys

import torch
import torch.distributed as dist
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

import recoup
from small_model import Model

case = sys.argv[1]
dist.init_process_group("gloo")
tokens = torch.tensor([[1, 2, 3], [4, 5, 6]]) + dist.get_rank()


def train(with_recoup):
    torch.manual_seed(0)
    model = Model(4)
    if with_recoup and case != "fsdp2 before":
        recoup.apply(model, mlp_num_layers=3)
    if case == "ddp":
        model = DistributedDataParallel(model)
    else:
        for layer in model.layers:
            fully_shard(layer.mlp if case == "fsdp2 of mlps" else layer)
        fully_shard(model)
    if with_recoup and case == "fsdp2 before":
        recoup.apply(model, mlp_num_layers=3)
    calls = []
    mlp = [m for m in model.modules() if type(m).__name__.endswith("MLP")][0]
    mlp.fc1.register_forward_hook(lambda *_: calls.append(1))
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    for _ in range(3):
        model(tokens).backward()
        optimizer.step()
        optimizer.zero_grad()
    assert len(calls) == (6 if with_recoup else 3), calls
    parameters = [p.detach() for p in model.parameters()]
    return [p.to_local() if hasattr(p, "to_local") else p for p in parameters]


print("equal\n" if all(map(torch.equal, train(True), train(False))) else "different\n", end="")
dist.destroy_process_group()
