"""recoup.apply and recoup.remove: the chosen MLPs of any PyTorch model through the engine."""
import functools
import logging
from typing import NamedTuple

import torch

from ._activation import first_projections, run_from_fc1_on, wanted
from ._checkpoint import run
from ._layers import find_layers
from .policy import Policy, environment

logger = logging.getLogger("recoup")


class Region:
    """In the place of an MLP's forward, as an attribute of the MLP itself.

    It refers to its MLP, so that a deepcopy or a pickle of the model gets a region of its own MLP, and
    looks the forward up in each call, so that what changes the MLP's class later (FSDP2) is honoured.
    """

    def __init__(self, mlp, name, nested, activation_only):
        self.mlp, self.name, self.nested = mlp, name, nested
        self.activation_only = activation_only  # at level activation
        self.before = mlp.__dict__.get("forward")  # of others who replace forwards likewise

    def __call__(self, *args, **kwargs):
        if self.mlp.gradient_checkpointing and not self.nested:
            raise RuntimeError(_twice(self.name))
        forward = self.before or functools.partial(type(self.mlp).forward, self.mlp)
        if self.activation_only and not torch.compiler.is_compiling():
            return run_from_fc1_on(self.mlp, forward, self.name, args, kwargs)
        return run(forward, args, kwargs, name=self.name)


def _twice(where):
    return (f"recoup: {where}: gradient_checkpointing_enable() was called on a model that recoup.apply "
            "is at work on, so its MLPs would be recomputed twice; call "
            "gradient_checkpointing_disable(), or pass nested=True to recoup.apply")


class Row(NamedTuple):
    """What was done to one layer."""

    layer: int  # from 1
    module: str  # path of its MLP
    type: str  # class of its MLP
    recomputed: bool
    note: str


class Applied(tuple):
    """A Row for each layer. Prints as a table."""

    def __str__(self):
        cells = [("layer", "module", "class", "MLP")] + [
            (str(r.layer), r.module, r.type, r.note) for r in self]
        widths = [max(len(row[i]) for row in cells) for i in range(3)]
        lines = ["  ".join(c.ljust(w) for c, w in zip(row, widths)) + "  " + row[3] for row in cells]
        return "\n".join(lines + [f"{sum(r.recomputed for r in self)} of {len(self)} MLPs recomputed"])

    __repr__ = __str__


def _options(config, mlp_num_layers, mlp_layers, mlp_level):
    """(config, yaml) for Policy."""
    given = [name for name, value in (("config", config), ("mlp_num_layers", mlp_num_layers),
                                      ("mlp_layers", mlp_layers)) if value is not None]
    if len(given) > 1:
        raise ValueError(f"recoup.apply: {' and '.join(given)} are both given; allowed is one of them")
    head = "recompute_granularity: selective\nrecompute_modules: [mlp]\n"
    if mlp_level is not None:
        if mlp_num_layers is mlp_layers is None:
            raise ValueError("recoup.apply: mlp_level= goes with mlp_num_layers= or mlp_layers=; a file says "
                             "it itself (mlp_recompute_level)")
        head += f"mlp_recompute_level: {mlp_level}\n"
    if mlp_num_layers is not None:
        return None, head + f"recompute_mlp_num_layers: {mlp_num_layers}\n"
    if mlp_layers is not None:
        quoted = str(mlp_layers).replace("'", "''")
        return None, head + f"recompute_mlp_layers: '{quoted}'\n"
    return config, None


def _rank():
    dist = torch.distributed
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def _regions(model):
    return {id(m): m for m in model.modules() if isinstance(m.__dict__.get("forward"), Region)}


