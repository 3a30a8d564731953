"""Which layers to recompute, at which level, so that a step fits a budget at the least recompute time."""
import math
from typing import List, NamedTuple


class Choice(NamedTuple):
    """One thing that can be recomputed in one layer: "mlp activation", "mlp full" or "core_attn"."""

    layer: int  # 1-indexed, global
    kind: str
    saves: float  # bytes that it frees between forward and backward
    costs: float  # seconds for each microbatch


class Plan(NamedTuple):
    chosen: List[Choice]
    saves: float
    costs: float


def exact(choices: List[Choice], needed: float) -> Plan:
    """The best plan where all layers are alike: every number of layers at each kind is looked at.

    The two MLP levels share the layers: full in the first ones, activation in the next.
    """
    kinds = {}
    for c in sorted(choices):
        kinds.setdefault(c.kind, []).append(c)
    act, full, core = (kinds.get(k, []) for k in ("mlp activation", "mlp full", "core_attn"))
    best = None
    for n_core in range(len(core) + 1):
        for n_full in range(len(full) + 1):
            left = needed - sum(c.saves for c in core[:n_core] + full[:n_full])
            rest = act[n_full:]
            n_act = 0
            if left > 0:
                if not rest or rest[0].saves <= 0:
                    continue
                n_act = math.ceil(left / rest[0].saves - 1e-9)
                if n_act > len(rest):
                    continue
            chosen = core[:n_core] + full[:n_full] + rest[:n_act]
            costs = sum(c.costs for c in chosen)
            if best is None or (costs, len(chosen)) < (best.costs, len(best.chosen)):
                best = Plan(chosen, sum(c.saves for c in chosen), costs)
    return best


def integer_program(choices: List[Choice], needed: float) -> Plan:
    """The best plan where layers differ: a 0/1 program, solved to optimality by HiGHS (through SciPy)."""
    import numpy as np
    from scipy.optimize import Bounds, LinearConstraint, milp

    if needed <= 0:
        return Plan([], 0, 0)
    scale = max(needed, 1)
    rows = [[c.saves / scale for c in choices]]
    low, high = [needed / scale], [np.inf]
    for layer in sorted({c.layer for c in choices}):  # one level for each MLP
        rows.append([float(c.layer == layer and c.kind.startswith("mlp")) for c in choices])
        low.append(-np.inf)
        high.append(1)
    unit = max((c.costs for c in choices), default=1) or 1
    result = milp(np.array([c.costs / unit for c in choices]), integrality=np.ones(len(choices)),
                  bounds=Bounds(0, 1), constraints=LinearConstraint(np.array(rows), low, high),
                  options={"mip_rel_gap": 0})
    if not result.success:
        return None
    chosen = [c for c, x in zip(choices, result.x) if x > 0.5]
    return Plan(chosen, sum(c.saves for c in chosen), sum(c.costs for c in chosen))


def best(choices: List[Choice], needed: float) -> Plan:
    """The plan of least recompute time that frees at least `needed` bytes, or None where none does."""
    alike = {(c.kind, c.saves, c.costs) for c in choices}
    if len(alike) == len({c.kind for c in choices}):
        return exact(choices, needed)
    return integer_program(choices, needed)


def expression(layers) -> str:
    """Sorted layer numbers as a recoup layer expression."""
    runs = []
    for n in sorted(layers):
        if runs and n == runs[-1][1] + 1:
            runs[-1][1] = n
        else:
            runs.append([n, n])
    return ",".join(f"{a}" if a == b else f"{a}-{b}" for a, b in runs)


def to_yaml(chosen: List[Choice], comment: str) -> str:
    """What was chosen as recoup's configuration."""
    by_kind = {}
    for c in chosen:
        by_kind.setdefault(c.kind, set()).add(c.layer)
    activation, full = by_kind.get("mlp activation", set()), by_kind.get("mlp full", set())
    core, mlp = by_kind.get("core_attn", set()), activation | full
    lines = [f"# {line}" for line in comment.splitlines()]
    modules = [m for m, layers in (("core_attn", core), ("mlp", mlp)) if layers]
    if modules:
        lines += ["recompute_granularity: selective", f"recompute_modules: [{', '.join(modules)}]"]
    for module, layers in (("core_attn", core), ("mlp", mlp)):
        if layers and layers == set(range(1, len(layers) + 1)):
            lines.append(f"recompute_{module}_num_layers: {len(layers)}")
        elif layers:
            lines.append(f"recompute_{module}_layers: {expression(layers)}")
    if activation and not full:
        lines.append("mlp_recompute_level: activation")
    elif activation:
        lines.append(f"mlp_activation_layers: {expression(activation)}")
    return "\n".join(lines) + "\n"
