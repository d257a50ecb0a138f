"""The commands that talk to running nodes: serve, worker, push, ask, jobs, answers, streams, nodes, redundancy."""

from __future__ import annotations  # the client is loaded by the commands that need it

import argparse
import os
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anyio.to_thread

from penstock.cli import tables
from penstock.cli.terminal import json_line
from penstock.places import NATS_URL, default_store
from penstock.tokens import token_of
from streams.errors import UserError
from streams.subjects import token

if TYPE_CHECKING:
    from penstock.client import Client
    from streams.records import Gap, Segment

Run = Callable[[Callable[[], Awaitable[Any]]], Any]


def add_commands(commands: Any, duration_s: Callable[[str], float], count: Callable[[str], int], run: Run) -> None:
    """Add them to the command line's parser. `run` runs an async function until it ends or is interrupted."""

    def command(name: str, help: str, work: Callable[[argparse.Namespace], Awaitable[None]], to: Any = commands) -> Any:
        parser = to.add_parser(name, help=help, description=help, allow_abbrev=False)

        def call(parsed: argparse.Namespace) -> int:
            run(lambda: work(parsed))
            return 0

        parser.set_defaults(command=call)
        return parser

    def client_command(name: str, help: str, work: Any, to: Any = commands) -> Any:
        async def connected(parsed: argparse.Namespace) -> None:
            from penstock.client import connect

            async with connect(parsed.nats, store=parsed.store) as client:
                await work(client, parsed)

        parser = command(name, help, connected, to)
        parser.add_argument("--nats", metavar="URL", help="the NATS server of the nodes (default: $PENSTOCK_NATS)")
        parser.add_argument("--store", type=Path, metavar="DIR", help="of the node on this machine, without --nats")
        parser.add_argument("--json", action="store_true", help="one JSON object a line on stdout")
        return parser

    serving = command("serve", "run a node: NATS, workers and HTTP", _serve)
    serving.add_argument("--config", type=Path, metavar="FILE", help="streams and standing jobs (penstock.toml)")
    serving.add_argument("--nats", metavar="URL", help="use this NATS server instead of an embedded one")
    serving.add_argument("--nats-port", type=int, metavar="PORT", help="of the embedded server (default: any)")
    serving.add_argument("--store", type=Path, metavar="DIR", help="where the embedded server keeps its data")
    serving.add_argument("--http", default="127.0.0.1:8080", metavar="ADDRESS", help="host:port, or none")
    serving.add_argument(
        "--http-auth",
        choices=("auto", "always", "off"),
        default="auto",
        help="ask for the token of `penstock token`: auto, where other machines can connect",
    )

    telling = commands.add_parser(
        "token", help="print the token that HTTP asks for, made if need be", allow_abbrev=False
    )
    telling.set_defaults(command=_token)
    telling.add_argument("--store", type=Path, metavar="DIR", help="of the nodes it is for")

    making = commands.add_parser("keys", help="make keys and configurations for a NATS cluster", allow_abbrev=False)
    making.set_defaults(command=_keys)
    making.add_argument("folder", metavar="DIR", type=Path, help="a new folder to write them to")
    making.add_argument("--servers", required=True, metavar="A,B,C", help="names or addresses of the NATS servers")
    making.add_argument("--nats-store", default="/data", metavar="DIR", help="where servers keep data (/data)")
    making.add_argument("--days", type=int, default=730, metavar="N", help="how long servers' certificates hold (730)")

    joining = command("worker", "add this machine to the nodes of a NATS server", _worker)
    joining.add_argument("--nats", metavar="URL", help="the NATS server of the other nodes (default: $PENSTOCK_NATS)")
    joining.add_argument("--config", type=Path, metavar="FILE", help="as of `serve`: what it may open, and streams")
    joining.add_argument("--store", type=Path, metavar="DIR", help="where the workers' log goes")
    for parser in (serving, joining):
        parser.add_argument(
            "--workers",
            type=range_of(count),
            default=(1, 1),
            metavar="N|N-M",
            help="worker processes (default 1); 0-4: as many as the load takes, and none while nothing comes",
        )
        parser.add_argument("--trace", type=Path, metavar="FILE", help="write the spans there as OTLP JSON lines")
        parser.add_argument("--log", choices=("debug", "info", "warning", "error"), default="warning")

    pushing = client_command("push", "bring media to a stream: a file, a URL, a device, or - for stdin", _push)
    pushing.add_argument("url", metavar="URL", help="path, folder, -, http(s), .m3u8, rtsp, rtmp, srt, udp, device:")
    pushing.add_argument("--stream", required=True, metavar="NAME", help="the stream to bring it to")
    policy = pushing.add_mutually_exclusive_group()
    policy.add_argument("--live", dest="policy", action="store_const", const="live", help="bounded lag, late is a gap")
    policy.add_argument("--durable", dest="policy", action="store_const", const="durable", help="wait, lose nothing")
    pushing.add_argument("--segment", type=duration_s, metavar="5s", help="target length of a segment (5s)")
    pushing.add_argument("--max-lag", type=duration_s, metavar="10s", help="live: what is older is late (10s)")
    pushing.add_argument("--gop", type=duration_s, metavar="2s", help="transcode to a keyframe at least this often")
    pushing.add_argument("--as-one", action="store_true", help="a folder's files as one stream, not one for each")
    pushing.add_argument("--detach", action="store_true", help="leave the reading to the nodes, and return")

    asking = client_command("ask", "ask one question about a stream, and wait for the answer", _ask)
    asking.add_argument("question", metavar="TEXT")
    asking.add_argument("--stream", required=True, metavar="NAME")
    asking.add_argument("--from", dest="start", default="", metavar="-10m", help="-10m, 1:05 or a time of day")
    asking.add_argument("--to", dest="end", default="", metavar="now", help="the same; default: what there is")
    asking.add_argument("--timeout", type=duration_s, default=60.0, metavar="60s", help="how long to wait")

    jobs = commands.add_parser("jobs", help="submit, list, show and cancel jobs", allow_abbrev=False)
    kinds = jobs.add_subparsers(title="commands", metavar="COMMAND", required=True)
    submitting = client_command("submit", "submit a job", _submit, kinds)
    submitting.add_argument("workflow", nargs="?", type=Path, help="a workflow file; default: answers questions")
    submitting.add_argument("--stream", required=True, metavar="NAME")
    submitting.add_argument("--ask", action="append", default=[], metavar="TEXT", help="a question; several times")
    submitting.add_argument("--standing", action="store_true", help="answer as segments come, without end")
    submitting.add_argument("--window", type=duration_s, default=60.0, metavar="60s", help="standing: how far back")
    submitting.add_argument("--from", dest="start", default="", metavar="-10m")
    submitting.add_argument("--to", dest="end", default="", metavar="now")
    submitting.add_argument("--drafts", action="store_true", help="publish what the beginnings of the range say, too")
    submitting.add_argument("--webhook", default="", metavar="URL", help="send the answers there as well")
    submitting.add_argument(
        "--slo",
        action="append",
        default=[],
        metavar="BOUND",
        help="standing: 'latency<2s', 'quality>=good'; several times",
    )
    submitting.add_argument(
        "--weight",
        type=_weight,
        default=1.0,
        metavar="2",
        help="standing: 2 has twice the share of 1 if not all fit",
    )
    submitting.add_argument("--id", default="", metavar="ID", help="of the job (default: a new one)")
    submitting.add_argument("--follow", action="store_true", help="and print its answers")
    listing = client_command("list", "list jobs", _list, kinds)
    listing.add_argument("--stream", default="", metavar="NAME")
    listing.add_argument("--state", default="", choices=("running", "done", "canceled", "failed"))
    for name, help, work in (("show", "show a job", _show), ("cancel", "cancel a job", _cancel)):
        client_command(name, help, work, kinds).add_argument("job", metavar="JOB")

    following = client_command("answers", "follow answers, one JSON object a line on stdout", _answers)
    following.add_argument("--job", default="", metavar="JOB", help="of this job; ends with it")
    following.add_argument("--stream", default="", metavar="NAME", help="about this stream")
    following.add_argument("--new", action="store_true", help="only those from now on")

    streaming = client_command("streams", "list streams", _streams)
    streaming.add_argument("--forget", metavar="NAME", help="first forget this one: nodes stop reading it")
    client_command("nodes", "list nodes", _nodes)
    client_command("redundancy", "name what is computed twice for no reason", _redundancy)


