"""Regions beside collectives: DDP on one rank in this process, and the trainer in two."""
import os
import socket
import subprocess

from programs import a_text
from run import check


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def one_rank(context, torch):
    """Gradients of a model under DDP, with an all-reduce inside each MLP's forward, with and without."""
    import models
    import recoup
    import torch.distributed as dist
    from torch.nn.parallel import DistributedDataParallel
    models.deterministic()
    backend = "gloo" if context.dry else "nccl"
    dist.init_process_group(backend, init_method=f"tcp://127.0.0.1:{free_port()}", rank=0, world_size=1)
    try:
        calls = []

        class Reducing(models.MLP):
            def activation(self, x):
                y = super().activation(x)
                dist.all_reduce(y.detach())
                calls.append(1)
                return y
        gradients, counts = [], []
        for recompute in (False, True):
            torch.manual_seed(4)
            with torch.device(context.device):
                model = models.Decoder(2, 64, 256, 4)
                for layer in model.layers:
                    layer.mlp = Reducing(64, 256)
                tokens = torch.randint(256, (2, 33))
            if recompute:
                recoup.apply(model, mlp_num_layers=2)
            parallel = DistributedDataParallel(model, device_ids=None if context.dry else [0])
            calls.clear()
            parallel(tokens).backward()
            counts.append(len(calls))
            gradients.append([p.grad.clone() for p in model.parameters()])
        check(counts == [2, 4], f"an all-reduce in two MLPs ran {counts[0]} and, recomputed, {counts[1]} times, not 2 and 4")
        check(all(map(torch.equal, *gradients)), f"{backend}, one rank: gradients differ with recompute")
        print(f"{backend}, one rank, DDP: {len(gradients[0])} gradients equal to the bit")
    finally:
        dist.destroy_process_group()
    return backend


def two_ranks(context):
    """Losses of the trainer, tensor parallel in two processes, with and without."""
    import json
    said = []
    for n in (0, 4):
        report = os.path.join(context.output, f"two_ranks_{n}.json")
        command = [context.program("gpt_trainer"), "--text", a_text(context), "--layers", "4", "--hidden", "64", "--ffn",
                   "256", "--heads", "4", "--context", "32", "--batch", "2", "--steps", "3", "--tensor-parallel", "2",
                   "--device", context.device, "--plugin", context.program("librecoup.so"), "--report", report]
        port = str(free_port())
        ranks = [subprocess.Popen(command, env={
            **os.environ, "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": port, "OMP_NUM_THREADS": "1", "RECOUP_RECOMPUTE_MLP_NUM_LAYERS": str(n)}) for rank in (0, 1)]
        check([r.wait() for r in ranks] == [0, 0], f"the trainer in two processes, N = {n}: the log says what")
        with open(report) as file:
            said.append(json.load(file))
    check(said[0]["losses"] == said[1]["losses"], "two ranks: the losses differ with recompute")
    check(said[0]["tensor_parallel_collectives"] == said[1]["tensor_parallel_collectives"],
          "two ranks: a recompute repeated a collective")
    print(f"two ranks: losses equal to the bit, {said[0]['tensor_parallel_collectives']} collectives in both")


def run(context):
    torch = context.torch()
    done = [f"one rank, {one_rank(context, torch)}"]
    if context.dry or torch.cuda.device_count() > 1:
        two_ranks(context)
        done.append("two ranks")
    else:
        print("two ranks: not run, one GPU is here")
    return {"ran": done}
