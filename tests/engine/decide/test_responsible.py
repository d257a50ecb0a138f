"""Whether it matters which node sends a webhook."""

import pytest

from engine.decide.responsible import unlike_signers


@pytest.mark.parametrize(
    ("signs", "said"),
    [
        ({}, ""),
        ({"n1": ""}, ""),
        ({"n1": "", "n2": ""}, ""),
        ({"n1": "aa", "n2": "aa"}, ""),
        (
            {"n1": "aa", "n2": "bb", "n3": "aa"},
            "webhooks are signed differently: by n1, n3 with key aa; by n2 with key bb",
        ),
        ({"n1": "aa", "n2": ""}, "webhooks are signed differently: by n2 not at all; by n1 with key aa"),
    ],
)
def test_nodes_that_would_sign_differently_are_named(signs: dict[str, str], said: str) -> None:
    assert unlike_signers(signs) == said
