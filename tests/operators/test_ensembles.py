"""Ensembles: a cascade asks the next model where one is not sure, and a vote is as sure as many agree."""

import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scripted_endpoint import Act, Endpoint, Request, Send, refuses, says, serving

from engine.spec.operator import Device
from operators.capabilities import NOT_IN_THE_VIDEO, AnswerParams, Reply
from operators.heard import Speech, Transcript
from operators.language.asking import ModelKnobs
from operators.language.conversing import Conversing
from operators.language.endpoints import ensembles
from operators.language.ensembles import plurality, samplings
from operators.language.reading import Reading
from penstock.testing import inputs_of
from streams.errors import Permanent, Transient, UserError

S = 10**9
EVIDENCE = Transcript(
    observations=(
        Speech(start_ns=0, end_ns=S, text="The train to Porto leaves at nine twenty from platform two."),
        Speech(start_ns=60 * S, end_ns=61 * S, text="The train to Lisbon leaves at ten fifteen."),
    )
)
ASK = "When does the train to Porto leave?"
RIGHT, WRONG = "At nine twenty.", "It leaves at ten fifteen."


def answer(text: str, *passages: int, sure: float) -> str:
    return json.dumps({"answer": text, "passages": passages, "confidence": sure})


Asking = Callable[..., Awaitable[tuple[Reply, Endpoint, list[tuple[str, bool]]]]]


@pytest.fixture
def asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Asking:
    """The reply of an ensemble where each model of the endpoint does such a thing; and what was shown meanwhile."""

    async def ask(knobs: ModelKnobs, **acts: Act | list[Act]) -> Any:
        num: dict[str, int] = {}

        async def by_model(request: Request, send: Send) -> None:
            model = request.body["model"]
            act = acts[model]
            if isinstance(act, list):
                num[model] = num.get(model, -1) + 1
                act = act[min(num[model], len(act) - 1)]
            await act(request, send)

        shown: list[tuple[str, bool]] = []
        async with serving(by_model) as there:
            file = tmp_path / "endpoints.toml"
            file.write_text(
                "\n".join(f'[[endpoint]]\nmodel = "{name}"\nurl = "{there.url}"\nanswer_s = 5\n' for name in acts)
            )
            monkeypatch.setenv("PENSTOCK_ENDPOINTS", str(file))
            operator = Reading(knobs)
            (item,) = inputs_of(Reading, {"evidence": [[EVIDENCE]]}, params=AnswerParams(question=ASK))
            await anyio.to_thread.run_sync(operator.load, Device())
            with anyio.fail_after(60):
                reply = await operator.process_one(item, lambda text, *, anew=False: shown.append((text, anew)))
        return reply, there, shown

    return ask


CASCADE = ModelKnobs(model="small", then=("large",), sure=0.7)


@pytest.mark.anyio
async def test_who_is_sure_is_asked_alone(asked: Asking) -> None:
    sure, unsure = says(answer(RIGHT, 1, sure=0.9)), says(answer(WRONG, 2, sure=0.3))
    reply, there, _ = await asked(CASCADE, small=sure, large=unsure)
    assert (reply.answer, len(there.requests)) == (RIGHT, 1)


@pytest.mark.anyio
async def test_who_is_not_sure_is_amended_and_those_who_listen_are_told(asked: Asking) -> None:
    reply, there, shown = await asked(
        CASCADE, small=says(answer(WRONG, 2, sure=0.4)), large=says(answer(RIGHT, 1, sure=0.8))
    )
    assert (reply.answer, [request.body["model"] for request in there.requests]) == (RIGHT, ["small", "large"])
    anew = [at for at, (_, is_anew) in enumerate(shown) if is_anew]
    assert len(anew) == 1
    assert "".join(text for text, _ in shown[: anew[0]]) == WRONG
    assert "".join(text for text, _ in shown[anew[0] :]) == RIGHT