def apply(model, config=None, *, mlp_num_layers=None, mlp_layers=None, mlp_level=None, layers=None,
          mlp=None, nested=False):
    """Recomputes MLPs of a model's decoder layers in backward, and returns a table of what it did.

    config          a YAML file of options (configs/ has examples); without it and the next two, the
                    environment's RECOUP_CONFIG or RECOUP_RECOMPUTE_MLP_NUM_LAYERS
    mlp_num_layers  or: the MLPs of the first so many layers
    mlp_layers      or: a layer expression, such as "1-12,!3"
    mlp_level       beside one of these two: "full" (the default) keeps an MLP's input; "activation" keeps
                    what its first projections give (fc1, or gate_proj and up_proj), so that no GEMM runs
                    again, for MLPs whose forward calls them with its own input
    layers, mlp     where the layers are, for a model in which they are not found: a pattern of module
                    paths ("model.layers.*"), and the MLP's path in a layer ("mlp")
    nested          allow that the model's own gradient checkpointing recomputes around it

    Layers are numbered from 1 in the model's order. The MLP of a layer with experts is left alone.
    Gradients are bit-equal to those without. Copies, pickles and state dicts of the model work as
    before; remove(model) undoes it.

    RecoupError (a ValueError) where the options are refused, ValueError where the layers are not found,
    or the model is one that this cannot be applied to; nothing is changed then.
    """
    found = find_layers(model, layers, mlp)
    if _regions(model):
        raise ValueError("recoup.apply: it is at work on this model already; call recoup.remove(model) "
                         "first")
    for module in model.modules():
        if nested:
            break
        if getattr(module, "gradient_checkpointing", False) is True:
            raise ValueError(_twice(type(model).__name__))
        if type(module).__name__ == "CheckpointWrapper":
            raise ValueError("recoup.apply: the model has modules in checkpoint_wrapper(), so its MLPs "
                             "would be recomputed twice; unwrap them, or pass nested=True")
    config, yaml = _options(config, mlp_num_layers, mlp_layers, mlp_level)
    if config is yaml is None and not environment():
        raise ValueError("recoup.apply: nothing says what to recompute; give a file, mlp_num_layers= or "
                         "mlp_layers=, or set RECOUP_CONFIG")
    dense = [layer.number for layer in found if not layer.is_moe]
    policy = Policy("recoup.apply", config, len(found), len(found), rank=_rank(), log=logger.info,
                    warn=logger.warning, yaml=yaml, modules=["mlp", "mlp_activation"],
                    capabilities=["count_mlps"], num_mlps=len(dense))
    decisions = [policy.decide(layer.number, layer.is_moe,
                               mlp_number=0 if layer.is_moe else dense.index(layer.number) + 1)
                 for layer in found]
    for layer, decision in zip(found, decisions):
        if decision.mlp_activation_only and not first_projections(layer.mlp):
            raise ValueError(f"recoup.apply: {layer.path} ({type(layer.mlp).__name__}): level activation cannot be "
                             f"had, since it has no projections of these names: {wanted()}; use level full")
    rows = []
    for layer, decision in zip(found, decisions):
        note = ("experts: left alone" if layer.is_moe else "kept" if not decision.mlp else
                "recomputed from fc1's output on" if decision.mlp_activation_only else "recomputed")
        rows.append(Row(layer.number, layer.path, type(layer.mlp).__name__, decision.mlp, note))
        if decision.mlp:
            layer.mlp.forward = Region(layer.mlp, f"layer {layer.number} mlp", nested,
                                       decision.mlp_activation_only)
            if "gradient_checkpointing" not in layer.mlp.__dict__:
                # Set by gradient_checkpointing_enable() on every module that has it.
                layer.mlp.gradient_checkpointing = False
    return Applied(rows)


def remove(model):
    """Undoes apply(model); how many MLPs it was at work on."""
    regions = _regions(model)
    for mlp in model.modules():
        wrapped = getattr(mlp.__dict__.get("forward"), "__self__", None)
        if isinstance(mlp.__dict__.get("_old_forward"), Region) or isinstance(wrapped, Region):
            raise ValueError(f"recoup.remove: the forward of a {type(mlp).__name__} has been replaced since "
                             "recoup.apply; undo that first")
    for mlp in regions.values():
        before = mlp.forward.before
        del mlp.forward, mlp.gradient_checkpointing
        if before is not None:
            mlp.forward = before
    return len(regions)
