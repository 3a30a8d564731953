"""A recompute with dropout captured into CUDA graphs gives the bits of the eager run.

Twice: forward and backward in one graph, and each in a graph of its own (make_graphed_callables). On a
CPU, which captures nothing, the same step runs eagerly, so that this file is known to work.
"""
from run import Skip, check

HIDDEN, FFN, ROWS = 256, 1024, 128


class Case:
    """An MLP with dropout and its input, the same for each seed."""

    def __init__(self, torch, device, call):
        import models
        torch.manual_seed(3)
        with torch.device(device):
            self.mlp = models.MLP(HIDDEN, FFN, dropout=0.3)
            self.x = torch.randn(ROWS, HIDDEN, requires_grad=True)
        self.call = call

    def step(self):
        """Adds to the gradients; the output."""
        y = self.call(self.mlp, self.x)
        y.square().sum().backward()
        return y

    def clear(self):
        for t in (self.x, *self.mlp.parameters()):
            t.grad = None

    def results(self, y):
        return [y.detach().clone(), *(t.grad.clone() for t in (self.x, *self.mlp.parameters()))]


def eager(torch, case, seed):
    case.clear()
    torch.manual_seed(seed)
    return case.results(case.step())


def one_graph(torch, case, seeds):
    """Results of replays, one a seed."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            case.clear()
            case.step()
    torch.cuda.current_stream().wait_stream(side)
    case.clear()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y = case.step()
    replays = []
    for seed in seeds:
        torch.manual_seed(seed)
        graph.replay()
        torch.cuda.synchronize()
        replays.append(case.results(y))
    return replays


def two_graphs(torch, case, seeds):
    """Forward and backward captured apart."""
    class Module(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.mlp = case.mlp

        def forward(self, x):
            return case.call(self.mlp, x)
    graphed = torch.cuda.make_graphed_callables(Module(), (case.x.detach().clone().requires_grad_(),))
    replays = []
    for seed in seeds:
        case.clear()
        torch.manual_seed(seed)
        y = graphed(case.x)
        y.square().sum().backward()
        torch.cuda.synchronize()
        replays.append(case.results(y))
    return replays


def same(torch, name, ours, wanted):
    for place, (a, b) in enumerate(zip(ours, wanted, strict=True)):
        check(torch.equal(a, b), f"{name}: tensor {place} (0: the output, 1: the input's gradient, then parameters') "
              f"differs by up to {(a - b).abs().max().item():g}")
    print(f"{name}: {len(ours)} tensors equal to the bit", flush=True)


def run(context):
    torch = context.torch()
    import recoup
    device, seeds = context.device, (11, 12)

    def plain(mlp, x):
        return mlp(x)

    wanted = [eager(torch, Case(torch, device, plain), seed) for seed in seeds]
    check(not torch.equal(wanted[0][0], wanted[1][0]), "dropout draws the same for two seeds: nothing is tested")
    case = Case(torch, device, recoup.checkpoint)
    for seed, want in zip(seeds, wanted):
        same(torch, f"eager, seed {seed}", eager(torch, case, seed), want)
    if device == "cpu":
        raise Skip("CUDA graphs need a GPU; the step that they would capture is equal to the bit eagerly")
    for name, capture in (("one graph", one_graph), ("a graph each for forward and backward", two_graphs)):
        plain_replays = capture(torch, Case(torch, device, plain), seeds)
        replays = capture(torch, Case(torch, device, recoup.checkpoint), seeds)
        for seed, ours, theirs in zip(seeds, replays, plain_replays):
            same(torch, f"{name}, seed {seed}, beside the graph without recompute", ours, theirs)
        for seed, ours, want in zip(seeds, replays, wanted):
            same(torch, f"{name}, seed {seed}, beside eager", ours, want)
    return {"replays": 2 * len(seeds)}
