"""TransformerConfig takes recoup's options, and its own check sees what they mean."""
import functools

from . import _fields, _plan


def installed(module) -> None:
    cls = module.TransformerConfig
    if hasattr(cls.__post_init__, "recoup"):
        return
    _fields.add(cls)
    post_init = cls.__post_init__

    @functools.wraps(post_init)
    def wrapped(self):
        _plan.configure(self)
        post_init(self)

    wrapped.recoup = True
    cls.__post_init__ = wrapped
