"""What is found in sound, and what is said: the types that flow between the capabilities that hear and speak."""

from typing import ClassVar

import msgspec

from streams.records import Evidence, Observation, Record


class Word(msgspec.Struct, frozen=True, array_like=True):
    start_ns: int
    end_ns: int
    text: str


class Speech(Observation, frozen=True):
    """One utterance: `text` as a reader expects it, with the time of each word where it is known."""

    words: tuple[Word, ...] = ()


class Transcript(Evidence, frozen=True):
    kind: ClassVar[str] = "speech"
    observations: tuple[Speech, ...] = ()


class Captions(Evidence, frozen=True):
    """What was said, in cues that can be read while it is said: `text` has at most two lines."""

    kind: ClassVar[str] = "caption"


class GuessedWord(msgspec.Struct, frozen=True, array_like=True):
    start_ns: int
    end_ns: int
    text: str
    probability: float = 1.0


class Guess(Record, frozen=True):
    """What may have been said from `since_ns` to `until_ns`, by somebody who has not heard the rest."""

    since_ns: int
    until_ns: int
    words: tuple[GuessedWord, ...] = ()
    is_full: bool = False  # more cannot be listened to: what is at its beginning leaves


class Draft(Observation, frozen=True):
    """Words as they are said. Those that are settled stay as they are; the others may be others in the next segment's
    draft."""

    is_settled: bool = False


class Agreement(Record, frozen=True):
    """Where guesses in a row stand: what is still open, what was settled last and until when."""

    open: tuple[GuessedWord, ...] = ()
    last: tuple[str, ...] = ()
    settled_ns: int = 0


class Drafts(Evidence, frozen=True):
    """The words that were settled in a segment, and those that are shown behind them; and what the next one needs."""

    kind: ClassVar[str] = "draft"
    observations: tuple[Draft, ...] = ()
    agreement: Agreement = Agreement()


class Phrases(Transcript, frozen=True):
    """What was said to an end in a segment, wherever it began; and what the next one needs: words of what goes on."""

    agreement: Agreement = Agreement()
    held: tuple[GuessedWord, ...] = ()


class Turn(Observation, frozen=True):
    """A turn of a conversation: what somebody said (`heard`, and when), and what is replied to it (`text`; empty where
    nothing is)."""

    heard: str = ""


class Turns(Evidence, frozen=True):
    """The turns that ended in a segment; and, for the next one, what was begun and what was said before."""

    kind: ClassVar[str] = "turn"
    observations: tuple[Turn, ...] = ()
    pending: tuple[Speech, ...] = ()
    history: tuple[tuple[str, str], ...] = ()  # heard and replied, the latest last


class Spoken(Observation, frozen=True):
    """A sentence as sound. `audio` is an Ogg file with one mono Opus stream; it lasts from start_ns to end_ns of media
    time, if it begins where what it replies to ends."""

    audio: bytes = b""


class Voice(Evidence, frozen=True):
    kind: ClassVar[str] = "voice"
    observations: tuple[Spoken, ...] = ()
