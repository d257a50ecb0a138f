"""What stands in deploy/ is well formed, pinned, hardened and complete; each rule is seen to find what breaks it."""

import json
import re
import shutil
import subprocess
import tomllib
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import pytest

from engine.spec.access import Access
from engine.spec.stream import checked
from penstock.node import load_config
from streams.media.addresses import kind_of
from streams.media.references import as_if_filled_in

yaml = pytest.importorskip("yaml")

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
pytestmark = pytest.mark.skipif(not DEPLOY.is_dir(), reason="deploy/ is not beside these tests: a wheel is tested")

DOCKERFILES = ["Dockerfile", "Dockerfile.cuda"]
PINNED = re.compile(r"[a-z0-9./-]+:[\w.-]*\d[\w.-]*")
BINARIES = {"nats-server", "wget", "python", "penstock", "tini"}
MADE_BY_THE_OPERATOR = ("./nats/", "./secrets/", "./data/", "./whisper")


def run(*command: str | Path) -> str:
    done = subprocess.run(list(map(str, command)), cwd=DEPLOY, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def ours() -> list[Path]:
    """The files, but for what an operator makes beside them."""
    found = (path for path in sorted(DEPLOY.rglob("*")) if path.is_file())
    return [path for path in found if path.relative_to(DEPLOY).parts[0] not in ("nats", "secrets", "data", "whisper")]


def program(name: str) -> str:
    found = shutil.which(name)
    return found or pytest.skip(f"{name} is not installed")


# --- YAML, JSON, TOML ------------------------------------------------------------------------------------------------


class Strict(yaml.SafeLoader):
    """Refuses a key that stands twice in one mapping: the last one would win."""


def _mapping(loader: Any, node: Any, deep: bool = False) -> Any:
    keys = [key.value for key, _ in node.value]
    twice = {key for key in keys if keys.count(key) > 1}
    assert not twice, f"{node.start_mark}: {twice} twice"
    return yaml.SafeLoader.construct_mapping(loader, node, deep)


def _construct(loader: Any, node: Any) -> Iterator[Any]:
    made: dict[Any, Any] = {}
    yield made
    _mapping(loader, node)
    loader.flatten_mapping(node)
    made.update(yaml.SafeLoader.construct_mapping(loader, node))


Strict.add_constructor("tag:yaml.org,2002:map", _construct)


def of_kind(*suffixes: str) -> list[Path]:
    found = (path for path in ours() if path.suffix in suffixes and "templates" not in path.parts)
    return [path.relative_to(DEPLOY) for path in found]


@pytest.mark.parametrize("path", of_kind(".yaml", ".yml", ".json"), ids=str)
def test_yaml_and_json_can_be_read_and_say_nothing_twice(path: Path) -> None:
    assert list(yaml.load_all((DEPLOY / path).read_text(), Strict))


def test_no_file_names_the_host_of_a_package_index() -> None:
    hosts = re.compile(r"index-url|pypi|npmjs|pythonhosted|://[^\s]*/simple", re.IGNORECASE)
    assert [path.name for path in ours() if hosts.search(path.read_text())] == []


def test_the_cameras_configuration_is_read_by_the_node_itself() -> None:
    config = load_config(DEPLOY / "penstock.toml")
    assert len(config.streams) == 20
    assert not any("password" in stream.url for stream in config.streams.values())  # they stand elsewhere
    assert {kind_of(as_if_filled_in(stream.url)) for stream in config.streams.values()} == {"rtsp", "srt", "hls"}
    for name, stream in config.streams.items():
        checked(stream.spec(name))
        assert stream.max_lag_s >= 3 * stream.segment_s or stream.policy == "durable", name
    assert {job.stream for job in config.jobs.values()} <= set(config.streams)
    assert all(job.asks for job in config.jobs.values())
    assert Access(networks=config.access.networks).allows("10.20.1.11")


def test_the_cuda_lock_has_what_the_extra_asks_for_by_hash() -> None:
    lock = (DEPLOY / "requirements-cuda.lock").read_text()
    names = re.findall(r"^([\w.-]+)==\S+ \\$", lock, re.MULTILINE)
    assert lock.count("--hash=sha256:") >= len(names)
    assert "://" not in lock
    extra = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]["gpu"]
    assert {re.split(r"[<>=!~]", wanted)[0] for wanted in extra} <= set(names)
    locked = re.findall(r"^([\w.-]+)==", (ROOT / "requirements.lock").read_text(), re.MULTILINE)
    assert not set(names) & set(locked), "pip refuses what two locks pin"


