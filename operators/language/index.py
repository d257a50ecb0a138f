"""An index of passages: what was said and shown in many streams, found by meaning and by words, in one SQLite file.

It is a cache of the ledger, and whoever fills it says what is there and what has gone; a file that another version
wrote, or that cannot be read, is begun anew. What is kept of a stream are its outputs and the passages made of them
(`operators.language.retrieval`), each with its vector, computed once. A search takes the NUM_CANDIDATES that are
nearest by meaning and the NUM_CANDIDATES that are nearest by words (FTS5's BM25, over all that is kept), and ranks them
as answers are ranked, cosine + OF_WORDS * coverage; without a model of meaning, BM25 is all. Passages of one stream
that overlap in time say the same: the best stands for all.

Vectors are kept as 16-bit floats, 768 bytes each, and read through in pieces: what a search takes in memory does not
grow with what is kept.
Source: Robertson and Zaragoza 2009 (BM25); operators.language.embedding says where the vectors come from.
"""

import functools
import re
import sqlite3
import threading
import time
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from operators import weights
from operators.heard import Speech, Transcript
from operators.language import embedding
from operators.language.retrieval import OF_WORDS, Piece, Vectors, Words, screen_pieces, spoken_pieces
from operators.language.tallies import appearances
from operators.seen import Descriptions, Events, ScreenText, TextLine, TrackedObject, Tracks
from streams.errors import Transient, UserError
from streams.records import Evidence, Observation, encode

VERSION = 2
NUM_CANDIDATES = 200
NUM_FILLED = 64  # at once, so that others have their turn and somebody can be told
ROWS_A_PIECE = 10_000
WAIT_S = 30.0  # for another process that writes
MAX_WORDS_ASKED = 64

_KINDS: dict[str, type[Transcript | ScreenText | Events | Tracks | Descriptions]] = {
    kind.kind: kind for kind in (Transcript, ScreenText, Events, Tracks, Descriptions)
}
_SCHEMA = """
CREATE TABLE outputs (source TEXT, stream TEXT, first INT, last INT, kind TEXT, data BLOB,
    PRIMARY KEY (source, stream, first, last)) WITHOUT ROWID;
CREATE TABLE passages (id INTEGER PRIMARY KEY, source TEXT, stream TEXT, kind TEXT, start_ns INT, end_ns INT,
    text TEXT, meaning TEXT, vector BLOB);
CREATE INDEX passages_of ON passages (source, stream);
CREATE INDEX passages_for ON passages (meaning);
CREATE VIRTUAL TABLE words USING fts5 (meaning, tokenize = 'porter unicode61 remove_diacritics 2');
"""
_WORD = re.compile(r"[^\W_]+")
_NUMBER = re.compile(r"\b\d+ |\s\d+\b")

Place = tuple[int, int]  # first and last segment of an output


@dataclass(frozen=True, slots=True)
class Passage:
    """A passage that was found. `score`: higher is nearer; comparable within one search only."""

    stream: str
    kind: str
    start_ns: int
    end_ns: int
    text: str
    score: float


