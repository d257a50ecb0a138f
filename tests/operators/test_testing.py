"""The harness gives what the engine gives; the check of the contract finds each breach and says it in one line."""

import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import msgspec
import numpy as np
import pytest
import toys
from toys import Number, toy_segment

from penstock.operators import (
    AudioSpec,
    Capability,
    Emit,
    Fold,
    FrameSpec,
    Gap,
    Inputs,
    Machine,
    Map,
    Media,
    MediaInfo,
    Observation,
    Operator,
    Permanent,
    Port,
    Record,
    Rung,
    Scope,
    Settings,
    Transient,
    Window,
    audio,
    frames,
)
from penstock.testing import ContractError, check_contract, film, gap, inputs_of, loaded, run, segments_of
from streams.errors import UserError

STATION = Path(__file__).parents[2] / "examples" / "station.mp4"
VALUES = [10, 20, 30, 40, 50]


def numbers(*values: int | str) -> list[Any]:
    """Outputs of a stage: a number, or a gap for a word."""
    return [gap(value) if isinstance(value, str) else Number(value=value) for value in values]


def media(*values: int | str) -> list[Any]:
    return [gap(v) if isinstance(v, str) else toy_segment("toy", index, v) for index, v in enumerate(values)]


def seen(outputs: Sequence[Any]) -> list[Any]:
    """Of each output its value and what it was made from; of a gap why."""
    return [o.detail if isinstance(o, Gap) else (o.value, o.seen) for o in outputs]


# --- the harness -----------------------------------------------------------------------------------------


def test_every_scope_reads_what_the_engine_would_give_it() -> None:
    assert seen(run(toys.Read, {"media": media(1, 2)})) == [(1, (0,)), (2, (1,))]
    assert seen(run(toys.Near, {"media": media(1, 2, 3)})) == [(3, (0, 1)), (6, (0, 1, 2)), (5, (1, 2))]
    assert seen(run(toys.Count, {"numbers": numbers(1, 2, 3)})) == [(1, (0,)), (3, (1,)), (6, (2,))]
    assert seen(run(toys.Recent, {"numbers": numbers(1, 2, 3, 4)})) == [
        (1, (0,)), (3, (0, 1)), (6, (0, 1, 2)), (9, (1, 2, 3)),
    ]  # fmt: skip
    assert seen(run(toys.Total, {"numbers": numbers(1, 2, 3)})) == [(6, (0, 1, 2))]
    assert seen(run(toys.Sum, {"numbers": [numbers(1, 2), numbers(10, 20)]})) == [(11, (0, 0)), (22, (1, 1))]


def test_a_gap_is_answered_with_a_gap_and_seen_by_its_neighbours() -> None:
    assert seen(run(toys.Read, {"media": media(1, "late", 3)})) == [(1, (0,)), "media: late", (3, (2,))]
    assert seen(run(toys.Near, {"media": media(1, "late", 3)})) == [(1, (0,)), "media: late", (3, (2,))]
    assert seen(run(toys.Count, {"numbers": numbers(1, "late", 3)})) == [(1, (0,)), "numbers: late", (3, (2,))]
    assert seen(run(toys.Recent, {"numbers": numbers(1, "late", 3)}))[2] == (4, (0, 2))
    assert seen(run(toys.Total, {"numbers": [numbers("late", "lost"), numbers(5, "off")]})) == [(5, (0,))]
    assert seen(run(toys.Sum, {"numbers": [numbers(1, "late"), numbers(5, 6)]}))[1] == "numbers: late"
    (lost,) = run(toys.Read, {"media": [gap("off", "source_lost")]})
    assert (lost.first, lost.last, lost.cause) == (0, 0, "upstream")


def test_params_and_knobs_are_given_as_plain_values() -> None:
    assert seen(run(toys.Add, {"numbers": numbers(1)}, params={"add": 5})) == [(6, (0,))]
    assert seen(run(toys.Add, {"numbers": numbers(1)}, params=toys.Added(add=5))) == [(6, (0,))]
    with pytest.raises(UserError, match=r"params of 'toy_add': .*unknown field `sub`; there are: add"):
        run(toys.Add, {"numbers": numbers(1)}, params={"sub": 5})
    with pytest.raises(UserError, match=r"knobs of toys:Add: .*there are: none"):
        run(toys.Add, {"numbers": numbers(1)}, knobs={"size": 5})
    with pytest.raises(UserError, match="toys:Add is an instance"):
        run(loaded(toys.Add), {"numbers": numbers(1)}, knobs={})


