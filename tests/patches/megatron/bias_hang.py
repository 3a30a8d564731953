"""What happens to a reentrant checkpoint whose function returns a parameter as a second output.

Plain PyTorch and nothing else: no Megatron, no fixture, no GPU call. Its first run gives the parameter
the checkpoint's own node as history, so backward waits for itself. Prints what it finds; the caller
limits the time.  argv: reentrant | recoup
"""
import sys

import torch


class Reentrant(torch.autograd.Function):
    """The pattern of Megatron's CheckpointFunction (and of torch.utils.checkpoint's reentrant one)."""

    @staticmethod
    def forward(ctx, function, x):
        ctx.function = function
        ctx.save_for_backward(x)
        with torch.no_grad():
            return function(x)

    @staticmethod
    def backward(ctx, *grads):
        (x,) = ctx.saved_tensors
        x = x.detach().requires_grad_()
        with torch.enable_grad():
            outputs = ctx.function(x)
        print("history of the bias:", outputs[1].grad_fn, flush=True)
        torch.autograd.backward(outputs, grads)
        return None, x.grad


weight, bias = torch.ones(4, 4, requires_grad=True), torch.nn.Parameter(torch.ones(4))


def mlp(x):
    return (x @ weight).relu() @ weight, bias


x = torch.ones(2, 4, requires_grad=True)
if sys.argv[1] == "recoup":
    import recoup

    out, second = recoup.checkpoint(mlp, x)
else:
    out, second = Reentrant.apply(mlp, x)
(out + second).sum().backward()
print("backward returned, gradient of the bias:", bias.grad.tolist())