class PassageIndex:
    """May be used by several threads and processes. `vectors` gives texts as unit vectors; None: by words alone.
    What is asked of it raises UserError where no file can be kept there, Transient where it fails."""

    def __init__(self, path: Path, vectors: Vectors | None = None) -> None:
        self._path = path
        self._vectors = vectors
        self._lock = threading.RLock()
        self._connection: sqlite3.Connection | None = None

    @property
    def _db(self) -> sqlite3.Connection:
        """Opened when it is first needed: no node stops for what nobody has asked for."""
        if self._connection is None:
            self._connection = self._opened()
        return self._connection

    def close(self) -> None:
        with self._lock:
            if self._connection is not None:
                self._connection.close()
                self._connection = None

    @staticmethod
    def takes(kind: type) -> bool:
        """Whether outputs of this type can be found here."""
        return issubclass(kind, tuple(_KINDS.values()))

    def known(self, source: str, stream: str) -> set[Place]:
        """Which outputs of a stage on a stream it has."""
        with self._transaction("BEGIN"):
            rows = self._db.execute("SELECT first, last FROM outputs WHERE source = ? AND stream = ?", (source, stream))
            return set(rows.fetchall())

    def keep_only(self, pairs: Collection[tuple[str, str]]) -> None:
        """Drop what is of other stages and streams than these."""
        with self._changing():
            for pair in set(self._db.execute("SELECT DISTINCT source, stream FROM outputs")) - set(pairs):
                self._drop(pair)

    def forget(self, stream: str) -> None:
        """Drop what is of a stream, from the file as well."""
        with self._changing():
            query = "SELECT DISTINCT source, stream FROM outputs WHERE stream = ?"
            for pair in self._db.execute(query, (stream,)).fetchall():
                self._drop(pair)
        with self._lock:
            self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)")

    def update(self, source: str, stream: str, added: Mapping[Place, Evidence], gone: Collection[Place] = ()) -> None:
        """Take in outputs of a stage on a stream, and drop others: its passages are made again of what there is."""
        with self._changing():
            self._db.executemany(
                "DELETE FROM outputs WHERE source = ? AND stream = ? AND first = ? AND last = ?",
                [(source, stream, *place) for place in gone],
            )
            self._db.executemany(
                "INSERT OR REPLACE INTO outputs VALUES (?, ?, ?, ?, ?, ?)",
                [(source, stream, *place, value.kind, encode(_lean(value))) for place, value in added.items()],
            )
            kept = self._kept_vectors(source, stream)
            pieces = self._pieces(source, stream)
            self._drop_passages((source, stream))
            for piece in pieces:
                row = (source, stream, piece.kind, piece.start_ns, piece.end_ns, piece.text, piece.meaning)
                cursor = self._db.execute(
                    "INSERT INTO passages (source, stream, kind, start_ns, end_ns, text, meaning, vector)"
                    " VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                    (*row, kept.get(piece.meaning)),
                )
                self._db.execute("INSERT INTO words (rowid, meaning) VALUES (?, ?)", (cursor.lastrowid, piece.meaning))

    def fill(self, num: int = NUM_FILLED) -> int:
        """Give vectors to so many of the passages that have none, which takes about 7 ms each; how many then have
        none. What it is interrupted in is done again."""
        if self._vectors is None:
            return 0
        lacking = "FROM passages WHERE vector IS NULL"
        with self._transaction("BEGIN"):
            texts = [text for (text,) in self._db.execute(f"SELECT DISTINCT meaning {lacking} LIMIT ?", (num,))]
        made: Iterable[NDArray[np.float16]] = self._vectors(texts).astype(np.float16) if texts else ()
        with self._changing():
            self._db.executemany(
                "UPDATE passages SET vector = ? WHERE meaning = ?",
                [(vector.tobytes(), text) for vector, text in zip(made, texts, strict=True)],
            )
            (left,) = self._db.execute(f"SELECT count(*) {lacking}").fetchone()
        return int(left)

    def search(self, text: str, num: int, streams: Collection[str] | None = None) -> list[Passage]:
        """The `num` passages that are nearest to a text, the nearest first; of these streams only, where they are
        given."""
        with self._transaction("BEGIN"):  # others may write meanwhile
            scores = self._by_words(text, streams)
            if self._vectors is not None:
                scores = self._by_meaning(text, scores, streams)
            rows = self._rows(scores)
        found: list[Passage] = []
        ranked = sorted(rows, key=lambda id: (-scores[id], rows[id].stream, rows[id].start_ns))
        for id in ranked:
            passage = rows[id]
            if not any(_overlap(passage, other) for other in found):
                found.append(passage)
                if len(found) == num:
                    break
        return found

    # --- filling -------------------------------------------------------------------------------------------------

    def _pieces(self, source: str, stream: str) -> list[Piece]:
        """Every passage of what there is."""
        query = "SELECT kind, data FROM outputs WHERE source = ? AND stream = ? ORDER BY first, last"
        speech: list[Speech] = []
        lines: list[TextLine] = []
        told: list[tuple[str, Observation]] = []
        tracks: list[TrackedObject] = []
        for kind, data in self._db.execute(query, (source, stream)):
            value = msgspec.msgpack.decode(data, type=_KINDS[kind])
            match value:
                case Transcript(observations=said):
                    speech.extend(said)
                case ScreenText(observations=seen):
                    lines.extend(seen)
                case Events(observations=others) | Descriptions(observations=others):
                    told.extend((kind, each) for each in others)
                case Tracks(observations=followed):
                    tracks.extend(followed)
        return spoken_pieces(speech) + screen_pieces(lines) + _seen_pieces(told, tracks)

    def _kept_vectors(self, source: str, stream: str) -> dict[str, bytes]:
        """By what their passages are looked for by."""
        query = "SELECT meaning, vector FROM passages WHERE source = ? AND stream = ? AND vector IS NOT NULL"
        return dict(self._db.execute(query, (source, stream)).fetchall())

    def _drop(self, pair: tuple[str, str]) -> None:
        self._drop_passages(pair)
        self._db.execute("DELETE FROM outputs WHERE source = ? AND stream = ?", pair)

    def _drop_passages(self, pair: tuple[str, str]) -> None:
        of_it = "FROM passages WHERE source = ? AND stream = ?"
        self._db.execute(f"DELETE FROM words WHERE rowid IN (SELECT id {of_it})", pair)
        self._db.execute(f"DELETE {of_it}", pair)

    # --- finding -------------------------------------------------------------------------------------------------

    def _by_words(self, text: str, streams: Collection[str] | None) -> dict[int, float]:
        words = list(dict.fromkeys(_WORD.findall(text.lower())))[:MAX_WORDS_ASKED]
        if not words:
            return {}
        asked = " OR ".join(f'"{word}"' for word in words)
        among, names = _among(streams)
        query = (
            "SELECT p.id, bm25(words) FROM words JOIN passages p ON p.id = words.rowid"
            f" WHERE words MATCH ? {among} ORDER BY bm25(words), p.id LIMIT ?"
        )
        return {id: -score for id, score in self._db.execute(query, (asked, *names, NUM_CANDIDATES))}

    def _by_meaning(self, text: str, near: Collection[int], streams: Collection[str] | None) -> dict[int, float]:
        """The scores of those that are near by words, and of those nearest by meaning."""
        assert self._vectors is not None
        asked: NDArray[np.float32] = self._vectors([text])[0]
        wanted = np.fromiter(near, np.int64, len(near))
        among, names = _among(streams)
        query = f"SELECT p.id, p.vector FROM passages p WHERE p.vector IS NOT NULL {among} ORDER BY p.id"
        cosines: dict[int, float] = {}
        best: list[tuple[float, int]] = []
        rows = self._db.execute(query, names)
        while some := rows.fetchmany(ROWS_A_PIECE):
            ids = np.fromiter((id for id, _ in some), np.int64, len(some))
            vectors = np.frombuffer(b"".join(vector for _, vector in some), np.float16).reshape(len(some), -1)
            found = vectors.astype(np.float32) @ asked
            at = np.flatnonzero(np.isin(ids, wanted))
            cosines.update(zip(ids[at].tolist(), found[at].tolist(), strict=True))
            top = np.argpartition(-found, NUM_CANDIDATES - 1)[:NUM_CANDIDATES] if len(found) > NUM_CANDIDATES else ...
            best += zip((-found[top]).tolist(), ids[top].tolist(), strict=True)
            best = sorted(best)[:NUM_CANDIDATES]
        cosines.update((id, -less) for less, id in best)
        query = "SELECT meaning FROM passages WHERE id = ?"
        covered = Words([self._db.execute(query, (id,)).fetchone()[0] for id in cosines]).coverage(text).tolist()
        return {id: cosines[id] + OF_WORDS * share for id, share in zip(cosines, covered, strict=True)}

    def _rows(self, scores: Mapping[int, float]) -> dict[int, Passage]:
        query = "SELECT id, stream, kind, start_ns, end_ns, text FROM passages WHERE id = ?"
        found: dict[int, Passage] = {}
        for id in scores:
            _, stream, kind, start_ns, end_ns, text = self._db.execute(query, (id,)).fetchone()
            found[id] = Passage(stream, kind, start_ns, end_ns, text, round(scores[id], 5))
        return found

    # --- the file ------------------------------------------------------------------------------------------------

    def _changing(self) -> AbstractContextManager[None]:
        return self._transaction("BEGIN IMMEDIATE")

    @contextmanager
    def _transaction(self, begin: str) -> Iterator[None]:
        """All of it, or nothing. Raises Transient where the machine or the file fails; a damaged file is begun anew."""
        with self._lock:
            try:
                self._db.execute(begin)
                try:
                    yield
                except BaseException:
                    with suppress(sqlite3.Error):
                        self._db.execute("ROLLBACK")
                    raise
                self._db.execute("COMMIT")
            except sqlite3.Error as error:
                if type(error) is sqlite3.DatabaseError:
                    self.close()
                    self._remove()
                raise Transient(f"the index {self._path} cannot be used: {error}; search again") from error

    def _remove(self) -> None:
        for suffix in ("", "-wal", "-shm"):
            Path(f"{self._path}{suffix}").unlink(missing_ok=True)

    def _opened(self) -> sqlite3.Connection:
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            until_s = time.monotonic() + WAIT_S
            while True:
                try:
                    return self._made()
                except sqlite3.OperationalError as error:  # of the machine, not of the file
                    if "fts5" in str(error):
                        version = sqlite3.sqlite_version
                        raise UserError(f"this Python's SQLite {version} has no FTS5: search needs it") from error
                    if "locked" not in str(error) or time.monotonic() > until_s:
                        raise
                    time.sleep(0.02)  # another makes it just now
                except sqlite3.DatabaseError:  # it is none, or damaged
                    self._remove()
                    return self._made()
        except (OSError, sqlite3.Error) as error:
            raise UserError(f"cannot keep an index in {self._path}: {error}; give a folder you can write") from error

    def _made(self) -> sqlite3.Connection:
        db: Any = sqlite3.connect(self._path, timeout=WAIT_S, isolation_level=None, check_same_thread=False)
        try:
            db.execute("PRAGMA journal_mode = WAL")
            db.execute("PRAGMA secure_delete = ON")  # what was forgotten is not in the file's free pages either
            db.execute("PRAGMA synchronous = OFF")  # what is lost is read from the ledger again
            db.execute("BEGIN IMMEDIATE")
            (version,) = db.execute("PRAGMA user_version").fetchone()
            if version != VERSION:
                with closing(db.execute("SELECT name FROM sqlite_master WHERE type = 'table'")) as names:
                    tables = {name for (name,) in names}
                for name in ("words", "passages", "outputs"):
                    if name in tables:
                        db.execute(f"DROP TABLE {name}")
                for statement in _SCHEMA.split(";"):
                    db.execute(statement)
                db.execute(f"PRAGMA user_version = {VERSION}")
            db.execute("COMMIT")
        except BaseException:
            db.close()
            raise
        made: sqlite3.Connection = db
        return made