def _keys(parsed: argparse.Namespace) -> int:
    from penstock.keys import make_keys

    servers = parsed.servers.split(",")
    for path in make_keys(parsed.folder, servers, store=parsed.nats_store, days=parsed.days):
        print(path)
    tables.say(f"keep {parsed.folder / 'ca.key'} where no server is; give each role its own .nk, and ca.pem to all")
    return 0


def range_of(count: Callable[[str], int]) -> Callable[[str], tuple[int, int]]:
    """N, or N-M."""

    def parse(text: str) -> tuple[int, int]:
        least, dash, most = text.partition("-")
        try:
            found = (0 if least == "0" and dash else count(least)), count(most if dash else least)
        except argparse.ArgumentTypeError:
            raise argparse.ArgumentTypeError(
                f"{text!r} is neither a number from 1 to 64 nor two, such as 0-4"
            ) from None
        if found[0] > found[1]:
            raise argparse.ArgumentTypeError(f"{text!r}: the first is the fewest, and {most} is less")
        return found

    return parse


def _token(parsed: argparse.Namespace) -> int:
    print(token_of(parsed.store or default_store()))
    return 0


async def _serve(parsed: argparse.Namespace) -> None:
    from penstock.node import ServeOptions, serve  # what serves HTTP takes long to load: only nodes need it

    options = ServeOptions(
        url=parsed.nats,
        store=parsed.store or default_store(),
        nats_port=parsed.nats_port,
        http=None if parsed.http == "none" else parsed.http,
        http_auth=parsed.http_auth,
        min_workers=parsed.workers[0],
        num_workers=parsed.workers[1],
        config=parsed.config,
        trace_file=parsed.trace,
        log_level=parsed.log,
    )
    await serve(options, tables.ready)


