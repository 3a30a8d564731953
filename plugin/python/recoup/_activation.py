"""An MLP at level activation: fc1's output is kept, and only what follows it runs again, no GEMM."""
import functools
import threading
import weakref

from ._checkpoint import run

# The projections before the activation, as models name them: the first row of which an MLP has all.
FIRST = (("gate_proj", "up_proj"), ("gate_up_proj",), ("w1", "w3"), ("wi_0", "wi_1"), ("wi",), ("c_fc",), ("fc1",),
         ("fc_in",), ("dense_h_to_4h",), ("lin1",), ("linear1",), ("linear_1",), ("up_proj",))

# Of an MLP, while its projections are stood in for. Beside them, since locks can be neither copied nor pickled.
_locks = weakref.WeakKeyDictionary()
_guard = threading.Lock()


def first_projections(mlp):
    """The names of an MLP's projections before the activation; none where its parts have other names."""
    return next((names for names in FIRST if all(name in mlp._modules for name in names)), ())


def wanted():
    """What first_projections() looks for, in words."""
    return "; ".join(" and ".join(names) for names in FIRST)


class _Given:
    """In the place of a projection while what follows runs: gives what the projection gave."""

    def __init__(self, projection, argument, output):
        self.projection, self.argument, self.output = projection, argument, output
        self.thread, self.calls = threading.get_ident(), 0

    def __call__(self, *args, **kwargs):
        if threading.get_ident() != self.thread:
            return self.projection(*args, **kwargs)
        self.calls += 1 if len(args) == 1 and args[0] is self.argument and not kwargs else 2
        return self.output

    def __getattr__(self, name):
        return getattr(self.projection, name)


def _lock(mlp):
    with _guard:
        return _locks.setdefault(mlp, threading.RLock())


def run_from_fc1_on(mlp, forward, name, args, kwargs):
    """forward(*args, **kwargs), in which the MLP calls each of its first projections once, with its input."""
    if len(args) + len(kwargs) != 1:
        raise RuntimeError(f"recoup: {name}: level activation needs an MLP that is called with its input alone; this "
                           f"{type(mlp).__name__} is called with {len(args) + len(kwargs)} values: use level full")
    (x,) = args or kwargs.values()
    if kwargs:
        forward = _with_keyword(forward, *kwargs)
    names = first_projections(mlp)
    after = functools.partial(_after_fc1, mlp, forward, name, names)
    return run(after, (x, *(mlp._modules[n](x) for n in names)), {}, name=name)


def _with_keyword(forward, keyword):
    return lambda x: forward(**{keyword: x})


def _after_fc1(mlp, forward, name, names, x, *outputs):
    with _lock(mlp):
        projections = {n: mlp._modules[n] for n in names}
        given = {n: _Given(projections[n], x, output) for n, output in zip(names, outputs, strict=True)}
        mlp._modules.update(given)
        try:
            result = forward(x)
        finally:
            mlp._modules.update(projections)
    for n, one in given.items():
        if one.calls != 1:
            raise RuntimeError(
                f"recoup: {name}: level activation needs an MLP whose forward calls {' and '.join(names)} once, with "
                f"its own input; that of {type(mlp).__name__} does not so with {n}: use level full")
    return result