@pytest.mark.anyio
async def test_of_unsure_ones_the_surest_counts_and_who_fails_leaves_it_to_the_others(asked: Asking) -> None:
    half, less = says(answer(RIGHT, 1, sure=0.5)), says(answer(WRONG, 2, sure=0.2))
    assert (await asked(CASCADE, small=half, large=less))[0].answer == RIGHT
    nothing = says(answer("not told", sure=0.99))
    assert (await asked(CASCADE, small=nothing, large=half))[0].answer == RIGHT, "that nothing tells is asked twice"
    assert (await asked(CASCADE, small=nothing, large=nothing))[0].answer == NOT_IN_THE_VIDEO
    anything = ModelKnobs(model="small", then=("large",), sure=0.0)
    assert (await asked(anything, small=nothing, large=half))[0].answer == RIGHT
    assert (await asked(CASCADE, small=says("no JSON"), large=half))[0].answer == RIGHT
    assert (await asked(CASCADE, small=half, large=refuses(401)))[0].answer == RIGHT
    with pytest.raises(Permanent, match=r"^refusal: large: HTTP 401"):
        await asked(CASCADE, small=says("no JSON"), large=refuses(401))
    with pytest.raises(Transient, match=r"^upstream: large"):
        await asked(CASCADE, small=says("no JSON"), large=refuses(503, Retry_After="60"))


@pytest.mark.anyio
async def test_a_vote_is_as_sure_as_many_agree(asked: Asking) -> None:
    knobs = ModelKnobs(model="small", samples=5)
    drawn = [
        says(answer(RIGHT, 1, sure=0.6)),
        says(answer(WRONG, 2, sure=1.0)),
        says(answer("nine twenty", 1, sure=0.9)),
        says(answer("At 9 20", 1, sure=0.6)),
        refuses(400),
    ]
    reply, there, shown = await asked(knobs, small=drawn)
    assert reply.answer == "nine twenty"
    assert reply.confidence == pytest.approx((0.6 + 0.9) / 5) or reply.confidence == pytest.approx(2.1 / 5)
    assert sorted(request.body["seed"] for request in there.requests) == [0, 1, 2, 3, 4]
    assert {request.body["temperature"] for request in there.requests} == {0.7}
    assert shown == [], "no draft of what is voted on"
    with pytest.raises(Permanent, match=r"^refusal: "):
        await asked(knobs, small=refuses(400))
    with pytest.raises(Transient, match=r"^upstream: "):
        await asked(knobs, small=[refuses(400), refuses(400), refuses(503, Retry_After="60"), refuses(400)])


def test_equal_ones_always_give_the_same() -> None:
    assert plurality(["b", "a"], str, lambda text: 1.0) == ("b", ["b"])
    assert plurality(["b", "a", "a", "b"], str, lambda text: 2.0 if text == "a" else 1.0)[0] == "a"
    assert samplings(2) == [{"temperature": 0.7, "seed": 0}, {"temperature": 0.7, "seed": 1}]


@given(st.lists(st.tuples(st.integers(0, 3), st.floats(0, 1)), min_size=1, max_size=12))
def test_nobody_has_more_in_common_than_the_plurality(outputs: list[tuple[int, float]]) -> None:
    best, agreed = plurality(outputs, lambda each: each[0], lambda each: each[1])
    sizes = [sum(1 for other in outputs if other[0] == kind) for kind in range(4)]
    assert len(agreed) == max(sizes)
    assert best in agreed
    assert best[1] == max(each[1] for each in agreed)


ENDPOINT = '[[endpoint]]\nmodel = "small"\nurl = "http://127.0.0.1:9/v1"\nquality = 0.3\n'
ENSEMBLE = '[[ensemble]]\nname = "careful"\nmodels = ["small"]\nsamples = 5\nquality = 0.4\n'


def test_an_ensemble_is_a_rung_of_those_who_can_vote(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "endpoints.toml"
    monkeypatch.setenv("PENSTOCK_ENDPOINTS", str(file))
    file.write_text(ENDPOINT + ENSEMBLE)
    assert [each.name for each in ensembles()] == ["careful"]
    assert [(rung.name, rung.quality) for rung in Reading.rungs()] == [("careful", 0.4), ("small", 0.3)]
    assert [rung.name for rung in Conversing.rungs()] == ["small"], "what it says to somebody nobody can count"
    for text, why in [
        (ENSEMBLE, "has 'small', which no endpoint answers as"),
        (ENDPOINT + ENSEMBLE.replace("careful", "small"), "'small' is the name of two"),
        (ENDPOINT + ENSEMBLE + ENSEMBLE, "'careful' is the name of two"),
        (ENDPOINT + ENSEMBLE.replace('["small"]', "[]"), "models"),
    ]:
        file.write_text(text)
        with pytest.raises(UserError, match=why):
            ensembles()