async def _worker(parsed: argparse.Namespace) -> None:
    from penstock.node import ServeOptions, serve

    store, url = parsed.store or default_store(), parsed.nats or os.environ.get(NATS_URL)
    if not url:
        raise UserError(f"which nodes? give --nats URL, or set {NATS_URL}")
    options = ServeOptions(
        url=url,
        store=store,
        http=None,
        config=parsed.config,
        min_workers=parsed.workers[0],
        num_workers=parsed.workers[1],
        trace_file=parsed.trace,
        log_level=parsed.log,
    )
    await serve(options, tables.ready)


async def _push(client: Client, parsed: argparse.Namespace) -> None:
    """A folder's files each as a stream of its own, named after it, so that evidence names the file."""
    from streams.media.addresses import files_of, streams_for

    token(parsed.stream)
    files = [] if parsed.as_one else await anyio.to_thread.run_sync(files_of, parsed.url)
    if not files:
        await _push_one(client, parsed, parsed.url, parsed.stream)
    for path, stream in zip(files, streams_for(parsed.stream, files), strict=True):
        await _push_one(client, parsed, str(path), stream)


async def _push_one(client: Client, parsed: argparse.Namespace, url: str, stream: str) -> None:
    if parsed.detach:
        from engine.node.endpoints import Declare
        from engine.node.feeding import policy_for

        policy = parsed.policy or policy_for(url)
        given = {"segment_s": parsed.segment, "max_lag_s": parsed.max_lag, "gop_s": parsed.gop}
        settings = {name: value for name, value in given.items() if value is not None}
        await client.declare(Declare(name=stream, url=url, policy=policy, **settings))
        tables.say(f"the nodes read {stream} from now on; `penstock streams` shows how it goes")
        return
    with tables.Pushing(stream, parsed.json) as shown:

        def note(record: Segment | Gap) -> None:
            shown.note(record)

        end = await client.push(
            url,
            stream,
            parsed.policy,
            segment_s=parsed.segment,
            max_lag_s=parsed.max_lag,
            gop_s=parsed.gop,
            on_record=note,
            on_state=shown.state,
        )
        shown.end(end)


async def _ask(client: Client, parsed: argparse.Namespace) -> None:
    answer = await client.ask(parsed.stream, parsed.question, parsed.start, parsed.end, parsed.timeout)
    tables.answer(answer, parsed.json)


async def _submit(client: Client, parsed: argparse.Namespace) -> None:
    from engine.spec.workflow import load_workflow

    workflow = load_workflow(parsed.workflow) if parsed.workflow else None
    job = await client.submit(
        parsed.stream,
        parsed.ask,
        workflow,
        standing=parsed.standing,
        window_s=parsed.window,
        start=parsed.start,
        end=parsed.end,
        webhook=parsed.webhook,
        drafts=parsed.drafts,
        slo=parsed.slo,
        weight=parsed.weight,
        id=parsed.id,
    )
    tables.submitted(job.submitted, parsed.json)
    if parsed.follow:
        async for answer in job.answers():
            tables.answer(answer, parsed.json)


async def _list(client: Client, parsed: argparse.Namespace) -> None:
    tables.jobs(await client.jobs(parsed.stream, parsed.state), parsed.json)


async def _show(client: Client, parsed: argparse.Namespace) -> None:
    tables.job(await client.job(parsed.job), parsed.json)


async def _cancel(client: Client, parsed: argparse.Namespace) -> None:
    tables.job(await client.cancel(parsed.job), parsed.json)


async def _answers(client: Client, parsed: argparse.Namespace) -> None:
    if parsed.job:
        await client.job(parsed.job)  # or say that there is none
    after = -1 if parsed.new else 0
    async for answer in client.answers(parsed.job, parsed.stream, after, until_done=bool(parsed.job)):
        sys.stdout.write(json_line(answer) + "\n")
        sys.stdout.flush()


async def _streams(client: Client, parsed: argparse.Namespace) -> None:
    if parsed.forget is not None:
        await client.forget(parsed.forget)
    tables.streams(await client.streams(), parsed.json)


async def _nodes(client: Client, parsed: argparse.Namespace) -> None:
    tables.nodes(await client.nodes(), parsed.json)


async def _redundancy(client: Client, parsed: argparse.Namespace) -> None:
    tables.redundancy(await client.redundancy(), parsed.json)


def _weight(text: str) -> float:
    from engine.spec.objective import LEAST_WEIGHT, MOST_WEIGHT

    try:
        weight = float(text)
    except ValueError:
        weight = 0.0
    if not LEAST_WEIGHT <= weight <= MOST_WEIGHT:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from {LEAST_WEIGHT:g} to {MOST_WEIGHT:g}")
    return weight
