"""The catalogue: which implementations of which capabilities are installed.

Operators are found by the entry-point group `penstock.operators`; the environment variable PENSTOCK_OPERATORS
("module:Class, module:Class") adds some without packaging them, for those who write one. A package whose operator
cannot be loaded, or contradicts what is known, is set aside, and the others serve; one that the variable names has to
be right.
"""

import importlib
import os
from collections.abc import Iterable, Mapping
from functools import cache
from importlib.metadata import entry_points

from engine.spec.operator import Capability, Operator
from streams.errors import UserError

GROUP = "penstock.operators"
EXTRA = "PENSTOCK_OPERATORS"


class Catalogue:
    """Implementations by capability. Refuses two that disagree on what their capability is."""

    def __init__(self, operators: Iterable[type[Operator]]) -> None:
        self.capabilities: dict[str, Capability] = {}
        self._implementations: dict[str, dict[str, type[Operator]]] = {}
        self.set_aside: list[str] = []  # why, a line for each operator that is installed and cannot be had
        for operator in operators:
            self._add(operator)

    def _add(self, operator: type[Operator]) -> None:
        capability = operator.capability
        known = self.capabilities.setdefault(capability.name, capability)
        if known != capability:
            raise UserError(f"{_place(operator)} declares {capability.name!r} with other ports than those known of it")
        named = self._implementations.setdefault(capability.name, {})
        if named.setdefault(operator.name, operator) is not operator:
            both = f"{_place(operator)} and {_place(named[operator.name])}"
            raise UserError(f"{both} both implement {capability.name!r} as {operator.name!r}")

    def add_or_set_aside(self, place: str) -> None:
        """The operator at "module:Class", if it can be had."""
        try:
            self._add(load_operator(place))
        except UserError as error:
            self.set_aside.append(str(error))

    def capability(self, name: str) -> Capability:
        try:
            return self.capabilities[name]
        except KeyError:
            there = ", ".join(sorted(self.capabilities)) or "none"
            aside = "".join(f"; set aside: {why}" for why in self.set_aside)
            raise UserError(f"no capability {name!r} is installed; there are: {there}{aside}") from None

    def implementations(self, capability: str) -> Mapping[str, type[Operator]]:
        return self._implementations.get(capability, {})

    def implementation(self, capability: str, name: str) -> type[Operator]:
        try:
            return self._implementations[capability][name]
        except KeyError:
            raise UserError(f"{capability!r} is not implemented by {name!r} here; is its package installed?") from None


@cache
def installed() -> Catalogue:
    """The catalogue of this Python environment."""
    extra = dict.fromkeys(place.strip() for place in os.environ.get(EXTRA, "").split(",") if place.strip())
    catalogue = Catalogue(load_operator(place) for place in extra)
    for entry in sorted(entry_points(group=GROUP), key=lambda entry: entry.name):
        if entry.value not in extra:
            catalogue.add_or_set_aside(entry.value)
    return catalogue


def load_operator(place: str) -> type[Operator]:
    """The operator class at "module:Class". Raises UserError where there is none."""
    module_name, _, name = place.partition(":")
    try:
        operator = getattr(importlib.import_module(module_name), name)
    except Exception as error:  # whatever its module does when it is imported
        cause = " ".join(str(error).split())[:200] or type(error).__name__
        raise UserError(f"cannot load operator {place!r}: {cause}; it should be module:Class") from error
    if not (isinstance(operator, type) and issubclass(operator, Operator)):
        raise UserError(f"{place!r} is not an operator: it should be a class derived from penstock.operators.Operator")
    return operator


def _place(operator: type[Operator]) -> str:
    return f"{operator.__module__}:{operator.__qualname__}"
