"""MoE layers by Megatron's engine and by recoup's, expert-parallel over Gloo; run by megatron_moe_test.py.

    torchrun --nproc-per-node N moe_ranks.py FOLDER [JOB...]

Each rank writes FOLDER/RANK.json: for each job, and in it for no recompute, Megatron's engine and recoup's,
the calls of one layer and all its GEMMs of fc2 in the first step, and digests of losses and gradients, and of
what routers keep between steps, after 3 steps of 2 microbatches.
"""
import hashlib
import json
import os
import sys

import recoup.megatron  # noqa: F401

import cpu_megatron as cpu
import torch
import torch.distributed as dist
from megatron.core import tensor_parallel
from megatron.core.transformer.moe import moe_utils

moe_utils.te_general_gemm = None  # no Transformer Engine here
HIDDEN, FFN, STEPS, MICROBATCHES = 16, 32, 3, 2
JOBS = {
    "aux_loss": dict(moe_router_load_balancing_type="aux_loss", moe_aux_loss_coeff=0.01),
    "seq_aux_loss and z_loss": dict(moe_router_load_balancing_type="seq_aux_loss", moe_aux_loss_coeff=0.01,
                                    moe_z_loss_coeff=0.01, moe_token_dispatcher_type="alltoall"),
    "global_aux_loss": dict(moe_router_load_balancing_type="global_aux_loss", moe_aux_loss_coeff=0.01,
                            moe_token_dispatcher_type="alltoall"),
    # The last rank gets no token.
    "expert bias": dict(moe_router_load_balancing_type="none", moe_router_enable_expert_bias=True,
                        moe_router_score_function="sigmoid", moe_token_dispatcher_type="alltoall"),
    "expert bias, allgather": dict(moe_router_load_balancing_type="none", moe_router_enable_expert_bias=True,
                                   moe_router_score_function="sigmoid"),
    "jitter": dict(moe_router_load_balancing_type="aux_loss", moe_aux_loss_coeff=0.01,
                   moe_input_jitter_eps=0.1, moe_token_dispatcher_type="alltoall"),
}
MOE = dict(recompute_granularity="selective", recompute_modules=["moe"])


class Gemms:
    """Counts the products of an expert's activation and fc2's weight, in forwards and recomputes."""

    def __enter__(self):
        self.fc2, self._matmul = 0, torch.matmul

        def matmul(a, b, **kwargs):
            self.fc2 += tuple(b.shape) == (FFN, HIDDEN) and b.stride() == (1, FFN)
            return self._matmul(a, b, **kwargs)

        torch.matmul = matmul
        return self

    def __exit__(self, *_):
        torch.matmul = self._matmul


def counting(layer):
    """{what: calls} of an MoE layer."""
    calls = {}
    for thing, names in ((layer.router, ["forward"]), (layer.token_dispatcher, ["token_dispatch", "token_combine"])):
        for name in names:
            def call(*args, _real=getattr(thing, name), _name=name, **kwargs):
                calls[_name] = calls.get(_name, 0) + 1
                return _real(*args, **kwargs)
            setattr(thing, name, call)
    return calls


def digest(tensors):
    hashed = hashlib.sha256()
    for tensor in tensors:
        hashed.update(b"-" if tensor is None else tensor.detach().float().numpy().tobytes())
    return hashed.hexdigest()[:16]


def counters(gpt):
    """What routers and the log of losses keep between steps."""
    kept = [buffer for layer in gpt.decoder.layers for _, buffer in layer.mlp.router.named_buffers()]
    tracked = moe_utils.get_moe_layer_wise_logging_tracker()
    return kept + [entry["values"] for _, entry in sorted(tracked.items())]


def job(options):
    gpt = cpu.model(num_layers=2, num_moe_experts=4, moe_router_topk=2, moe_ffn_hidden_size=FFN,
                    expert_model_parallel_size=cpu.RANKS, **options)
    if gpt.decoder.layers[0].mlp.router.enable_expert_bias:
        for layer in gpt.decoder.layers:
            layer.mlp.router.expert_bias[-4 // cpu.RANKS:] = -100.0
    moe_utils.clear_aux_losses_tracker()
    cpu.reset_tracker()
    torch.manual_seed(dist.get_rank())
    layer = gpt.decoder.layers[0].mlp
    calls, seen = counting(layer), []
    positions = torch.arange(16).expand(2, 16)
    mask = torch.triu(torch.ones(1, 1, 16, 16, dtype=torch.bool), 1)
    with Gemms() as gemms:
        for step in range(STEPS):
            for _ in range(MICROBATCHES):
                loss = gpt(torch.randint(64, (2, 16)), positions, mask).float().pow(2).mean()
                loss.backward()
                seen.append(loss)
            seen += [p.grad for p in gpt.parameters()]
            with torch.no_grad():
                for p in gpt.parameters():
                    if p.grad is not None:
                        p -= 0.1 * p.grad
                        p.grad = None
            if step == 0:
                once = dict(calls, fc2=gemms.fc2)
    return {"calls": once, "trained": digest(seen), "counted": digest(counters(gpt)),
            "counts": sum(bool(t.any()) for t in counters(gpt))}


def run(options):
    """{engine: what came of the job}, or why this version cannot do it."""
    ours = tensor_parallel.checkpoint
    try:
        results = {"none": job(options)}
    except ValueError as error:
        if "Unsupported MoE routing type" in str(error):
            return {"n/a": str(error)}
        raise
    results["recoup"] = job({**options, **MOE})
    tensor_parallel.checkpoint = ours.recoup_replaces
    results["megatron"] = job({**options, **MOE})
    tensor_parallel.checkpoint = ours
    return results


results = {name: run(JOBS[name]) for name in sys.argv[2:] or JOBS}
with open(os.path.join(sys.argv[1], f"{dist.get_rank()}.json"), "w") as file:
    json.dump(results, file)
dist.barrier()
os._exit(0)
