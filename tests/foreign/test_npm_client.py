"""A client that is not ours, in another language, gets along with what docs/protocol.md says.

`client.mjs` knows the document and the npm package `nats`; it runs once against a real node, and the tests look at what
it saw. Needs node, and the package: in $NODE_PATH, or else from npm.
"""

import json
import os
import subprocess
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any

import pytest
from clips import EXAMPLES, first_seconds
from npm import modules_with
from served import serving

CLIENT = Path(__file__).parent / "client.mjs"
CLIP_S = 30.0
ASKS = ["Where can I park my car?", "Why is the train to the forest not running?"]
WATCHED = "Which platform is Alice waiting on?"
JOBS = ["words", "watch", "tired", "visit"]


def accepted(question: str) -> list[str]:
    """What the clip's ground truth takes for an answer."""
    questions = json.loads((EXAMPLES / "station.json").read_text())["questions"]
    (found,) = (each["accepted"] for each in questions if each["question"] == question)
    return [str(answer) for answer in found]


@pytest.fixture(scope="module")
def modules(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The folder of npm modules that the client finds its package in."""
    return modules_with("nats", "2.", tmp_path_factory.mktemp("npm"))


@pytest.fixture(scope="module")
def saw(modules: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the client saw in its life with a node."""
    clip = first_seconds(tmp_path_factory.mktemp("clip") / "clip.ts", CLIP_S)
    with serving(tmp_path_factory.mktemp("store")) as server:
        wishes = {"server": str(server), "clip": str(clip), "seed": 7, "asks": ASKS, "watched": WATCHED}
        command = ["node", str(CLIENT), json.dumps(wishes)]
        environment = {**os.environ, "NODE_PATH": modules}
        client = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=150)
    assert client.returncode == 0, client.stderr
    said: dict[str, Any] = json.loads(client.stdout)
    assert sum(said["pieces"]) == clip.stat().st_size
    return said


def answered(saw: dict[str, Any], job: str) -> list[dict[str, Any]]:
    """The answers of a job as its follower got them, over all its connections."""
    return [each["record"] for each in saw["followed"][job]]


def test_a_node_is_found(saw: dict[str, Any]) -> None:
    (node,) = saw["nodes"]
    assert (node["num_workers"], node["http"]) == (1, "")
    assert (saw["ping"]["name"], saw["ping"]["type"]) == ("penstock", "io.nats.micro.v1.ping_response")


@pytest.mark.parametrize(
    ("request_name", "line"),
    [
        ("nowhere", "no stream 'nowhere'"),
        ("mistyped", "unknown field `question`; its keys are stream, workflow, asks"),
        ("empty", "missing required field `stream`"),
        ("broken", "request: "),
        ("accented", "'gare d’été'"),
        ("unknown", "no job 'visit-43'"),
        ("untranslated", "no capability 'translate' is installed; there are: answer_question"),
        ("taken", "there is a job 'words' already"),
    ],
)
def test_a_wrong_request_is_refused_with_a_line(saw: dict[str, Any], request_name: str, line: str) -> None:
    refused = saw["refused"][request_name]
    assert (refused["code"], refused["bytes"]) == ("400", 0)
    assert line in refused["text"]
    assert "\n" not in refused["text"]


def test_a_wrong_piece_is_not_taken(saw: dict[str, Any]) -> None:
    assert "give between 0.2 and 60 seconds" in saw["refused"]["piece"]
    num_segments = saw["stream"]["num_segments"]
    assert f"has ended after {num_segments} segments" in saw["refused"]["ended"]


def test_a_piece_counts_once_however_often_it_is_sent(saw: dict[str, Any]) -> None:
    pieces, replies = saw["pieces"], saw["replies"]
    assert (len(set(pieces)) > 20, pieces[-1]) == (True, 0)
    assert [reply["offset"] for reply in replies[:-1]] == list(accumulate(pieces))[:-1]
    assert saw["again"] == {"offset": saw["due"]}
    assert saw["ahead"]["offset"] == saw["due"]
    assert f"while {saw['due']} is due" in saw["ahead"]["error"]


