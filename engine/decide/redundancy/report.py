"""The redundancy report: what the running graph computes twice for no reason, and what a merge would save. Pure.

Equal stages have one id and run once (engine/spec/plan.py). What is left are stages that differ in something that has
no effect, or need not have one:

| kind | the stages differ in | kept |
|---|---|---|
| `same-but-for-wording` | case, spaces, final punctuation or Unicode form of text in their parameters | the most used |
| `different-rungs` | implementation, its version or knobs | the best, of equals the cheapest |
| `windows` | how far they look back | the longest, where its rung is no worse |
| `same-source` | nothing but the stream, and the streams are read from one URL | the stream with the most jobs |
| `upstream` | inputs that become equal by two or more other findings | the most used |

Streams of one source are found here, stages of one stream by `engine.decide.redundancy.merging`.
"""

from collections.abc import Hashable, Mapping, Sequence
from typing import get_args
from urllib.parse import parse_qsl, unquote, urlsplit

from engine.decide.redundancy.findings import Cost, Kind, Redundancy, StageUse, saving, use_of
from engine.decide.redundancy.merging import Merging
from engine.decide.running_graph import RunningStage, running_stages
from engine.spec.catalogue import Catalogue
from engine.spec.jobs import JobSpec
from engine.spec.stream import StreamSpec
from streams.media.addresses import public_url

PORTS = {"http": 80, "https": 443, "rtsp": 554, "rtsps": 322, "rtmp": 1935, "rtmps": 443}


def find_redundancy(
    jobs: Sequence[JobSpec], streams: Mapping[str, StreamSpec], catalogue: Catalogue, costs: Mapping[str, Cost]
) -> list[Redundancy]:
    """What running jobs have computed twice, the largest saving first. `costs` by stage id."""
    by_stream: dict[str, list[JobSpec]] = {}
    for job in sorted(jobs, key=lambda job: (job.submitted_ns, job.id)):
        if job.state == "running":
            by_stream.setdefault(job.stream, []).append(job)
    running = {stream: running_stages(some) for stream, some in sorted(by_stream.items())}
    found: list[Redundancy] = []
    saved: set[tuple[str, str]] = set()
    for names in _of_one_source(streams, by_stream):
        if twice := _on_several(names, running):
            found.append(_same_source(names, streams, twice, costs))
            saved |= {(use.stream, use.id) for _, *others in twice for use in others}
    for stream, stages in running.items():
        merging = Merging(stream, catalogue, costs)
        merging.run(stages, {id for name, id in saved if name == stream})
        found += merging.found()
    kinds = get_args(Kind)
    return sorted(found, key=lambda f: (-f.saves_compute_s_per_s, kinds.index(f.kind), f.streams, f.keep))


# --- streams of one source ---------------------------------------------------------------------------------------


def _of_one_source(streams: Mapping[str, StreamSpec], jobs: Mapping[str, Sequence[JobSpec]]) -> list[list[str]]:
    """The streams with jobs that are read from one URL, the one to keep first."""
    found: dict[Hashable, list[str]] = {}
    for name, spec in sorted(streams.items(), key=lambda item: (item[1].declared_ns, item[0])):
        if name in jobs and spec.url not in ("", "-"):
            found.setdefault(same_place(spec.url), []).append(name)
    return [sorted(names, key=lambda name: -len(jobs[name])) for names in found.values() if len(names) > 1]


def _on_several(names: Sequence[str], running: Mapping[str, Sequence[RunningStage]]) -> list[list[StageUse]]:
    """The stages that run on more than one of these streams, each on all of them."""
    uses: dict[str, list[StageUse]] = {}
    for name in names:
        for stage in running[name]:
            uses.setdefault(stage.id, []).append(use_of(stage, name))
    return [each for each in uses.values() if len(each) > 1]


def _same_source(
    names: Sequence[str],
    streams: Mapping[str, StreamSpec],
    twice: Sequence[Sequence[StageUse]],
    costs: Mapping[str, Cost],
) -> Redundancy:
    keep, *others = names
    cuts = {(streams[name].policy, streams[name].segment_s, streams[name].gop_s) for name in names}
    dropped = [use.id for _, *rest in twice for use in rest]
    return Redundancy(
        kind="same-source",
        keep=keep,
        streams=tuple(names),
        stages=tuple(use for each in twice for use in each),
        followers=(),
        why=f"{' and '.join(names)} are read from one source, {public_url(streams[keep].url)}: "
        f"keep {keep}, forget {' and '.join(others)} and submit those jobs on {keep}",
        outputs="same" if len(cuts) == 1 else "other segments",
        saves_compute_s_per_s=saving(dropped, costs),
        is_measured=all(id in costs for id in dropped),
    )


def same_place(url: str) -> Hashable:
    """Equal for URLs of the same source with the same credentials, however they are written."""
    scheme, separator, rest = url.strip().partition("://")
    if not separator or scheme.lower() == "file":
        return unquote(rest.removeprefix("localhost")) if separator else url.strip()
    try:
        parts = urlsplit(url.strip())
        port = parts.port or PORTS.get(parts.scheme)
    except ValueError:
        return url.strip()
    user = (unquote(parts.username or ""), unquote(parts.password or ""))
    query = tuple(sorted(parse_qsl(parts.query, keep_blank_values=True)))
    return (parts.scheme, user, parts.hostname, port, parts.path or "/", query)