# --- images ----------------------------------------------------------------------------------------------------------


def instructions(text: str) -> list[tuple[str, str]]:
    joined = re.sub(r"\\\n", " ", "\n".join(line for line in text.splitlines() if not line.startswith("#")))
    return [(word, rest.strip()) for word, _, rest in (line.partition(" ") for line in joined.splitlines()) if word]


def faults_of_image(text: str) -> set[str]:
    found = set()
    lines = instructions(text)
    stages = {rest.split()[-1] for word, rest in lines if word == "FROM" and " AS " in rest}
    last = dict(lines)
    for word, rest in lines:
        image = rest.split()[0] if rest else ""
        if word == "FROM" and image not in stages and (not PINNED.fullmatch(image) or ":latest" in image):
            found.add("a base is not pinned")
        if word == "RUN" and "apt-get install" in rest:
            if "--no-install-recommends" not in rest or " -y " not in rest:
                found.add("apt-get installs what nobody asked for")
            if "rm -rf /var/lib/apt/lists" not in rest:
                found.add("apt-get's lists stay in the image")
        if word == "RUN" and "pip install" in rest:
            if "--no-cache-dir" not in rest or "--no-deps" not in rest:
                found.add("pip installs what the lock does not name, or keeps its cache")
            if "-r " in rest and "--require-hashes" not in rest:
                found.add("a lock is installed without its hashes")
        if word in ("ADD", "MAINTAINER"):
            found.add(f"{word} where there is better")
        if word in ("CMD", "ENTRYPOINT") and not rest.startswith("["):
            found.add(f"{word} runs a shell, which passes no signal on")
        if word == "WORKDIR" and not rest.startswith("/"):
            found.add("a relative WORKDIR")
    if last.get("USER", "root").split(":")[0] in ("root", "0"):
        found.add("it runs as root")
    if "HEALTHCHECK" not in last or "CMD [" not in last["HEALTHCHECK"]:
        found.add("no health check, or one by a shell")
    return found


@pytest.mark.parametrize("name", DOCKERFILES)
def test_images_keep_the_rules(name: str) -> None:
    text = (DEPLOY / name).read_text()
    assert faults_of_image(text) == set()
    sources = [rest.split()[:-1] for word, rest in instructions(text) if word == "COPY" and "--from" not in rest]
    allowed = (DEPLOY / f"{name}.dockerignore").read_text().splitlines()
    for source in chain.from_iterable(sources):
        assert (ROOT / source).exists(), source
        assert f"!{source}" in allowed, f"{source} is left out of the context"


@pytest.mark.parametrize(
    "old, new, fault",
    [
        ("python:3.13.7-slim-bookworm AS", "python:latest AS", "a base is not pinned"),
        ("python:3.13.7-slim-bookworm\n", "python\n", "a base is not pinned"),
        ("--no-install-recommends ", "", "apt-get installs what nobody asked for"),
        ("&& rm -rf /var/lib/apt/lists/* ", "", "apt-get's lists stay in the image"),
        ("--require-hashes ", "", "a lock is installed without its hashes"),
        ("USER 10001:10001\n", "", "it runs as root"),
        ("USER 10001:10001", "USER root", "it runs as root"),
        ('ENTRYPOINT ["tini", "--", "penstock"]', "ENTRYPOINT penstock", "ENTRYPOINT runs a shell"),
        ('CMD ["python"', "CMD python", "no health check"),
    ],
)
def test_the_rules_for_images_find_what_breaks_them(old: str, new: str, fault: str) -> None:
    text = (DEPLOY / "Dockerfile").read_text()
    assert old in text
    assert any(found.startswith(fault) for found in faults_of_image(text.replace(old, new)))


def test_hadolint_finds_nothing() -> None:
    run(program("hadolint"), *DOCKERFILES)


# --- compose ---------------------------------------------------------------------------------------------------------


def compose() -> dict[str, Any]:
    return yaml.load((DEPLOY / "compose.yaml").read_text(), Strict)


