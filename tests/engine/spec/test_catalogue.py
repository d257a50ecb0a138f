"""The catalogue: what is installed is found, and what contradicts it is refused."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import pytest
import toys

from engine.spec.catalogue import EXTRA, GROUP, Catalogue, installed, load_operator
from engine.spec.operator import Capability, Media, Port, Rung
from streams.errors import UserError


class OtherPorts(toys.Read):
    capability = Capability("toy_read", {"film": Port(Media)}, toys.Number, toys.Added)


class SameName(toys.Read):
    pass


class AnotherName(toys.Read):
    name = "another"


def test_implementations_are_found_by_capability_and_name() -> None:
    catalogue = Catalogue([*toys.ALL, AnotherName])
    assert catalogue.capability("toy_read") is toys.READ
    assert catalogue.implementations("toy_read") == {"toy": toys.Read, "another": AnotherName}
    assert catalogue.implementation("toy_read", "another") is AnotherName
    assert catalogue.implementations("nothing") == {}


def test_the_same_operator_twice_is_one() -> None:
    assert Catalogue([toys.Read, toys.Read]).implementations("toy_read") == {"toy": toys.Read}


@pytest.mark.parametrize(
    ("operator", "said"), [(OtherPorts, "with other ports"), (SameName, "both implement 'toy_read'")]
)
def test_contradictions_are_refused(operator: type[toys.Read], said: str) -> None:
    with pytest.raises(UserError, match=operator.__name__) as refused:
        Catalogue([toys.Read, operator])
    assert said in str(refused.value)


def test_what_is_not_there_is_named_with_what_is() -> None:
    with pytest.raises(UserError, match="there are: toy_add, toy_read"):
        Catalogue([toys.Read, toys.Add]).capability("toy_write")
    with pytest.raises(UserError, match="there are: none"):
        Catalogue([]).capability("toy_read")
    with pytest.raises(UserError, match="'toy_read' is not implemented by 'other' here"):
        Catalogue([toys.Read]).implementation("toy_read", "other")


def test_an_operator_is_loaded_from_its_place() -> None:
    assert load_operator("toys:Read") is toys.Read


@pytest.mark.parametrize(
    "place", ["", ":", "toys", "toys:", "toys:Nothing", "no_such_module:Read", ":Read", "toys:READ", "toys:number"]
)
def test_what_is_no_operator_is_refused(place: str) -> None:
    with pytest.raises(UserError) as refused:
        load_operator(place)
    assert "should be" in str(refused.value)
    assert "\n" not in str(refused.value)


class Entry(NamedTuple):
    name: str
    value: str


class Unsettled(toys.Read):
    name = "unsettled"

    @classmethod
    def rungs(cls) -> Sequence[Rung]:
        raise RuntimeError("not\ntoday")


def test_what_others_installed_wrongly_is_set_aside_and_the_rest_serves(monkeypatch: pytest.MonkeyPatch) -> None:
    places = ["no_such_module:Read", "toys:Read", "toys:Nothing", f"{__name__}:OtherPorts", "toys:Add"]
    places.insert(3, f"{__name__}:Unsettled")
    monkeypatch.delenv(EXTRA, raising=False)
    monkeypatch.setattr(
        "engine.spec.catalogue.entry_points",
        lambda group: [Entry(f"{at}", place) for at, place in enumerate(places)] if group == GROUP else [],
    )
    installed.cache_clear()
    try:
        catalogue = installed()
    finally:
        installed.cache_clear()
    assert set(catalogue.capabilities) == {"toy_read", "toy_add"}
    assert catalogue.implementations("toy_read") == {"toy": toys.Read}
    names = ("no_such_module", "Nothing", "Unsettled: unsettled: rungs() raised RuntimeError: not today", "OtherPorts")
    assert [why.count("\n") for why in catalogue.set_aside] == [0, 0, 0, 0]
    for why, name in zip(catalogue.set_aside, names, strict=True):
        assert name in why
    with pytest.raises(UserError, match=r"no capability 'toy_write' is installed; .*set aside: .*no_such_module"):
        catalogue.capability("toy_write")


def test_an_import_that_fails_anyhow_is_a_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "bursting_operator.py").write_text("raise RuntimeError('no\\nlibrary')")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UserError, match="cannot load operator 'bursting_operator:Read': no library"):
        load_operator("bursting_operator:Read")


def test_the_environment_adds_operators(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(EXTRA, " toys:Read, toys:Add ,,toys:Read")
    monkeypatch.setattr("engine.spec.catalogue.entry_points", lambda group: [])
    installed.cache_clear()
    try:
        assert set(installed().capabilities) == {"toy_read", "toy_add"}
    finally:
        installed.cache_clear()


class Misconfigured(toys.Read):
    name = "misconfigured"

    @classmethod
    def rungs(cls) -> Sequence[Rung]:
        raise UserError("here.toml: line 3 is wrong")


def test_what_an_operator_says_itself_of_its_settings_is_said_as_it_is() -> None:
    with pytest.raises(UserError, match=r"^here\.toml: line 3 is wrong$"):
        Catalogue([Misconfigured])


def strange_family() -> list[object]:
    class WithoutCapability(toys.Read):
        capability = None  # type: ignore[assignment]

    return ["a:b", None, int, WithoutCapability, toys.Add]


def leaving_family() -> None:
    raise SystemExit(3)


def test_a_family_that_is_strange_is_set_aside_and_the_rest_serves() -> None:
    catalogue = Catalogue([toys.Read])
    catalogue.add_family_or_set_aside(f"{__name__}:strange_family")
    catalogue.add_family_or_set_aside(f"{__name__}:leaving_family")
    catalogue.add_family_or_set_aside("no_such_module:family")
    assert set(catalogue.capabilities) == {"toy_read", "toy_add"}
    assert len(catalogue.set_aside) == 6
    assert not any("\n" in why for why in catalogue.set_aside)
