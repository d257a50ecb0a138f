"""What deploy/ says by name is there: commands and options, metrics and labels, variables."""

import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from engine.decide.signals import PoolSignals, ServiceTime, StreamSignals, WorkerSignals
from engine.decide.watching import SourceState
from engine.run import conventions
from penstock.cli import main
from penstock.http import metrics
from streams.errors import UserError

yaml = pytest.importorskip("yaml")
from deploy.go_templates import rendered  # noqa: E402 - it needs yaml

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
pytestmark = pytest.mark.skipif(not DEPLOY.is_dir(), reason="deploy/ is not beside these tests: a wheel is tested")

OURS = {"PENSTOCK_HOST"}  # of compose.yaml itself
SCALING = {"workers": {group: {"enabled": True, "autoscaling": {"enabled": True}} for group in ("cpu", "gpu")}}


def chart_documents() -> list[dict[str, Any]]:
    texts = rendered(DEPLOY / "chart", {**SCALING, "config": "[access]"}).values()
    return [each for text in texts for each in yaml.safe_load_all(text) if each]


# --- commands --------------------------------------------------------------------------------------------------------


def in_text(text: str) -> Iterator[str]:
    """Command lines in shell lines and in `backticks`."""
    text = re.sub(r"\\\n\s*", "", text.replace("```", ""))
    lines = text.splitlines()
    blocks = [line for line in lines if re.match(r"\s*(#\s+)?(\$ )?(\S*/)?(penstock|here|docker|kubectl|sudo) ", line)]
    for line in [*blocks, *re.findall(r"`([^`]+)`", re.sub(r"\s*\n#?\s*", " ", text))]:
        for found in re.finditer(r"(?:^|[\s/('])(?:penstock|here) ([a-z].*)", line):
            yield re.split(r"\s[|>&;]|\$\(|\)|'$", found[1])[0].strip()


def commands() -> Iterator[tuple[str, list[str]]]:
    services = yaml.safe_load((DEPLOY / "compose.yaml").read_text())["services"]
    for name, service in services.items():
        if service["image"].startswith("penstock:"):
            yield f"compose: {name}", service["command"]
        for line in in_text(" ".join(service.get("healthcheck", {}).get("test", [""])[1:])):
            yield f"compose: health of {name}", shlex.split(line)
    for name in ("Dockerfile", "Dockerfile.cuda"):
        yield name, yaml.safe_load(re.findall(r"^CMD (.*)", (DEPLOY / name).read_text(), re.MULTILINE)[-1])
    for document in chart_documents():
        if document["kind"] == "Deployment":
            (container,) = document["spec"]["template"]["spec"]["containers"]
            yield f"chart: {document['metadata']['name']}", container["args"]
            for line in in_text(container["readinessProbe"].get("exec", {}).get("command", [""])[-1]):
                yield f"chart: readiness of {document['metadata']['name']}", shlex.split(line)
    for path in (DEPLOY / "systemd").iterdir():
        text = re.sub(r"\\\n\s*", "", path.read_text())
        for line in re.findall(r"^ExecStart=\S*/penstock (.*)", text, re.MULTILINE):
            yield f"systemd: {path.name}", shlex.split(re.sub(r"\$\{\w+\}", "nats://nats-1:4222", line))
    told = ["README.md", "penstock.toml", "Dockerfile", "compose.yaml", "prometheus/alerts.yml"]
    told += ["chart/values.yaml", "chart/templates/NOTES.txt"]
    for name in told:
        for line in in_text((DEPLOY / name).read_text()):
            yield name, shlex.split(line)


ALL_COMMANDS = list(commands()) if DEPLOY.is_dir() else []


@pytest.mark.parametrize("place, words", ALL_COMMANDS, ids=[f"{place}: {words[0]}" for place, words in ALL_COMMANDS])
def test_the_command_line_takes_what_deploy_gives_it(place: str, words: list[str]) -> None:
    try:
        main._parser().parse_args(main._joined([word.rstrip(",.;:") for word in words]))
    except UserError as error:
        if len(words) == 1 and "arguments are required" in str(error):
            return  # it only names the command
        pytest.fail(f"{place}: penstock {' '.join(words)}: {error}")


def test_commands_are_found_wherever_they_stand() -> None:
    places = " ".join(place for place, _ in ALL_COMMANDS)
    for each in ("compose: node", "health of worker", "chart: penstock-node", "readiness", "cluster.conf", "README"):
        assert each in places, each
    assert {"serve", "worker", "nodes", "streams", "token", "answers", "keys"} <= {
        words[0] for _, words in ALL_COMMANDS
    }