def test_pieces_of_any_size_become_a_whole_stream(saw: dict[str, Any]) -> None:
    stream = saw["stream"]
    assert (stream["policy"], stream["state"], stream["segment_s"], stream["gaps"]) == ("durable", "ended", 2, {})
    assert (stream["first"], stream["last"]) == (0, stream["num_segments"] - 1)
    assert stream["end_s"] == pytest.approx(CLIP_S, abs=0.1)
    assert saw["gaps"] == []


def test_jobs_share_what_they_can(saw: dict[str, Any]) -> None:
    submitted = saw["submitted"]
    assert [(submitted[job]["standing"], submitted[job]["last"]) for job in JOBS[:3]] == [
        (False, None),
        (True, None),
        (True, None),
    ]
    assert (submitted["words"]["shared"], submitted["words"]["new"]) == ([], ["words"])
    assert "speech" in submitted["watch"]["shared"]
    assert submitted["visit"]["new"] == ["answer-1", "answer-2"]
    assert (submitted["visit"]["first"], submitted["visit"]["last"]) == (0, saw["stream"]["last"])


def test_no_answer_is_lost_or_seen_twice(saw: dict[str, Any]) -> None:
    by_job = {job: [each for each in saw["stored"] if each["record"]["job"] == job] for job in JOBS}
    late = by_job["tired"][len(saw["followed"]["tired"]) :]
    assert len(late) <= 1  # of a canceled job, one answer may still come
    assert {**saw["followed"], "tired": saw["followed"]["tired"] + late} == by_job
    assert saw["consumed"] == saw["stored"]
    assert all(each["subject"] == f"penstock.answers.{job}.station" for job in JOBS for each in by_job[job])
    assert saw["numCuts"] > 20


def test_a_workflow_answers_for_each_segment(saw: dict[str, Any]) -> None:
    words = answered(saw, "words")
    assert [(each["first"], each["last"]) for each in words] == [(n, n) for n in range(saw["stream"]["num_segments"])]
    spoken = [said["text"] for each in words for said in each["output"].get("observations", [])]
    assert "here is parking for 90 cars behind the building" in " ".join(spoken).replace("ninety", "90")


def test_questions_over_a_range_are_answered(saw: dict[str, Any]) -> None:
    visit = answered(saw, "visit")
    assert sorted(each["question"] for each in visit) == sorted(ASKS)
    for each in visit:
        assert any(right in each["answer"].lower() for right in accepted(each["question"])), each
        assert each["evidence"]
        assert (each["gaps"], each["partial"]) == ([], False)


def test_a_standing_question_is_answered(saw: dict[str, Any]) -> None:
    watch = answered(saw, "watch")
    assert any(right in watch[-1]["answer"].lower() for right in accepted(WATCHED)), watch
    said = [(each["answer"], each["evidence"]) for each in watch]
    assert all(now != before for before, now in pairwise(said))


def test_drafts_are_marked(saw: dict[str, Any]) -> None:
    for draft in saw["drafts"]:  # how many come depends on how quick the node is
        assert (draft["partial"], draft["job"], draft["first"]) == (True, "visit", 0)
        assert draft["question"] in ASKS
        assert draft["last"] < saw["submitted"]["visit"]["last"]


def test_a_canceled_job_stays_canceled(saw: dict[str, Any]) -> None:
    assert (saw["canceled"]["job"], saw["canceled"]["state"]) == ("tired", "canceled")
    assert saw["canceledAgain"] == saw["canceled"]
    assert [job["job"] for job in saw["running"]] == ["words", "watch", "tired"]
    assert {job["job"]: job["state"] for job in saw["jobs"]} == {
        "words": "done",
        "watch": "done",
        "tired": "canceled",
        "visit": "done",
    }


def test_one_request_asks_and_one_runs_a_capability(saw: dict[str, Any]) -> None:
    assert any(right in saw["answer"]["answer"] for right in accepted(ASKS[0]))
    (output,) = saw["outputs"]
    assert "08:10 LAKE" in [line["text"] for line in output["output"]["observations"]]