def _lean(value: Evidence) -> Evidence:
    """An output without what nobody looks for: where each object was, and what its stage needs for its next one."""
    match value:
        case Tracks(observations=followed):
            return Tracks(observations=tuple(msgspec.structs.replace(each, path=()) for each in followed))
        case Events(observations=happened):
            return Events(observations=happened)
    return value


def _seen_pieces(told: Iterable[tuple[str, Observation]], tracks: Iterable[TrackedObject]) -> list[Piece]:
    """What happened, what pictures show, and when there was what. They are looked for without their numbers: what says
    the same has one vector."""
    pieces: list[Piece] = []
    for at, (kind, each) in enumerate([*told, *((Tracks.kind, each) for each in appearances(tracks))]):
        meaning = _NUMBER.sub("", each.text)
        pieces.append(Piece(kind, each.start_ns, each.end_ns, each.text, range(at, at + 1), each.confidence, meaning))
    return pieces


def open_index(path: Path) -> PassageIndex:
    """An index by meaning, or by words where the weights are not here. Model and file are opened when they are first
    needed."""
    if weights.find(embedding.NAME) is None:
        return PassageIndex(path)
    loaded = functools.cache(embedding.load)
    return PassageIndex(path, lambda texts: loaded().vectors(texts))


def _among(streams: Collection[str] | None) -> tuple[str, list[str]]:
    if streams is None:
        return "", []
    return f"AND p.stream IN ({', '.join('?' * len(streams))})", list(streams)


def _overlap(one: Passage, other: Passage) -> bool:
    """Whether they say the same: passages of speech overlap; rows on the screen, objects and events stand beside one
    another, and several stages may have found the same."""
    if one.stream != other.stream or one.kind != other.kind:
        return False
    if one.kind != Transcript.kind and one.text != other.text:
        return False
    return one.start_ns == other.start_ns or (one.start_ns < other.end_ns and other.start_ns < one.end_ns)