@pytest.mark.parametrize(
    ("inputs", "said"),
    [
        ({}, "no values for port 'numbers' of 'toy_sum'; its ports are numbers"),
        ({"number": []}, "'toy_sum' has no port 'number'; its ports are numbers"),
        ({"numbers": Number(value=1)}, "port 'numbers' is given one Number; give a list, one value for each segment"),
        ({"numbers": [1]}, r"numbers\[0\] is int; give Number or gap\('why'\)"),
        ({"numbers": [None]}, r"numbers\[0\] is NoneType; give Number or gap"),
        ({"numbers": [[Number(value=1)], []]}, r"a value for each segment .*: numbers\[0\] has 1, numbers\[1\] has 0"),
        ({"numbers": []}, "there are none"),
    ],
)
def test_inputs_that_do_not_fit_are_refused(inputs: Mapping[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        run(toys.Sum, inputs)


def test_what_an_operator_raises_is_raised() -> None:
    with pytest.raises(Permanent, match="unlucky number"):
        run(toys.Bad, {"media": media(1, 13)})


def test_a_batch_is_as_large_as_the_operator_takes() -> None:
    sizes: list[int] = []

    class Counting(toys.Add):
        max_batch = 2

        def process(self, batch: Sequence[Inputs]) -> Sequence[msgspec.Struct]:
            sizes.append(len(batch))
            return super().process(batch)

    assert len(run(Counting, {"numbers": numbers(*VALUES)})) == 5
    assert sizes == [2, 2, 1]


def test_an_operator_that_batches_by_itself_is_asked_one_by_one() -> None:
    class Streaming(toys.Add):
        runs_in: ClassVar[Any] = "async"

        async def process_one(self, inputs: Inputs, emit: Emit) -> Number:
            emit("as it comes")
            return self.one(inputs)

        def process(self, batch: Sequence[Inputs]) -> Sequence[msgspec.Struct]:
            raise AssertionError

    assert seen(run(Streaming, {"numbers": numbers(1, 2)})) == [(1, (0,)), (2, (1,))]
    check_contract(Streaming, {"numbers": numbers(1, 2)})


class Mean(Record, frozen=True):
    mean: float


def test_a_whole_number_where_a_float_is_declared_is_read_as_one() -> None:
    class Averages(toys.Add):
        capability = Capability("toy_mean", {"numbers": Port(Number)}, Mean)

        def one(self, item: Inputs) -> Any:
            return Mean(mean=2)

    (mean,) = run(Averages, {"numbers": numbers(1)})
    assert isinstance(mean.mean, float)


# --- media -----------------------------------------------------------------------------------------------


def test_a_file_is_cut_by_the_segmenter() -> None:
    first, second = segments_of(STATION, segment_s=2.0, max_segments=2)
    assert (first.index, second.index, second.start_ns) == (0, 1, first.duration_ns)
    assert [track.kind for track in first.tracks][:2] == ["video", "audio"]
    with pytest.raises(UserError):
        segments_of("no-such-file.mp4")


def test_a_film_holds_exactly_what_it_was_made_from() -> None:
    rng = np.random.default_rng(1)
    pictures = rng.integers(0, 256, (12, 6, 7, 3), dtype=np.uint8)
    sound = rng.integers(-9000, 9000, 21_000, dtype=np.int16)
    made = film(pictures, sound, frames_per_s=10, segment_s=0.5)
    assert [each.duration_ns for each in made] == [500_000_000, 500_000_000, 312_500_000]
    assert all(each.start_ns == index * 500_000_000 for index, each in enumerate(made))
    shown = np.concatenate([frames(Media(each), FrameSpec()).images for each in made])
    heard = np.concatenate([audio(Media(each), AudioSpec()).samples for each in made])
    assert np.array_equal(shown, pictures)
    assert np.array_equal(heard, sound)
    whole = audio(Media(film(sound=sound, segment_s=9)[0]), AudioSpec(8000)).samples
    parts = np.concatenate([audio(Media(each), AudioSpec(8000)).samples for each in made])
    assert np.array_equal(whole, parts)  # no seam where it is resampled


def test_a_film_of_nothing_is_refused() -> None:
    for given, said in [
        ({}, "nothing to cut"),
        ({"sound": np.zeros(9)}, r"sound is float64 \[9\]; give int16 \[N\], mono"),
        ({"pictures": np.zeros((2, 3, 3), np.uint8)}, r"pictures are uint8 \[2, 3, 3\]; give uint8 \[N, H, W, 3\]"),
    ]:
        with pytest.raises(UserError, match=said):
            film(**given)  # type: ignore[arg-type]


def test_segments_are_numbered_as_they_stand() -> None:
    (only,) = run(toys.Read, {"media": [toy_segment("toy", 7, 3)]})
    assert only == Number(value=3, seen=(0,))
    (inputs,) = inputs_of(toys.Read, {"media": [toy_segment("toy", 7, 3)]})
    assert isinstance(inputs, Inputs)
    assert (inputs.stream, inputs.last, inputs.here("media").segment.index) == ("toy", 0, 0)


def test_the_import_for_authors_loads_no_decoder() -> None:
    script = "import sys, penstock.operators, penstock.testing; sys.exit('numpy' in sys.modules or 'av' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0


# --- the contract ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("operator", [toys.Read, toys.Near])
def test_toys_on_media_hold_to_the_contract(operator: type[Operator]) -> None:
    class Careful(operator):  # type: ignore[valid-type,misc]
        def process(self, batch: Sequence[Inputs]) -> Sequence[msgspec.Struct]:
            try:
                return super().process(batch)  # type: ignore[no-any-return]
            except (ValueError, IndexError) as error:
                raise Permanent("no number in it") from error

    check_contract(Careful, {"media": media(1, 2, "late", 4)})


@pytest.mark.parametrize("operator", [toys.Add, toys.Sum, toys.Count, toys.Recent, toys.Total])
def test_toys_on_numbers_hold_to_the_contract(operator: type[Operator]) -> None:
    check_contract(operator, {"numbers": numbers(1, 2, "late", 4)})


class Good(toys.Add):
    """What each breach is made from."""

    name = "good"
    capability = Capability("toy_good", {"numbers": Port(Number)}, Number, toys.Added)


class Remembers(Good):
    num_seen = 0

    def one(self, item: Inputs) -> Number:
        self.num_seen += 1
        return Number(value=self.num_seen)


class DependsOnTheInstance(Good):
    num_made: ClassVar[int] = 0

    def load(self, device: Any) -> None:
        DependsOnTheInstance.num_made += 1
        self.number = DependsOnTheInstance.num_made

    def one(self, item: Inputs) -> Number:
        return Number(value=self.number)


class DependsOnTheBatch(Good):
    def process(self, batch: Sequence[Inputs]) -> Sequence[msgspec.Struct]:
        return [Number(value=sum(self.one(item).value for item in batch) - 2 * len(batch))] * len(batch)


class Halves(Good):
    def process(self, batch: Sequence[Inputs]) -> Sequence[msgspec.Struct]:
        return super().process(batch)[:-1]


class ReturnsNothing(Good):
    def process(self, batch: Sequence[Inputs]) -> Sequence[msgspec.Struct]:
        return None  # type: ignore[return-value]


class ReturnsAnother(Good):
    def one(self, item: Inputs) -> Number:
        return Observation(start_ns=0, end_ns=1)  # type: ignore[return-value]


class ReturnsNumPy(Good):
    def one(self, item: Inputs) -> Number:
        return Number(value=np.int64(3))  # type: ignore[arg-type]


class ReturnsText(Good):
    def one(self, item: Inputs) -> Number:
        return Number(value="three")  # type: ignore[arg-type]


class MoreThanNumber(Number, frozen=True):
    more: int = 0


class ReturnsMore(Good):
    def one(self, item: Inputs) -> Number:
        return MoreThanNumber(value=1, more=2)


class Held(Record, frozen=True):
    one: Number


class ReturnsMoreInside(Good):
    capability = Capability("toy_held", {"numbers": Port(Number)}, Held)

    def one(self, item: Inputs) -> Any:
        return Held(one=MoreThanNumber(value=1, more=2))


class NeedsNeighbours(Good):
    scope: ClassVar[Scope] = Map(1, 0)

    def one(self, item: Inputs) -> Number:
        return Number(value=item.around("numbers")[0].value.value)


class NeedsThePrevious(Good):
    scope: ClassVar[Scope] = Fold()

    def one(self, item: Inputs) -> Number:
        return Number(value=item.last if item.last == 0 else item.previous.value + 1)


class Raises(Good):
    def one(self, item: Inputs) -> Number:
        raise Transient("not in the mood")


class Breaks(Good):
    def one(self, item: Inputs) -> Number:
        return {}["what is missing"]  # type: ignore[no-any-return]


class OnlyOnce(Good):
    def process(self, batch: Sequence[Inputs]) -> Sequence[msgspec.Struct]:
        if len(batch) == 1:
            raise RuntimeError("once is enough")
        return super().process(batch)


class CannotLoad(Good):
    def load(self, device: Any) -> None:
        raise FileNotFoundError("no weights")


class BreaksAtRungs(Good):
    @classmethod
    def rungs(cls) -> Sequence[Rung]:
        raise RuntimeError("never\nagain")


class NoName(Good):
    name = ""


class BadVersion(Good):
    version = 0


class BadScope(Good):
    scope: ClassVar[Scope] = Map(-1)


class Abstract(Operator):
    capability = Good.capability
    name = "abstract"

    @classmethod
    def rungs(cls) -> Sequence[Rung]:
        return ()


class Strict(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    value: int


class RefusesLaterVersions(Good):
    capability = Capability("toy_strict", {"numbers": Port(Number)}, Strict)


class BadSubject(Good):
    capability = Capability("toy strict", {"numbers": Port(Number)}, Number)


def rungs_of(*rungs: Rung) -> type[Operator]:
    class WithRungs(Good):
        @classmethod
        def rungs(cls) -> Sequence[Rung]:
            return rungs

    return WithRungs


class OtherKnobs(Settings, frozen=True):
    size: int = 1


class LossyKnobs(Settings, frozen=True):
    size: int = 1


class Lossy(Good):
    Knobs = LossyKnobs

    @classmethod
    def rungs(cls) -> Sequence[Rung]:
        return [Rung("lossy", 0.5, LossyKnobs(size="1"))]  # type: ignore[arg-type]


class OtherScope(Good):
    @classmethod
    def scope_of(cls, knobs: Any, segment_s: float) -> Scope:
        return Window(3) if segment_s > 10 else cls.scope


def test_a_scope_is_of_the_kind_that_is_declared() -> None:
    with pytest.raises(
        ContractError, match=r"scope_of\(\) returned Window\(size=3\); return a Map, as the class declares"
    ):
        check_contract(OtherScope, {"numbers": numbers(1, 2, 3)})


def asked(answer: Callable[[], Any]) -> type[Operator]:
    class Asked(Good):
        @classmethod
        def missing(cls, knobs: Any, machine: Machine, media: MediaInfo | None) -> str | None:
            return answer() if media is not None else None  # type: ignore[no-any-return]

    return Asked


class Unhashable(Good):
    def demands(self) -> Any:
        return ([],)


class Listed(Good):
    @classmethod
    def shared_work(cls, knobs: Settings, inputs: Inputs) -> Any:
        return [["cell", 7]]


def in_a_process() -> type[Operator]:
    class Hidden(Good):
        runs_in = "process"

    return Hidden


class Unpicklable(Record, frozen=True):
    value: int = 0

    def __reduce__(self) -> Any:
        raise TypeError("no way")


class ReturnsUnpicklable(Good):
    capability = Capability("toy_unpicklable", {"numbers": Port(Number)}, Unpicklable)
    runs_in = "process"

    def one(self, item: Inputs) -> Any:
        return Unpicklable()


BREACHES: dict[str, tuple[type[Operator], str]] = {
    "state": (Remembers, r"Remembers, segment 0: asked again in another order it gave .*; the same inputs and knobs"),
    "instance": (DependsOnTheInstance, "segment 0: asked of another instance"),
    "batch": (DependsOnTheBatch, "segment 0: asked in a batch it gave .*"),
    "half": (Halves, "segments 0 to 2: process returned 2 outputs for 3 inputs; return a list with one output"),
    "nothing": (ReturnsNothing, "process returned NoneType for 3 inputs"),
    "type": (ReturnsAnother, "the output is Observation; return Number itself"),
    "numpy": (ReturnsNumPy, r"cannot be encoded .*; use Python's own types, such as float\(x\)"),
    "field": (ReturnsText, "cannot be read back as Number .*Expected `int`, got `str`"),
    "subclass": (ReturnsMore, "the output is MoreThanNumber; return Number itself"),
    "subclass inside": (ReturnsMoreInside, "the output is read back as Held.* not Held.*; give its fields the types"),
    "neighbours": (NeedsNeighbours, "segment 1, where what may be missing is missing: process raised AttributeError"),
    "previous": (NeedsThePrevious, "segment 1, where what may be missing is missing: process raised AttributeError"),
    "raises": (Raises, "process raised Transient .not in the mood.; check it where it can work, on inputs"),
    "breaks": (Breaks, "Breaks: process raised KeyError .'what is missing'.; compute what there is, or raise"),
    "once": (OnlyOnce, "OnlyOnce: process, asked again, raised RuntimeError .once is enough.; compute what there is"),
    "load": (CannotLoad, "CannotLoad: load raised FileNotFoundError .no weights.; compute what there is, or raise"),
    "rungs raises": (BreaksAtRungs, r"rungs\(\) raised RuntimeError .never again.;"),
    "no name": (NoName, "name is ''; give it a name"),
    "version": (BadVersion, "version is 0; give a whole number from 1"),
    "scope": (BadScope, r"scope is Map\(before=-1, after=0\); give Map\(\)"),
    "abstract": (Abstract, "Abstract: does not define process; define it"),
    "strict": (RefusesLaterVersions, "output refuses unknown fields, so no later version can be read"),
    "subject": (BadSubject, "capability 'toy strict': its name cannot be part of a subject"),
    "no rungs": (rungs_of(), r"rungs\(\): there are none; return at least one Rung"),
    "quality": (rungs_of(Rung("a", 1.2, Settings())), r"rungs\(\), 'a': quality is 1.2; give a number from 0 to 1"),
    "twice": (rungs_of(Rung("a", 0.2, Settings()), Rung("a", 0.1, Settings())), "two are called 'a'"),
    "order": (rungs_of(Rung("a", 0.2, Settings()), Rung("b", 0.3, Settings())), "not in order of quality"),
    "no rung": (rungs_of("best"), "'best' is no Rung"),  # type: ignore[arg-type]
    "lossy knobs": (Lossy, "'lossy': knobs cannot be written to a plan and read back .*Expected `int`, got `str`"),
    "two lines": (asked(lambda: "no\nway"), r"missing\(\): returned 'no\\nway'; return one line"),
    "yes": (asked(lambda: True), r"missing\(\): returned True"),
    "missing raises": (asked(lambda: {}["no"]), r"missing\(\): raised KeyError .'no'.; return one line"),
    "demands": (Unhashable, r"demands\(\): unhashable type: 'list'; return a tuple of specs"),
    "shared": (Listed, r"shared_work\(\): unhashable type: 'list'; return a frozenset of names"),
    "hidden": (in_a_process(), 'Hidden: it runs in a "process", which cannot import it; define it in a module'),
    "pickle": (ReturnsUnpicklable, r"segment 0: the output cannot be pickled \(no way\)"),
}  # fmt: skip


@pytest.mark.parametrize("breach", BREACHES)
def test_a_breach_of_the_contract_is_one_line(breach: str) -> None:
    operator, said = BREACHES[breach]
    with pytest.raises(ContractError, match=said) as caught:
        check_contract(operator, {"numbers": numbers(1, 2, 3)})
    assert len(str(caught.value).splitlines()) == 1


def test_missing_that_never_answers_is_left_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("operators.testing.declared.MAX_MISSING_S", 0.05)
    never = threading.Event()
    with pytest.raises(ContractError, match=r"missing\(\): has not answered after .*; answer within 0.05 s"):
        check_contract(asked(never.wait), {"numbers": numbers(1)})
    never.set()


def test_who_writes_to_what_all_share_is_caught() -> None:
    class Level(Record, frozen=True):
        peak: int

    class Rectifies(Operator):
        capability = Capability("toy_peak", {"media": Port(Media)}, Level)
        name = "rectifies"

        @classmethod
        def rungs(cls) -> Sequence[Rung]:
            return [Rung("rectifies", 0.5, Settings())]

        def demands(self) -> tuple[AudioSpec, ...]:
            return (AudioSpec(),)

        def process(self, batch: Sequence[Inputs]) -> Sequence[Level]:
            samples = audio(batch[0].here("media"), AudioSpec()).samples
            samples //= 2
            return [Level(peak=int(samples.max()))]

    sound = np.arange(16_000, dtype=np.int16)
    with pytest.raises(ContractError, match=r"process raised ValueError \(output array is read-only\)"):
        check_contract(Rectifies, {"media": film(sound=sound)})


def test_damage_that_is_not_said_as_such_is_a_breach() -> None:
    with pytest.raises(ContractError, match=r"segment 0, where the segment has no packets: process raised IndexError"):
        check_contract(toys.Read, {"media": media(1, 2)})


def test_nothing_to_check_with_is_the_tests_fault() -> None:
    with pytest.raises(UserError, match="every output is a gap"):
        check_contract(toys.Read, {"media": media("late")})
