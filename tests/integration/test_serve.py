"""The service as its users run it: real processes, real media, one command after another."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import disks
import httpx
import pytest
from clips import first_seconds

from streams.wire.store import status

SCENES = """
name = "scenes"
[stages.scenes]
capability = "detect_scenes"
inputs = { media = "media" }
"""
CLIP_S, SEGMENT_S = 6.0, 2.0
NUM_SEGMENTS = 3


class Penstock:
    """The command on one store."""

    def __init__(self, store: Path) -> None:
        self._env = {**os.environ, "PENSTOCK_STORE": str(store)}

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "penstock", *arguments]
        pipe = subprocess.PIPE
        return subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True, env=self._env)

    def __call__(self, *arguments: str, code: int = 0) -> tuple[list[Any], str]:
        """What a command says: its JSON lines, and what is for people, wherever it says that."""
        process = self.start(*arguments)
        out, err = process.communicate(timeout=90)
        assert process.returncode == code, err
        assert "Traceback" not in err
        is_json = "--json" in arguments or arguments[0] == "answers"
        return [json.loads(line) for line in out.splitlines()] if is_json else [], err if is_json else out + err


@contextmanager
def serving(store: Path, *arguments: str) -> Iterator[Penstock]:
    penstock = Penstock(store)
    node = penstock.start("serve", "--http", "127.0.0.1:0", *arguments)
    assert node.stderr is not None
    try:
        said = ""
        while "Ctrl-C" not in said:
            line = node.stderr.readline()
            assert line, said
            said += line
        yield penstock
    finally:
        node.send_signal(signal.SIGINT)
        _, err = node.communicate(timeout=20)
    assert node.returncode == 130
    assert "Traceback" not in err


def http_of(penstock: Penstock) -> str:
    (node,), _ = penstock("nodes", "--json")
    return str(node["http"])


def readiness(url: str) -> tuple[int, str]:
    response = httpx.get(f"{url}/readyz", timeout=30, trust_env=False)
    return response.status_code, response.json().get("detail", "") if response.status_code != 200 else ""


def test_a_node_outlives_its_keeper_and_its_server(tmp_path: Path, clip: str, scenes: str) -> None:
    store = tmp_path / "store"
    with serving(store) as penstock:
        penstock("push", clip, "--stream", "before", "--segment", "2s")
        for which in ("keeper_pid", "pid"):
            said = status(store)
            os.kill(said[which], signal.SIGKILL)
            while status(store).get("pid", said["pid"]) == said["pid"]:
                pass
            stream = f"after-{which}"
            penstock("push", clip, "--stream", stream, "--segment", "2s")
            for name in ("before", stream):
                (job,), _ = penstock("jobs", "submit", scenes, "--stream", name, "--json")
                assert [answer["gaps"] for answer in penstock("answers", "--job", job["job"])[0]] == [[]] * NUM_SEGMENTS


def test_a_node_whose_disk_is_full_says_so_and_goes_on_when_there_is_room(
    small_disk: Path, clip: str, scenes: str
) -> None:
    with serving(small_disk / "store") as penstock:
        url = http_of(penstock)
        while readiness(url)[0] != 200:
            pass
        penstock("push", clip, "--stream", "before", "--segment", "2s")
        filling = disks.fill(small_disk)
        while (said := readiness(url))[0] == 200:
            pass
        assert said[0] == 503
        assert f"the disk of {small_disk / 'store'} is full" in said[1]
        push = penstock.start("push", clip, "--stream", "during", "--segment", "2s")
        filling.unlink()
        while readiness(url)[0] != 200:
            pass
        _, err = push.communicate(timeout=60)
        assert push.returncode == 0, err
        for name in ("before", "during"):
            (job,), _ = penstock("jobs", "submit", scenes, "--stream", name, "--json")
            assert [answer["gaps"] for answer in penstock("answers", "--job", job["job"])[0]] == [[]] * NUM_SEGMENTS


@pytest.fixture(scope="module")
def penstock(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Penstock]:
    with serving(tmp_path_factory.mktemp("store")) as penstock:
        yield penstock


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(first_seconds(tmp_path_factory.mktemp("clip") / "clip.mp4", CLIP_S))


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("workflow") / "scenes.toml"
    path.write_text(SCENES)
    return str(path)


def test_a_file_is_pushed_asked_about_and_listed(penstock: Penstock, clip: str) -> None:
    pushed, _ = penstock("push", clip, "--stream", "file", "--segment", "2s", "--json")
    assert [line["segment"] for line in pushed[:-1]] == list(range(NUM_SEGMENTS))
    assert pushed[-1] == {"stream": "file", "num_segments": NUM_SEGMENTS, "ended": True}
    (answer,), _ = penstock("ask", "--stream", "file", "What is the weather like?", "--json")
    assert answer["question"] == "What is the weather like?"
    assert answer["gaps"] == []
    (again,), _ = penstock("ask", "--stream", "file", "What is the weather like?", "--json")
    assert {**again, "job": "", "latency_s": 0} == {**answer, "job": "", "latency_s": 0}
    (view,) = [view for view in penstock("streams", "--json")[0] if view["stream"] == "file"]  # other tests have theirs
    assert (view["stream"], view["policy"], view["state"], view["num_segments"]) == (
        "file",
        "durable",
        "ended",
        NUM_SEGMENTS,
    )
    while {job["state"] for job in penstock("jobs", "list", "--stream", "file", "--json")[0]} != {"done"}:
        pass  # a job is done a moment after its answer is there
    _, shown = penstock("jobs", "show", answer["job"])
    assert "What is the weather like?" in shown
    _, table = penstock("streams")
    assert "file" in table
    (node,), _ = penstock("nodes", "--json")
    assert node["num_workers"] == 1
    assert penstock("push", clip, "--stream", "file", code=2)[1].count("\n") == 1


def test_a_standing_job_on_a_stream_that_plays(penstock: Penstock, clip: str, scenes: str) -> None:
    push = penstock.start("push", clip, "--stream", "played", "--live", "--segment", "2s")
    while not any(view["stream"] == "played" for view in penstock("streams", "--json")[0]):
        pass
    (first,), _ = penstock("jobs", "submit", scenes, "--stream", "played", "--standing", "--from", "0:00", "--json")
    (second,), _ = penstock("jobs", "submit", scenes, "--stream", "played", "--standing", "--from", "0:00", "--json")
    assert (first["shared"], first["new"]) == ([], ["scenes"])
    assert (second["shared"], second["new"]) == (["scenes"], [])
    answers, _ = penstock("answers", "--job", first["job"])
    assert [answer["last"] for answer in answers] == list(range(NUM_SEGMENTS))
    assert all(answer["output"]["observations"] for answer in answers)
    assert push.communicate(timeout=30)
    assert push.returncode == 0
    (canceled,), _ = penstock("jobs", "cancel", second["job"], "--json")
    assert canceled["state"] in ("done", "canceled")


def test_a_range_before_now(penstock: Penstock, clip: str, scenes: str) -> None:
    penstock("push", clip, "--stream", "past", "--segment", "2s")
    (job,), _ = penstock("jobs", "submit", scenes, "--stream", "past", "--from", "-10m", "--to", "0:03", "--json")
    assert (job["first"], job["last"]) == (0, 1)
    answers, _ = penstock("answers", "--job", job["job"])
    assert [answer["first"] for answer in answers] == [0, 1]
    views, _ = penstock("streams", "--forget", "past", "--json")
    assert "past" not in {view["stream"] for view in views}
    penstock("streams", "--forget", "past", code=2)


def test_standard_input_and_a_folder(penstock: Penstock, clip: str, tmp_path: Path) -> None:
    for name in ("a.mp4", "b.mp4"):
        (tmp_path / name).write_bytes(Path(clip).read_bytes())
    pushed, _ = penstock("push", str(tmp_path), "--stream", "folder", "--segment", "2s", "--json", "--as-one")
    assert pushed[-1]["num_segments"] == 2 * NUM_SEGMENTS
    pushed, _ = penstock("push", str(tmp_path), "--stream", "each", "--segment", "2s", "--json")
    ended = {line["stream"]: line["num_segments"] for line in pushed if line.get("ended")}
    assert ended == {"each-a": NUM_SEGMENTS, "each-b": NUM_SEGMENTS}
    _, said = penstock("push", "-", "--stream", "nothing", code=2)
    assert "standard input" in said
    assert "nothing" not in {view["stream"] for view in penstock("streams", "--json")[0]}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["ask", "--stream", "nowhere", "what?"], "no stream 'nowhere'"),
        (["push", "/no/such/file.mp4", "--stream", "s"], "/no/such/file.mp4"),
        (["push", "gopher://x/y", "--stream", "s"], "gopher is not a kind of source"),
        (["push", "/tmp", "--stream", "a b"], "cannot be part of a subject"),
        (["jobs", "show", "j0"], "no job 'j0'"),
        (["jobs", "cancel", "j0"], "no job 'j0'"),
        (["answers", "--job", "j0"], "no job 'j0'"),
        (["push", "x", "--stream", "s", "--live", "--durable"], "not allowed with"),
        (["serve", "--config", "/no/such.toml"], "cannot read /no/such.toml"),
    ],
)
def test_a_mistake_is_one_line_and_exit_2(penstock: Penstock, arguments: list[str], said: str) -> None:
    _, err = penstock(*arguments, code=2)
    (line,) = err.splitlines()
    assert line.startswith("penstock: ")
    assert said in line


def test_a_job_that_asks_nothing_is_refused(penstock: Penstock, clip: str) -> None:
    penstock("push", clip, "--stream", "unasked", "--detach")
    _, err = penstock("jobs", "submit", "--stream", "unasked", code=2)
    assert "ask at least one" in err


def test_without_a_node_it_says_what_to_start(tmp_path: Path) -> None:
    _, err = Penstock(tmp_path)("streams", code=4)
    (line,) = err.splitlines()
    assert "penstock serve" in line


def test_a_configuration_brings_streams_and_jobs(tmp_path: Path, clip: str) -> None:
    config = tmp_path / "penstock.toml"
    (tmp_path / "scenes.toml").write_text(SCENES)
    config.write_text(
        f"""
[streams.configured]
url = "{clip}"
policy = "durable"
segment_s = 2

[jobs.watch]
stream = "configured"
workflow = "scenes.toml"
"""
    )
    for _ in range(2):  # the second time, all is there already
        with serving(tmp_path / "store", "--config", str(config)) as penstock:
            answers, _ = penstock("answers", "--job", "watch")
            assert [answer["last"] for answer in answers] == list(range(NUM_SEGMENTS))


def test_a_configuration_with_a_mistake(tmp_path: Path) -> None:
    config = tmp_path / "penstock.toml"
    config.write_text("[streams.cam]\nurls = 'rtsp://x/y'\n")
    _, err = Penstock(tmp_path / "store")("serve", "--config", str(config), code=2)
    (line,) = err.splitlines()
    assert "streams" in line
    assert "the keys there are policy, segment_s, max_lag_s, gop_s, url" in line
