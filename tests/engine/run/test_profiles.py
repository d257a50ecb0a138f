"""The folder of profiles: what is kept, found again, passed over, and what pools begin with."""

import os
from pathlib import Path

import msgspec
import pytest

from engine.decide.decisions import Decision
from engine.decide.learned import Learned
from engine.run.expecting import MIN_BATCHES, Expectation
from engine.run.profiles import MAX_CLIPS, Profiles, machine_name
from engine.spec.profile import BatchTimes, Expected, Measured, OnRung, Profile, Seen
from streams.errors import UserError

ON = OnRung("look", "eyes", "wide", 1, {"size": 3}, "cpu")


def profile(
    media: str = "a clip", at: str = "2026-01-01", took_s: float = 0.2, on: OnRung = ON, machine: str = "here"
) -> Profile:
    times = (BatchTimes.of(1, 1, [took_s]), BatchTimes.of(4, 1, [2 * took_s]))
    return Profile(**on._asdict(), machine=machine, media=media, segment_s=2.0, at=at, max_batch=4, times=times)


@pytest.fixture
def kept(tmp_path: Path) -> Profiles:
    return Profiles(tmp_path / "profiles", "here")


def test_what_is_kept_is_found_the_newest_first(kept: Profiles) -> None:
    assert kept.of(ON) is None
    assert kept.all() == []
    for media, at in (("old", "2026-01-01"), ("new", "2026-01-02")):
        kept.keep(profile(media, at))
    assert [each.media for each in kept.all()] == ["new", "old"]
    assert kept.of(ON) == profile("new", "2026-01-02")
    assert kept.of(ON, "old", 2.0) == profile("old")
    assert kept.of(ON, "old", 5.0) is None
    kept.keep(profile("old", "2026-01-03", took_s=0.5))  # of the same clip: in its place
    assert len(kept.all()) == 2


@pytest.mark.parametrize(
    "other",
    [{"version": 2}, {"knobs": {"size": 4}}, {"device": "cuda"}, {"implementation": "ears"}, {"rung": "narrow"}],
    ids=str,
)
def test_another_rung_is_another_one(kept: Profiles, other: dict[str, object]) -> None:
    kept.keep(profile())
    assert kept.of(ON._replace(**other)) is None  # type: ignore[arg-type]


def test_another_machine_s_and_what_cannot_be_read_are_passed_over(kept: Profiles, tmp_path: Path) -> None:
    kept.keep(profile())
    (path,) = (tmp_path / "profiles").glob("*/*/*.json")
    for number, text in enumerate(("", "{", "[]", '{"capability": 1}', "\0" * 100)):
        path.with_name(f"profile-{number}.json").write_text(text)
    path.with_name("profile-bytes.json").write_bytes(b"\xff\xfe")
    assert kept.all() == [profile()]
    assert Profiles(kept.folder, "elsewhere").of(ON) is None


def test_of_a_rung_only_so_many_clips_stay(kept: Profiles) -> None:
    for number in range(MAX_CLIPS + 3):
        kept.keep(profile(f"clip {number}"))
    kept.keep(profile(on=ON._replace(rung="wide-2")))  # whose name begins alike
    assert len([each for each in kept.all() if each.rung == "wide"]) == MAX_CLIPS


def test_names_of_any_kind_are_files_inside_the_folder(kept: Profiles) -> None:
    odd = ON._replace(capability="../../up", rung="a/b c\0d" * 40)
    kept.keep(profile(on=odd))
    assert kept.of(odd) is not None
    assert all(kept.folder in path.parents for path in kept.folder.rglob("*.json"))


def test_where_nothing_can_be_written_it_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot keep profiles in .*; give --store DIR"):
        Profiles(tmp_path / "file", "here").keep(profile())


def test_a_machine_has_a_name() -> None:
    assert machine_name(1).endswith(", 1 core, x86_64") or ", 1 core, " in machine_name(1)
    assert ", 12 cores, " in machine_name(12)


# --- what pools begin with ---------------------------------------------------------------------------------------


def nobody(decision: Decision) -> None:
    """Who is told."""


def test_a_pool_begins_with_the_profile_and_then_with_what_was_seen(kept: Profiles) -> None:
    assert kept.expected(ON) is None
    kept.keep(msgspec.structs.replace(profile(), fresh=0.5))
    shared = kept.expected(ON)
    assert shared is not None
    base_s, per_item_s = profile().line
    assert (shared.base_s, shared.per_item_s) == pytest.approx((base_s, per_item_s / 2))
    assert shared.profiled is None  # some take all of it and others nothing
    kept.keep(profile())
    first = kept.expected(ON)
    assert first is not None
    learned, decided = Learned(4), list[Decision]()
    expectation = Expectation("a pool", ON, first, decided.append)
    expectation.tell(learned)
    assert learned.usual_s == pytest.approx(base_s + per_item_s)
    for size in [1, 2, 3, 4] * 20:
        expectation.note(size, 3.0 + size)
        learned.took(size, 3.0 + size)
    (drifted,) = decided
    assert (drifted.loop, drifted.pool) == ("profile", "a pool")
    assert "times what was measured" in drifted.what
    seen = expectation.seen(learned, "here")
    assert seen is not None
    assert seen.drift is not None
    assert seen.drift > 5
    kept.keep_seen(seen)
    again = kept.expected(ON)
    assert again is not None
    assert again.base_s + 4 * again.per_item_s == pytest.approx(7.0, rel=0.05)
    assert again.profiled == first.profiled
    assert kept.all() == [profile()]  # what was seen is no profile


