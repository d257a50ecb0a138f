"""The catalogue: which implementations of which capabilities are installed.

Operators are found by the entry-point group `penstock.operators`, and by `penstock.operator_families`, of functions
that give as many as there are; the environment variable PENSTOCK_OPERATORS
("module:Class, module:Class") adds some without packaging them, for those who write one. A package whose operator
cannot be loaded, or contradicts what is known, is set aside, and the others serve; one that the variable names has to
be right.
"""

import importlib
import os
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from importlib.metadata import entry_points
from typing import Any, Literal, NamedTuple

from engine.spec.operator import Capability, Machine, Operator, Rung, Settings
from streams.errors import UserError
from streams.records import MediaInfo

GROUP = "penstock.operators"
FAMILIES = "penstock.operator_families"  # functions that give operators: as many as something on this machine says
EXTRA = "PENSTOCK_OPERATORS"


class Offer(NamedTuple):
    """A rung of an implementation."""

    operator: type[Operator]
    rung: Rung

    @property
    def place(self) -> tuple[float, str, str]:
        """What orders offers: the best first, and always the same."""
        return -self.rung.quality, self.operator.name, self.rung.name

    def device_on(self, machine: Machine) -> Literal["cpu", "cuda"]:
        """Where it runs on a machine that it can run on."""
        return "cuda" if machine.has_gpu and "cuda" in self.operator.devices else "cpu"

    def missing(self, machine: Machine, media: MediaInfo | None) -> str | None:
        """Why it cannot run there on this input; None where it can. One that cannot even say that cannot."""
        try:
            return self.operator.missing(self.rung.knobs, machine, media)
        except Exception as error:  # it has others beside it, perhaps of other authors
            return raised(self.operator, "missing()", error)

    def cannot(self, params: Settings) -> str | None:
        """Why it cannot do what is asked; None where it can."""
        try:
            return self.operator.cannot(self.rung.knobs, params)
        except Exception as error:
            return raised(self.operator, "cannot()", error)


class Catalogue:
    """Implementations by capability. Refuses two that disagree on what their capability is."""

    def __init__(self, operators: Iterable[type[Operator]]) -> None:
        self.capabilities: dict[str, Capability] = {}
        self._implementations: dict[str, dict[str, type[Operator]]] = {}
        self._offers: dict[str, list[Offer]] = {}
        self.set_aside: list[str] = []  # why, a line for each operator that is installed and cannot be had
        for operator in operators:
            self._add(operator)

    def _add(self, operator: type[Operator]) -> None:
        offers = _offers_of(operator)
        capability = operator.capability
        known = self.capabilities.setdefault(capability.name, capability)
        if known != capability:
            raise UserError(f"{_place(operator)} declares {capability.name!r} with other ports than those known of it")
        named = self._implementations.setdefault(capability.name, {})
        if named.setdefault(operator.name, operator) is not operator:
            both = f"{_place(operator)} and {_place(named[operator.name])}"
            raise UserError(f"{both} both implement {capability.name!r} as {operator.name!r}")
        others = [offer for offer in self._offers.get(capability.name, ()) if offer.operator is not operator]
        self._offers[capability.name] = sorted([*others, *offers], key=lambda offer: offer.place)

    def add_or_set_aside(self, place: str) -> None:
        """The operator at "module:Class", if it can be had."""
        try:
            operator = load_operator(place)
        except UserError as error:
            self.set_aside.append(str(error))
        else:
            self._add_or_set_aside(operator, place)

    def _add_or_set_aside(self, operator: Any, place: str) -> None:
        try:
            self._add(_checked(operator, place))
        except UserError as error:
            self.set_aside.append(str(error))
        except Exception as error:  # such as one that declares no capability
            self.set_aside.append(f"{place}: {type(error).__name__}: {' '.join(str(error).split())[:200]}")

    def add_family_or_set_aside(self, place: str) -> None:
        """All that the function at "module:function" gives, each if it can be had."""
        try:
            family = list(_loaded(place)())
        except UserError as error:
            self.set_aside.append(str(error))
            return
        except (Exception, SystemExit) as error:  # it has others beside it, perhaps of other authors
            self.set_aside.append(f"{place} raised {type(error).__name__}: {' '.join(str(error).split())[:200]}")
            return
        for operator in family:
            self._add_or_set_aside(operator, place)

    def capability(self, name: str) -> Capability:
        try:
            return self.capabilities[name]
        except KeyError:
            there = ", ".join(sorted(self.capabilities)) or "none"
            aside = "".join(f"; set aside: {why}" for why in self.set_aside)
            raise UserError(f"no capability {name!r} is installed; there are: {there}{aside}") from None

    def implementations(self, capability: str) -> Mapping[str, type[Operator]]:
        return self._implementations.get(capability, {})

    def offers(self, capability: str) -> Sequence[Offer]:
        """All rungs of all its implementations, best first."""
        return self._offers.get(capability, [])

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
    for entry in sorted(entry_points(group=FAMILIES), key=lambda entry: entry.name):
        catalogue.add_family_or_set_aside(entry.value)
    return catalogue


def load_operator(place: str) -> type[Operator]:
    """The operator class at "module:Class". Raises UserError where there is none."""
    return _checked(_loaded(place), place)


def _checked(operator: Any, place: str) -> type[Operator]:
    if not (isinstance(operator, type) and issubclass(operator, Operator)):
        raise UserError(f"{place!r} is not an operator: it should be a class derived from penstock.operators.Operator")
    return operator


def _loaded(place: str) -> Any:
    module_name, _, name = place.partition(":")
    try:
        return getattr(importlib.import_module(module_name), name)
    except (Exception, SystemExit) as error:  # whatever its module does when it is imported
        cause = " ".join(str(error).split())[:200] or type(error).__name__
        raise UserError(f"cannot load operator {place!r}: {cause}; it should be module:Class") from error


def raised(operator: type[Operator], what: str, error: Exception) -> str:
    """What is said of an operator of which a part that is asked before it runs does not answer."""
    return f"{operator.name}: {what} raised {type(error).__name__}: {' '.join(str(error).split())[:200]}"


def _offers_of(operator: type[Operator]) -> list[Offer]:
    try:
        rungs = list(operator.rungs())
        if not all(isinstance(rung, Rung) for rung in rungs):
            raise TypeError("not all that it returns is a Rung")
        return sorted((Offer(operator, rung) for rung in rungs), key=lambda offer: offer.place)
    except UserError:  # it says itself what is to be mended
        raise
    except Exception as error:
        raise UserError(f"{_place(operator)}: {raised(operator, 'rungs()', error)}") from error


def _place(operator: type[Operator]) -> str:
    return f"{operator.__module__}:{operator.__qualname__}"
