"""NKeys, against a seed and a key that the nkeys specification gives, and what cannot be used."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streams.errors import UserError
from streams.wire import identity as identities
from streams.wire.identity import identity
from streams.wire.nkeys import UserKey

# Source: nats-server, docs of NKey authentication
SEED = "SUACSSL3UAHUDXKFSNVUZRF5UHPMWZ6BFDTJ7M6USDXIEDNPPQYYYCU3VY"
PUBLIC = "UDXU4RCSJNZOIQHZNWXHXORDPRTGNJAHAHFRGZNEEJCPQTT2M7NLCNF4"


def test_a_seed_has_the_public_key_that_others_read_from_it() -> None:
    key = UserKey.of_seed(f" {SEED}\n")
    assert (key.public, key.seed) == (PUBLIC, SEED)


def test_a_new_key_is_another_each_time_and_can_be_read_again() -> None:
    key = UserKey.made()
    assert UserKey.of_seed(key.seed).public == key.public != UserKey.made().public


@given(st.one_of(st.text(max_size=80), st.integers(0, len(SEED) - 1).map(lambda at: SEED[:at] + "A" + SEED[at + 1 :])))
def test_what_is_no_seed_is_refused_without_repeating_it(text: str) -> None:
    if text == SEED:
        return
    with pytest.raises(UserError) as refused:
        UserKey.of_seed(text)
    assert "SUAC" not in str(refused.value)


@pytest.mark.parametrize(
    ("variable", "content", "says"),
    [
        (identities.CREDENTIALS, "", "no file of a key"),
        (identities.CREDENTIALS, f"{SEED}\n{SEED}\n", "no file of a key"),
        (identities.CREDENTIALS, f"# inbox: a b\n{SEED}\n", "no file of a key"),
        (identities.CREDENTIALS, "secret", "no seed of a NATS user's nkey"),
        (identities.CREDENTIALS, "se\xff", "other than ASCII"),
        (identities.AUTHORITY, "no certificate", "no certificates in PEM"),
    ],
)
def test_files_that_cannot_be_used_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variable: str, content: str, says: str
) -> None:
    path = tmp_path / "file"
    path.write_bytes(content.encode("latin-1"))
    monkeypatch.setenv(variable, str(path))
    with pytest.raises(UserError, match=says) as refused:
        identity()
    assert str(refused.value).startswith(f"{variable}: {path}")
    assert "\n" not in str(refused.value)
    monkeypatch.setenv(variable, str(tmp_path / "none"))
    with pytest.raises(UserError, match="No such file"):
        identity()


def test_a_key_says_on_which_inbox_answers_come(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "node.nk"
    path.write_text(f"# of a node\n# inbox: _INBOX_node\n{SEED}\n")
    monkeypatch.setenv(identities.CREDENTIALS, str(path))
    found = identity()
    assert found.key is not None
    assert (found.key.public, found.inbox) == (PUBLIC, "_INBOX_node")
