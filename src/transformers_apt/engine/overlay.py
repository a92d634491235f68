"""How an overlay says what it changes on an upstream class, and how that is bound and checked.

An overlay is a class named like its upstream target, in a module that mirrors upstream's path. Its public members are
put on the target in place, so that class identity, pickling, `isinstance` and Auto classes keep working:

- a function marked `@overrides(...)` wraps the upstream method of its name and gets it as first argument (a property's
  getter, and of a class method the method bound to its class, likewise);
- anything else (a class attribute, a property, a new method) is set as it is.
"""

from __future__ import annotations

import functools
import importlib
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

MISSING: Any = object()


class IncompatibleTransformersError(RuntimeError):
    """The installed transformers is not one that this package knows how to patch."""


@dataclass(frozen=True)
class Override:
    """A replacement for an upstream method.

    Attributes:
        function: called as `function(upstream, self, …)`; its keyword-only parameters are added to the signature.
        relies_on: upstream parameters that it uses by name; several names of which one has to be there, where a
            parameter is called otherwise from release to release.
    """

    function: Callable[..., Any]
    relies_on: tuple[str | tuple[str, ...], ...]

    @property
    def adds(self) -> list[inspect.Parameter]:
        """The parameters that the override adds to upstream's."""
        parameters = inspect.signature(self.function).parameters.values()
        return [parameter for parameter in parameters if parameter.kind is parameter.KEYWORD_ONLY]

    def check(self, upstream: Callable[..., Any], name: str) -> None:
        """Compare with the method found.

        Raises:
            IncompatibleTransformersError: a parameter that the override relies on is gone, or one that it adds exists.
        """
        found = inspect.signature(upstream).parameters
        for names in self.relies_on:
            if not any(parameter in found for parameter in ((names,) if isinstance(names, str) else names)):
                raise IncompatibleTransformersError(f"{name} has no parameter {names!r}; it has {list(found)}")
        for added in self.adds:
            if added.name in found:
                raise IncompatibleTransformersError(f"{name} already has a parameter {added.name!r} of its own")

    def bind(self, upstream: Callable[..., Any]) -> Callable[..., Any]:
        """The method to put on the class: upstream's name, docstring and signature, plus the added parameters."""
        function = self.function
        name = function.__name__

        @functools.wraps(upstream)
        def method(self: Any, *args: Any, **kwargs: Any) -> Any:
            return function(upstream, self, *args, **kwargs)

        # a code object of its own: for torch.compile one with many callers would look like one that keeps recompiling
        method.__code__ = method.__code__.replace(co_name=f"apt_{name}")  # type: ignore[attr-defined]
        parameters = list(inspect.signature(upstream).parameters.values())
        end = len(parameters) - (parameters[-1].kind is inspect.Parameter.VAR_KEYWORD)
        parameters[end:end] = self.adds
        signature = inspect.signature(upstream).replace(parameters=parameters)
        method.__signature__ = signature  # type: ignore[attr-defined]
        return method

    def bind_to_class(self, upstream: type, name: str) -> Callable[..., Any]:
        """The same for a class method: `function(upstream's method of the class, class, …)`."""
        found = inspect.getattr_static(upstream, name).__func__
        function = self.function

        @functools.wraps(found)
        def method(cls: type, *args: Any, **kwargs: Any) -> Any:
            return function(functools.partial(found, cls), cls, *args, **kwargs)

        return method


def overrides(*relies_on: str | tuple[str, ...]) -> Callable[[Callable[..., Any]], Any]:
    """Mark an overlay's function as wrapping the upstream method of the same name, relying on these parameters."""
    return lambda function: Override(function, relies_on)


_OF_EVERY_CLASS = frozenset(vars(type("Empty", (), {"__doc__": ""}))) | {
    "__annotations__", "__firstlineno__", "__static_attributes__",
}  # fmt: skip


class Overlay:
    """Base of the overlays.

    Class attributes:
        target: `"module:Class"` of the upstream class.
    """

    target: str

    @classmethod
    def resolve(cls) -> type:
        """The upstream class.

        Raises:
            IncompatibleTransformersError: it is not where this package expects it.
        """
        module_name, class_name = cls.target.split(":")
        try:
            return getattr(importlib.import_module(module_name), class_name)
        except (ImportError, AttributeError) as error:
            raise IncompatibleTransformersError(f"{cls.target.replace(':', '.')} cannot be found: {error}") from error

    @classmethod
    def members(cls) -> dict[str, Any]:
        """What the overlay sets, by name: its own members, and those of the overlays that it derives from."""
        bases = cls.__mro__[: cls.__mro__.index(Overlay)]
        members = {name: value for base in reversed(bases) for name, value in vars(base).items()}
        return {name: value for name, value in members.items() if name != "target" and name not in _OF_EVERY_CLASS}

    @classmethod
    def changes(cls) -> list[tuple[type, str, Any]]:
        """`(upstream class, member name, new value)` for everything this overlay sets, after checking every target.

        Raises:
            IncompatibleTransformersError: upstream is not as the overlay expects.
        """
        upstream = cls.resolve()
        found = []
        for name, value in cls.members().items():
            if isinstance(value, Override):
                where = f"{cls.target.replace(':', '.')}.{name}"
                original = getattr(upstream, name, MISSING)
                if original is MISSING:
                    raise IncompatibleTransformersError(f"{where} does not exist")
                getter: Any = original.fget if isinstance(original, property) else None
                value.check(getter or original, where)
                if getter is not None:
                    value = property(value.bind(getter))
                elif isinstance(inspect.getattr_static(upstream, name), classmethod):
                    value = classmethod(value.bind_to_class(upstream, name))
                else:
                    value = value.bind(original)
            found.append((upstream, name, value))
        return found
