"""Every public name of the engine says what it is, and what arrays it takes and gives."""

import importlib
import inspect
import pkgutil
import re
from collections.abc import Iterator
from types import ModuleType
from typing import Any, get_type_hints

import bandolero
from bandolero.policies.base import ContextualPolicy, Policy
from bandolero.policies.forgetting import Forgetful

SHAPE = re.compile(r"\(n(_\w+)?,|\(n_arms, |\(d, d\)")
POINTER = re.compile(r"(?i)\b(see|as) `")
IN_PLACE = "observe"
"""The only method that is no protocol's; its x is a row of the features of `update`."""
PROTOCOLS = (Policy, ContextualPolicy, Forgetful)


def modules(package: ModuleType) -> Iterator[ModuleType]:
    """A package and every module in it that is not private."""
    yield package
    for found in pkgutil.iter_modules(package.__path__):
        if found.name.startswith("_"):
            continue
        module = importlib.import_module(f"{package.__name__}.{found.name}")
        if found.ispkg:
            yield from modules(module)
        else:
            yield module


def members(owner: Any, prefix: str) -> Iterator[tuple[str, Any]]:
    """Public functions, classes, methods and properties defined in a module or a class."""
    for name, value in vars(owner).items():
        if name.startswith("_"):
            continue
        held = value.fget if isinstance(value, property) else value
        thing: Any = getattr(held, "__func__", held)
        here = getattr(thing, "__module__", None) == prefix.partition(":")[0]
        if here and (inspect.isclass(thing) or inspect.isfunction(thing)):
            yield f"{prefix}{'.' if ':' in prefix else ':'}{name}", thing
            if inspect.isclass(thing):
                yield from members(thing, f"{prefix.partition(':')[0]}:{name}")


def public(package: ModuleType) -> dict[str, Any]:
    """Everything public that a package defines, by `module:name`."""
    return {
        name: thing
        for module in modules(package)
        for name, thing in members(module, module.__name__)
    }


def takes_arrays(function: Any) -> bool:
    """Whether a parameter is an array."""
    hints = get_type_hints(function)
    return any("ndarray" in repr(hints[name]) for name in hints if name != "return")


def is_record(thing: Any) -> bool:
    """Whether something is a NamedTuple."""
    return inspect.isclass(thing) and issubclass(thing, tuple)


def test_every_public_name_has_a_docstring() -> None:
    """Functions, classes, methods and properties; a dataclass's own text, not Python's."""
    named = public(bandolero)
    assert len(named) > 200
    silent = [
        name
        for name, thing in named.items()
        if not (thing.__doc__ or "").strip()
        or thing.__doc__.startswith(f"{thing.__name__}(")
    ]
    assert silent == []


def test_what_bandolero_exports_is_documented() -> None:
    """Every name of `bandolero.__all__` is there, and says what it is."""
    for name in bandolero.__all__:
        thing = getattr(bandolero, name)
        assert isinstance(thing, str) or inspect.getdoc(thing), name


def test_policies_say_what_shapes_they_take() -> None:
    """A public function of the policies that takes arrays says of what shape.

    In its own docstring, by pointing at another's, or in that of its protocol.
    """
    promised = {
        name
        for protocol in PROTOCOLS
        for name, method in vars(protocol).items()
        if inspect.isfunction(method) and SHAPE.search(method.__doc__ or "")
    }
    assert promised >= {"update", "probabilities", "correction"}
    silent = [
        name
        for name, thing in public(bandolero.policies).items()
        if inspect.isfunction(thing)
        and takes_arrays(thing)
        and not SHAPE.search(thing.__doc__ or "")
        and not POINTER.search(thing.__doc__ or "")
        and name.rpartition(".")[2] not in promised | {IN_PLACE}
    ]
    assert silent == []


def test_states_say_of_what_shape_they_are() -> None:
    """A state of a policy, or what it prepares or gives, says the shape of its arrays."""
    records = {n: t for n, t in public(bandolero.policies).items() if is_record(t)}
    assert len(records) >= 8
    assert [n for n, t in records.items() if not SHAPE.search(t.__doc__)] == []