def faults_of_service(name: str, service: dict[str, Any], whole: dict[str, Any]) -> set[str]:
    found = set()
    if not PINNED.fullmatch(service["image"]) or service["image"].endswith(":latest"):
        found.add("its image is not pinned")
    if service.get("privileged") or service.get("network_mode") or service.get("pid") or service.get("cap_add"):
        found.add("it may more than it needs")
    hardened = {"read_only": True, "cap_drop": ["ALL"], "security_opt": ["no-new-privileges:true"]}
    if any(service.get(key) != value for key, value in hardened.items()):
        found.add("it is not hardened")
    if str(service.get("user", "0")).split(":")[0] in ("0", "root"):
        found.add("it runs as root")
    limits = service.get("deploy", {}).get("resources", {}).get("limits", {})
    if not {"cpus", "memory", "pids"} <= set(limits):
        found.add("it has no limits")
    if service.get("restart") != "unless-stopped" or "stop_grace_period" not in service:
        found.add("nothing is said of its end")
    for port in service.get("ports", ()):
        if not port.startswith("127.0.0.1:") and name != "node":
            found.add(f"port {port} is open to others")
    check = service.get("healthcheck", {}).get("test")
    if check is None and name != "node":  # whose image has one
        found.add("it has no health check")
    elif check and (check[0] not in ("CMD", "CMD-SHELL") or check[1].split()[0] not in BINARIES):
        found.add("its health check runs nothing known")
    for volume in service.get("volumes", ()):
        source = volume.split(":")[0]
        if source.startswith(".") and not source.startswith(MADE_BY_THE_OPERATOR) and not (DEPLOY / source).exists():
            found.add(f"{source} is not there")
        if not source.startswith(".") and source not in whole["volumes"]:
            found.add(f"volume {source} is not declared")
    used = [each if isinstance(each, str) else each["source"] for each in service.get("secrets", ())]
    if not set(used) <= set(whole["secrets"]) or not set(service["networks"]) <= set(whole["networks"]):
        found.add("a secret or a network is not declared")
    if not set(service.get("depends_on", ())) <= set(whole["services"]):
        found.add("it depends on what is not there")
    return found


@pytest.mark.parametrize("name", compose()["services"] if DEPLOY.is_dir() else ())
def test_services_of_compose_are_pinned_hardened_limited_and_whole(name: str) -> None:
    whole = compose()
    assert faults_of_service(name, whole["services"][name], whole) == set()


@pytest.mark.parametrize(
    "change, fault",
    [
        ({"image": "penstock:latest"}, "its image is not pinned"),
        ({"privileged": True}, "it may more"),
        ({"user": "0:0"}, "it runs as root"),
        ({"read_only": False}, "it is not hardened"),
        ({"deploy": {}}, "it has no limits"),
        ({"restart": "no"}, "nothing is said of its end"),
        ({"ports": ["8080:8080"]}, "port 8080:8080 is open"),
        ({"healthcheck": {"test": ["CMD", "curl", "http://x"]}}, "its health check runs nothing"),
        ({"volumes": ["./gone.toml:/x:ro"]}, "./gone.toml is not there"),
        ({"secrets": ["other"]}, "a secret or a network"),
    ],
)
def test_the_rules_for_services_find_what_breaks_them(change: dict[str, Any], fault: str) -> None:
    whole = compose()
    found = faults_of_service("worker", {**whole["services"]["worker"], **change}, whole)
    assert any(each.startswith(fault) for each in found)


def test_compose_has_a_cluster_of_three_and_what_the_readme_has_the_operator_make() -> None:
    whole = compose()
    servers = [name for name, service in whole["services"].items() if service["image"].startswith("nats:")]
    assert servers == ["nats-1", "nats-2", "nats-3"]
    url = ",".join(f"nats://{name}:4222" for name in servers)
    assert whole["x-environment"]["PENSTOCK_NATS"] == url
    for name in ("node", "worker", "worker-gpu"):
        assert url in whole["services"][name]["command"]
    for name in servers:
        assert f"/etc/nats/{name}.conf" in whole["services"][name]["command"]
        assert f"./nats/{name}.conf:/etc/nats/{name}.conf:ro" in whole["services"][name]["volumes"]
    readme = (DEPLOY / "README.md").read_text()
    folders = {f"data/{name}" for name in servers} | {"data/prometheus", "whisper", "secrets/grafana.password"}
    assert all(each in readme for each in folders)
    assert whole["services"]["worker-gpu"]["profiles"] == ["gpu"]


