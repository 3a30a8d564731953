"""Finding the decoder layers of a PyTorch model, and the MLP in each."""
import fnmatch
from typing import NamedTuple

import torch

_MLP_NAMES = ("mlp", "feed_forward", "feedforward", "ffn", "ff", "block_sparse_moe", "moe")
_EXPERTS = ("experts", "router", "shared_experts", "shared_expert")
_KEYWORDS = ('name them with layers= and mlp=, such as layers="model.layers.*", mlp="mlp": the modules '
             "that are the layers, in their order, and the path of the MLP within one")


class FoundLayer(NamedTuple):
    number: int  # from 1, in the model's order
    path: str  # of the MLP, from the model
    mlp: torch.nn.Module
    is_moe: bool


def _within(module, path):
    """The submodule at a dotted path, or None. Through wrappers, which pass attributes on."""
    for name in path.split("."):
        try:
            module = module[int(name)] if name.lstrip("-").isdigit() else getattr(module, name, None)
        except (IndexError, TypeError):
            return None
    return module if isinstance(module, torch.nn.Module) else None


def _is_moe(mlp):
    """Whether an MLP is a mixture of experts: it has experts or a router, or a list of alike modules."""
    for name, child in mlp.named_modules():
        if name.rsplit(".", 1)[-1] in _EXPERTS:
            return True
        if isinstance(child, torch.nn.ModuleList) and len({type(c) for c in child}) == 1 < len(child):
            return True
    return False


def _lists(model):
    """{path: (layers, name of the MLP)} of the lists of modules that look like a model's layers."""
    found = {}
    for path, module in model.named_modules():
        if not isinstance(module, (torch.nn.ModuleList, torch.nn.Sequential)) or len(module) == 0:
            continue
        for name in _MLP_NAMES:
            have = [_within(layer, name) is not None for layer in module]
            if all(have):
                found[path] = (list(module), name)
                break
    return found


def find_layers(model, layers=None, mlp=None):
    """Every decoder layer's MLP. `layers`: a pattern of module paths, as in fnmatch; `mlp`: the path of
    the MLP within a layer. ValueError where they cannot be found, or not without a doubt."""
    if layers is None:
        lists = _lists(model)
        if mlp is not None:
            lists = {path: (one, mlp) for path, (one, _) in lists.items()}
        if not lists:
            raise ValueError(f"recoup.apply: found no decoder layers in {type(model).__name__}: no list of "
                             f"modules each of which has one of {', '.join(_MLP_NAMES)}; {_KEYWORDS}")
        if len(lists) > 1:
            raise ValueError(f"recoup.apply: {type(model).__name__} has several lists of layers: "
                             f"{', '.join(lists)}; {_KEYWORDS}")
        (path, (modules, mlp)), = lists.items()
        named = [(f"{path}.{i}", layer) for i, layer in enumerate(modules)]
    else:
        named = [(path, module) for path, module in model.named_modules()
                 if path and fnmatch.fnmatchcase(path, layers) and path.count(".") == layers.count(".")]
        if not named:
            raise ValueError(f'recoup.apply: layers="{layers}" names no module of {type(model).__name__}; '
                             f"{_KEYWORDS}")
        mlp = mlp or next((name for name in _MLP_NAMES
                           if all(_within(layer, name) is not None for _, layer in named)), "mlp")
    found = []
    for number, (path, layer) in enumerate(named, start=1):
        module = _within(layer, mlp)
        if module is None:
            raise ValueError(f'recoup.apply: {path} ({type(layer).__name__}) has no module "{mlp}"; '
                             f"it has {', '.join(name for name, _ in layer.named_children())}; {_KEYWORDS}")
        found.append(FoundLayer(number, f"{path}.{mlp}", module, _is_moe(module)))
    return found