def test_what_was_learned_is_told_when_there_is_something_new() -> None:
    learned, expectation = Learned(4), Expectation("a pool", ON, None, nobody)
    assert expectation.drift is None
    for number in range(MIN_BATCHES):
        assert expectation.seen(learned, "here") is None
        expectation.note(1 + number % 2, 0.1)
        learned.took(1 + number % 2, 0.1)
    assert expectation.seen(learned, "here") is not None
    assert expectation.seen(learned, "here") is None


def test_of_batches_of_one_size_nothing_is_kept_for_nothing_is_known_of_others() -> None:
    """The next one would take a full batch for so many times as long."""
    learned, expectation = Learned(16), Expectation("a pool", ON, None, nobody)
    learned.expect(0.05, 0.002, 0.0)
    for _ in range(500):
        expectation.note(1, 0.052)
        learned.took(1, 0.052)
    assert expectation.seen(learned, "here") is None
    alone, one = Learned(1), Expectation("a pool", ON, None, nobody)
    for _ in range(MIN_BATCHES):
        one.note(1, 0.052)
        alone.took(1, 0.052)
    seen = one.seen(alone, "here")
    assert seen is not None
    assert seen.base_s + seen.per_item_s == pytest.approx(0.052)


def test_what_is_newer_counts_what_was_measured_or_what_was_seen(kept: Profiles) -> None:
    kept.keep(profile(at="2026-02-01"))
    on = {**ON._asdict(), "machine": "here", "per_item_s": 9.0, "num_batches": 30}
    for at, per_item_s in (("2026-01-01", profile().line[1]), ("2026-03-01", 9.0)):
        kept.keep_seen(Seen(**on, at=at))
        expected = kept.expected(ON)
        assert expected is not None
        assert expected.per_item_s == pytest.approx(per_item_s)


@pytest.mark.parametrize(
    "wrong",
    [
        '"mean_s":0.2 -> "mean_s":1e308',
        '"mean_s":0.2 -> "mean_s":-1',
        '"batch_size":1 -> "batch_size":0',
        '"max_batch":4 -> "max_batch":0',
        '"fresh":1.0 -> "fresh":-1',
        '"num_beside":1 -> "num_beside":0',
    ],
)
def test_figures_that_cannot_be_are_passed_over(kept: Profiles, wrong: str) -> None:
    kept.keep(profile())
    (path,) = kept.folder.glob("*/*/*.json")
    before, _, after = wrong.partition(" -> ")
    text = msgspec.json.encode(msgspec.json.decode(path.read_bytes())).decode()
    assert before in text
    path.write_text(text.replace(before, after))
    assert kept.all() == []
    assert kept.expected(ON) is None


def test_what_takes_no_time_at_all_is_no_reason_to_fail(kept: Profiles) -> None:
    kept.keep(profile(took_s=1e-200))
    assert kept.expected(ON) is not None


def test_a_pipe_in_the_place_of_a_file_keeps_nobody_waiting(kept: Profiles) -> None:
    kept.keep(profile())
    (path,) = kept.folder.glob("*/*/*.json")
    os.mkfifo(path.with_name("profile-pipe.json"))
    assert kept.all() == [profile()]


def test_a_pool_of_which_nothing_is_expected_knows_nothing() -> None:
    learned = Learned(4)
    Expectation("a pool", None, None, nobody).tell(learned)
    assert learned.usual_s is None
    Expectation("a pool", ON, Expected(0.0, 0.0, 0.0), nobody).tell(learned)
    assert learned.usual_s is None


def judged(rung: str, value: float, labels: str = "a set", at: str = "2026-01-01") -> Profile:
    quality = Measured(metric="word accuracy", value=value, low=value, high=value, num=9, labels=labels)
    return msgspec.structs.replace(profile(labels, at, on=ON._replace(rung=rung)), quality=quality)


def test_rungs_are_judged_on_the_set_on_which_most_of_them_were(kept: Profiles) -> None:
    assert kept.judged() == {}
    kept.keep(profile())
    for each in (judged("wide", 0.9), judged("narrow", 0.6), judged("wide", 0.5, "another set", "2026-01-02")):
        kept.keep(each)
    assert kept.judged() == {("look", "wide"): 0.9, ("look", "narrow"): 0.6}
    kept.keep(judged("narrow", 0.4, "another set", "2026-01-03"))
    assert kept.judged() == {("look", "wide"): 0.5, ("look", "narrow"): 0.4}, "of equals the last"
