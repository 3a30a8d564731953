"""Layers get their own view of the config, and the log says what each of them came to recompute."""
import contextlib
import contextvars
import functools
import gc
import inspect
import logging
import os
import sys

from . import _engine, _fields, _log, _numbers, _plan, _source, _view

_LAYER = "megatron.core.transformer.transformer_layer"
_LATE = ("recoup: {} before recoup.megatron was imported, and {} decides what it recomputes: start the job by "
         "`-m recoup.megatron`, or let `import recoup.megatron` be the script's first line")
_in_mtp = contextvars.ContextVar("recoup_in_mtp", default=False)


def installed(module) -> None:
    """Changes one of Megatron's modules that has just been imported."""
    if module.__name__ == _LAYER:
        root = getattr(module, "BaseTransformerLayer", module.TransformerLayer)
        for cls in _family(root):
            _wrap(cls)
        inherited = root.__init_subclass__

        @classmethod
        def init_subclass(cls, **keywords):
            inherited.__func__(cls, **keywords) if hasattr(inherited, "__func__") else inherited(**keywords)
            _wrap(cls)

        root.__init_subclass__ = init_subclass
    if hasattr(module, "build_module"):
        module.build_module = _building(module.build_module)
    for name, entering in (("MultiTokenPredictionLayer", _mtp), ("HybridModel", _numbers.hybrid_model),
                           ("MambaModel", _numbers.hybrid_model), ("HybridStack", _numbers.hybrid_stack)):
        cls = vars(module).get(name)
        if inspect.isclass(cls) and cls.__module__ == module.__name__:
            _around(cls, entering)


def refuse_models_built_before() -> None:
    """RuntimeError where layers are there already and something would have decided for them."""
    said = [name for name in ("RECOUP_CONFIG", _source.VARIABLE) if os.environ.get(name)]
    layer = sys.modules[_LAYER].TransformerLayer
    if said and any(isinstance(thing, layer) for thing in gc.get_objects()):
        raise RuntimeError(_LATE.format("a model was built", said[0]))


def _family(cls):
    return [cls, *(c for derived in cls.__subclasses__() for c in _family(derived))]


def _around(cls, entering) -> None:
    """Builds objects of a class inside the context manager entering(arguments of __init__)."""
    init = cls.__init__

    @functools.wraps(init)
    def wrapped(self, *args, **kwargs):
        try:
            arguments = inspect.signature(init).bind(self, *args, **kwargs).arguments
        except TypeError:
            return init(self, *args, **kwargs)  # says what is wrong
        with entering(arguments):
            init(self, *args, **kwargs)

    cls.__init__ = wrapped


@contextlib.contextmanager
def _mtp(_arguments):
    token = _in_mtp.set(True)
    try:
        yield
    finally:
        _in_mtp.reset(token)


def _wrap(cls) -> None:
    if "__init__" not in vars(cls) or hasattr(cls.__init__, "recoup"):
        return
    init = cls.__init__

    @functools.wraps(init)
    def wrapped(self, *args, **kwargs):
        args, kwargs, layer = _with_view(self, args, kwargs)
        init(self, *args, **kwargs)
        if layer:
            layer.built()
        _engine.name_what_is_bypassed(self)

    wrapped.recoup = True
    cls.__init__ = wrapped


def _with_view(layer, args, kwargs):
    """The arguments with the layer's view in place of the config; None: nothing is to be decided."""
    from megatron.core.transformer.transformer_config import TransformerConfig

    at, config = next(((k, v) for k, v in [*kwargs.items(), *enumerate(args)]
                       if isinstance(v, TransformerConfig)), (None, None))
    if config is None or _view.is_view(config):
        return args, kwargs, None
    if not hasattr(config, _plan.CONFIGURED) and _plan.has_something_to_say(config):
        raise RuntimeError(_LATE.format(f"a {type(config).__name__} was made", "its configuration"))
    if not _plan.decides(config):
        return args, kwargs, None
    built = _Layer(layer, config, args, kwargs)
    if isinstance(at, str):
        return args, {**kwargs, at: built.view}, built
    return (*args[:at], built.view, *args[at + 1:]), kwargs, built


class _Layer:
    """A layer under construction."""

    def __init__(self, layer, config, args, kwargs):
        self.layer, self.config = layer, config
        self.local = next((kwargs[n] for n in ("layer_number",) if n in kwargs), None)
        if self.local is None:
            numbers = [a for a in args if isinstance(a, int) and not isinstance(a, bool)]
            self.local = numbers[0] if numbers else 1
        self.keywords = kwargs
        self.is_mtp = bool(kwargs.get("is_mtp_layer")) or _in_mtp.get()
        self.decision = _view.Decision(config, self._decide)
        self.view = _view.of(config, self.decision, _fields.all_limits())
        self.counts = _numbers.counts(config, kwargs)

    @property
    def number(self) -> int:
        """Global, 1-indexed: the layer's own once it has one."""
        own = vars(self.layer).get("layer_number") if self.layer is not None else None
        return own if own is not None else self.local + self._offset()

    def _offset(self) -> int:
        if self.keywords.get("add_layer_offset") is False or self.is_mtp:
            return 0
        return _numbers.stage_offset(self.config, self.keywords)

    @property
    def stage_offset(self) -> int:
        if self.keywords.get("add_layer_offset") is False:
            return self.keywords.get("pp_layer_offset") or 0
        return max(self.number - self.local, 0)

    def _decide(self):
        number = self.number
        return _plan.of_layer(self.config, number, self.is_mtp, self.stage_offset,
                              mlp_number=self.counts.mlp_number(number),
                              stage_num_layers=self.counts.stage_num_layers,
                              num_mlps=self.counts.num_mlps)

    def built(self) -> None:
        """Says what the layer came to recompute, which is what it says itself."""
        from megatron.core.transformer.identity_op import IdentityOp

        self.decision.freeze()
        layer = self.layer
        mlp = getattr(layer, "mlp", None)
        if isinstance(mlp, IdentityOp):
            if getattr(layer, "recompute_mlp", False):
                layer.recompute_mlp = False  # a checkpoint around nothing
            return
        name = f"{'MTP layer' if self.is_mtp else 'Layer'} {self.number}"
        if hasattr(layer, "recompute_mlp"):
            _log.say(f"{name}: recompute_mlp={layer.recompute_mlp}")
        else:
            _log.say(f"{name} ({type(layer).__name__}): recomputes "
                     f"{', '.join(self.decision.modules) or 'nothing'}")
        others = [m for m in self.config.recompute_modules if m != "mlp"
                  and m not in self.decision.modules]
        if others:
            _log.say(f"{name}: recomputes no {', no '.join(others)}")


def _building(build_module):
    """Layers of classes that Megatron does not know get their view where a block builds them."""
    if hasattr(build_module, "recoup"):
        return build_module

    @functools.wraps(build_module)
    def wrapped(spec, *args, **kwargs):
        built = None
        if "layer_number" in kwargs and not _is_known(spec):
            args, kwargs, built = _with_view(None, args, kwargs)
        result = build_module(spec, *args, **kwargs)
        if built:
            built.layer = result
            built.built()
        return result

    wrapped.recoup = True
    return wrapped


def _is_known(spec) -> bool:
    layer = sys.modules.get(_LAYER)
    root = getattr(layer, "BaseTransformerLayer", None) or getattr(layer, "TransformerLayer", None)
    cls = spec if inspect.isclass(spec) else getattr(spec, "module", None)
    cls = getattr(cls, "func", cls)
    return root is None or (inspect.isclass(cls) and issubclass(cls, root))


