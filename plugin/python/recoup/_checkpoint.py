"""recoup.checkpoint: the engine for a function in Python."""
import contextlib

from ._engine import engine

_TENSOR = object()  # stands for a tensor in the shape of a result


def checkpoint(function, *args, name="checkpoint", context=None, early_stop=True, **kwargs):
    """function(*args, **kwargs) with only the tensors among args kept until backward.

    Takes what function takes, and returns what it returns: tensors, None and other values, alone or
    in a tuple or list. `context`, if given, is called now, and what it returns is called for a context
    manager around each rerun.
    """
    import torch

    def split(values):
        tensors = [v for v in values if isinstance(v, torch.Tensor)]
        return tensors, [_TENSOR if isinstance(v, torch.Tensor) else v for v in values]

    def join(tensors, shape):
        rest = iter(tensors)
        return [next(rest) if v is _TENSOR else v for v in shape]

    tensors, shape = split(args)
    around_rerun = context() if context else contextlib.nullcontext
    results = []  # of the first run: (whether a tuple or list and which, shape)

    def run(inputs):
        values = join(inputs, shape)
        if results:
            with around_rerun():
                function(*values, **kwargs)
            return []  # nobody reads a rerun's results
        out = function(*values, **kwargs)
        kind = type(out) if isinstance(out, (tuple, list)) else None
        out_tensors, out_shape = split(out if kind else [out])
        results.append((kind, out_shape))
        return out_tensors

    out = engine().checkpoint(run, tensors, name=name, early_stop=early_stop)
    kind, out_shape = results[0]
    values = join(out, out_shape)
    return kind(values) if kind else values[0]
