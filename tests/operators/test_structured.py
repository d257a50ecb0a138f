"""Structured output: what a model is held to, and what is believed of what it says."""

import json
from typing import Annotated, Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import Meta

from operators.language.structured import Growing, read, schema_of
from streams.errors import Permanent


class Part(msgspec.Struct, frozen=True):
    name: Annotated[str, Meta(max_length=20)]


class Whole(msgspec.Struct, frozen=True):
    title: Annotated[str, Meta(max_length=40)]
    parts: Annotated[list[Part], Meta(max_length=3)] = []


def test_a_schema_is_closed_bounded_and_in_one_piece() -> None:
    schema = schema_of(Whole)
    part = {"type": "object", "additionalProperties": False, "required": ["name"]}
    assert schema["properties"]["parts"]["items"] == part | {
        "properties": {"name": {"type": "string", "maxLength": 20}}
    }
    assert schema["required"] == ["title", "parts"]
    assert "$ref" not in json.dumps(schema)


@pytest.mark.parametrize("type_", [str, Annotated[list[int], Meta(min_length=1)]])
def test_what_has_no_bound_is_refused(type_: Any) -> None:
    with pytest.raises(TypeError, match=r"Endless\.text: a (string|list) has no bound"):
        schema_of(msgspec.defstruct("Endless", [("text", type_)]))


GOOD = '{"title": "A {b}", "parts": [{"name": "x"}]}'


@pytest.mark.parametrize(
    "text",
    [
        GOOD,
        f"\n {GOOD}\n",
        f"```json\n{GOOD}\n```",
        f'Let me think: {{this}} or {{}} or {{"title": 3}}. So: {GOOD} I hope that helps.',
        f'<think>{{"title": "first"}}</think>{GOOD}',
    ],
)
def test_an_object_is_found_in_what_is_said(text: str) -> None:
    assert read(Whole, text) == Whole(title="A {b}", parts=[Part(name="x")])


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "it holds no JSON object"),
        ("nine o'clock", "it holds no JSON object"),
        ('{"title": "never closed', ""),
        ('{"title": 7}', "Expected `str`, got `int`"),
        (json.dumps({"title": "x" * 41}), "length <= 40"),
        ("{" * 5000, ""),
        ('{"a":' * 3000, ""),
    ],
)
def test_what_holds_none_is_a_failure_with_a_name(text: str, why: str) -> None:
    with pytest.raises(Permanent, match=r"^schema: ") as caught:
        read(Whole, text)
    assert why in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 700


@given(st.text(max_size=60), st.lists(st.integers(1, 9), max_size=80))
def test_the_first_string_grows_as_its_json_comes(text: str, sizes: list[int]) -> None:
    whole = json.dumps({"answer": text, "more": "no"}, ensure_ascii=bool(len(text) % 2))
    growing, found, at = Growing("answer"), "", 0
    for size in [*sizes, len(whole)]:
        found += growing.add(whole[at : at + size])
        at += size
    if text.isascii() and (text.isprintable() or not text.strip()):
        assert found == text
    assert len(found) <= len(json.dumps(text))


def test_what_never_ends_is_not_looked_through_for_ever() -> None:
    growing = Growing("answer")
    assert sum(len(growing.add('{"answer": "' if not at else "x")) for at in range(20_000)) < 4096
    with pytest.raises(Permanent, match=r"^schema: "):
        read(Whole, "{" * 1_000_000)


def test_what_is_no_object_grows_nothing() -> None:
    assert [Growing("answer").add(text) for text in ("", "nine", '{"a": 7, "b": "x"}', '["x"]')] == ["", "", "", ""]