def test_compose_itself_takes_it() -> None:
    if (alone := shutil.which("docker-compose")) is not None:
        command = [alone]
    else:
        command = [program("docker"), "compose"]
        if subprocess.run([*command, "version"], capture_output=True, check=False).returncode:
            pytest.skip("docker has no compose")
    run(*command, "-f", "compose.yaml", "--profile", "gpu", "config", "--quiet")


# --- systemd ---------------------------------------------------------------------------------------------------------

UNITS = ["penstock.service", "penstock-worker@.service"]


@pytest.mark.parametrize("unit", UNITS)
def test_units_say_what_starting_ending_and_the_sandbox_need(unit: str) -> None:
    said = (DEPLOY / "systemd" / unit).read_text().splitlines()
    for line in (
        "Type=exec",
        "User=penstock",
        "KillMode=mixed",  # the embedded server is left by the node, not killed beside it
        "SuccessExitStatus=130",
        "RestartPreventExitStatus=2",
        "Restart=on-failure",
        "NoNewPrivileges=yes",
        "ProtectSystem=strict",
        "CapabilityBoundingSet=",
        "SystemCallFilter=@system-service",
        "StateDirectoryMode=0700",
    ):
        assert line in said, line
    assert not any(line.startswith(("NotifyAccess=", "WatchdogSec=")) for line in said), "nobody notifies systemd"


def test_systemd_takes_the_units_with_and_without_their_drop_ins(tmp_path: Path) -> None:
    analyze = program("systemd-analyze")
    for unit, drop_in in zip(UNITS, ("cluster.conf", "gpu.conf"), strict=True):
        text = (DEPLOY / "systemd" / unit).read_text()
        (tmp_path / unit).write_text(text.replace("/opt/penstock/bin/penstock", "/bin/true"))
        assert "penstock" not in run(analyze, "verify", "--man=no", tmp_path / unit), "an unknown key only warns"
        (tmp_path / f"{unit}.d").mkdir()
        text = (DEPLOY / "systemd" / drop_in).read_text()
        (tmp_path / f"{unit}.d" / drop_in).write_text(text.replace("/opt/penstock/bin/penstock", "/bin/true"))
        assert "penstock" not in run(analyze, "verify", "--man=no", tmp_path / unit)


# --- Prometheus and Grafana ------------------------------------------------------------------------------------------


def test_promtool_takes_configuration_and_rules_and_the_rules_do_what_they_say(tmp_path: Path) -> None:
    promtool = program("promtool")
    for path in (DEPLOY / "prometheus").iterdir():
        text = path.read_text().replace("/run/secrets/http-token", str(tmp_path / "token"))
        (tmp_path / path.name).write_text(text)
    (tmp_path / "token").write_text("x" * 16)
    run(promtool, "check", "config", tmp_path / "prometheus.yml")
    run(promtool, "test", "rules", tmp_path / "alerts.test.yaml")


def test_the_board_has_panels_that_do_not_overlap_and_sources_that_are_there() -> None:
    board = json.loads((DEPLOY / "grafana/dashboards/penstock.json").read_text())
    ids = [panel["id"] for panel in board["panels"]]
    assert len(ids) == len(set(ids))
    taken: set[tuple[int, int]] = set()
    for panel in board["panels"]:
        at = panel["gridPos"]
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert not cells & taken and max(x for x, _ in cells) < 24, panel["title"]
        taken |= cells
        assert panel["type"] == "row" or (panel["description"] and panel["targets"]), panel["title"]
    provided = yaml.safe_load((DEPLOY / "grafana/provisioning/dashboards/dashboards.yaml").read_text())["providers"][0]
    mounts = [volume.split(":")[:2] for volume in compose()["services"]["grafana"]["volumes"]]
    assert ["./grafana/dashboards", provided["options"]["path"]] in mounts
    sources = yaml.safe_load((DEPLOY / "grafana/provisioning/datasources/datasources.yaml").read_text())["datasources"]
    assert {source["url"].split("/")[2].split(":")[0] for source in sources} <= set(compose()["services"])