# --- metrics ---------------------------------------------------------------------------------------------------------


def exported() -> tuple[set[str], set[str]]:
    """Names and labels as a node exports them, of a worker that has something to say of everything."""
    took = ServiceTime(batch_size=1, num=1, mean_s=1.0, max_s=1.0, num_within=(1,))
    pool = PoolSignals("a/b/c", "thread", "cpu", 1, 1, 1, 1, 1, 1, queue_wait_s=1.0, service_times=(took,))
    stream = StreamSignals("s", num_waiting=1, lag_s=1.0, gaps={"late": 1})
    source = SourceState(stream="s", state="live", since_ns=1)
    text = metrics.exposition([WorkerSignals("w", "n", 1, (pool,), (stream,))], [source], (), {"cores": 1}).decode()
    samples = re.findall(r"^(\w+)(?:\{(.*)\})? ", text, re.MULTILINE)
    return {name for name, _ in samples}, {label for _, of in samples for label in re.findall(r"(\w+)=", of)}


def queries() -> Iterator[tuple[str, str]]:
    for path in ("prometheus/rules.yml", "prometheus/alerts.yml"):
        for group in yaml.safe_load((DEPLOY / path).read_text())["groups"]:
            for rule in group["rules"]:
                yield f"{path}: {rule.get('record') or rule['alert']}", rule["expr"]
    board = json.loads((DEPLOY / "grafana/dashboards/penstock.json").read_text())
    for panel in board["panels"]:
        for target in panel.get("targets", ()):
            yield f"board: {panel['title']}", target["expr"]
    for variable in board["templating"]["list"]:
        if variable["type"] == "query":
            yield f"board: ${variable['name']}", variable["query"]["query"]
    for document in chart_documents():
        if document["kind"] == "ScaledObject":
            for trigger in document["spec"]["triggers"]:
                yield f"{document['metadata']['name']}: {trigger['name']}", trigger["metadata"]["query"]


ALL_QUERIES = list(queries()) if DEPLOY.is_dir() else []
WORDS = {"absent", "and", "by", "changes", "count", "histogram_quantile", "label_values", "max", "or", "rate", "sum"}
WORDS |= {"topk", "unless", "up"}


def names_in(query: str) -> set[str]:
    bare = re.sub(r'"[^"]*"|\[[^\]]*\]', " ", query)
    return {name for name in re.findall(r"[a-zA-Z_:][\w:]*", bare) if name not in WORDS}


@pytest.mark.parametrize("place, query", ALL_QUERIES, ids=[place for place, _ in ALL_QUERIES])
def test_queries_ask_for_what_a_node_exports(place: str, query: str) -> None:
    names, labels = exported()
    groups = yaml.safe_load((DEPLOY / "prometheus/rules.yml").read_text())["groups"]
    recorded = {rule["record"] for group in groups for rule in group["rules"]}
    boards_own = {"pool", "stream"}
    assert names_in(query) <= names | recorded | labels | boards_own | {"le", "job", "instance"}, place


def test_names_that_no_node_exports_are_found() -> None:
    names, labels = exported()
    known = names | labels
    assert names_in('max by (pool) (penstock_queue_wait_seconds{worker="w"})') - known == {
        "penstock_queue_wait_seconds"
    }
    assert {metrics.name_of(metric) for metric in conventions.METRICS if metric.kind == "gauge"} - names == {
        "messaging_process_duration_seconds"  # a histogram
    }


# --- variables -------------------------------------------------------------------------------------------------------


def test_variables_are_read_by_somebody() -> None:
    packages = [path for name in ("streams", "engine", "operators", "penstock") for path in (ROOT / name).rglob("*.py")]
    code = "\n".join(path.read_text() for path in packages)
    made = {"nats", "secrets", "data", "whisper"}  # by an operator
    files = [path for path in DEPLOY.rglob("*") if path.is_file() and path.relative_to(DEPLOY).parts[0] not in made]
    said = {name for path in files for name in re.findall(r"\b(?:PENSTOCK|OTEL)_[A-Z_]+\b", path.read_text())}
    streams = {"PENSTOCK_DEAD"}
    unknown = {name for name in said - OURS - streams if f'"{name}"' not in code}
    assert not unknown
