"""The chart: what it takes, and that what it makes of it fits together."""

import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from penstock.tokens import OPEN

yaml = pytest.importorskip("yaml")
jsonschema = pytest.importorskip("jsonschema")
from deploy.go_templates import Failed, merged, rendered  # noqa: E402 - it needs yaml

CHART = Path(__file__).parents[2] / "deploy" / "chart"
pytestmark = pytest.mark.skipif(not CHART.is_dir(), reason="deploy/ is not beside these tests: a wheel is tested")

Document = dict[str, Any]
ALL = {
    "config": "[access]\ndevices = false\n",
    "tracesEndpoint": "http://jaeger:4318/v1/traces",
    "http": {"hosts": ["penstock.example", "box"]},
    "imagePullSecrets": [{"name": "pull"}],
    "serviceAccount": {"annotations": {"a": "b"}},
    "podMonitor": {"enabled": True, "labels": {"release": "prometheus"}},
    "prometheus": {"authenticationRef": "prometheus"},
    "node": {"env": [{"name": "PENSTOCK_WEBHOOK_SECRET", "value": "x"}], "nodeSelector": {"a": "b"}},
    "networkPolicy": {"from": [{"namespaceSelector": {"matchLabels": {"a": "b"}}}], "cidrs": []},
    "workers": {
        "cpu": {"autoscaling": {"enabled": True}},
        "gpu": {"enabled": True, "whisperClaim": "whisper", "autoscaling": {"enabled": True}},
    },
}
WAYS: list[tuple[str, Document]] = [
    ("penstock", {}),
    ("site", ALL),
    ("site", {"configSecretName": "mine", "nats": {"secretName": ""}, "networkPolicy": {"enabled": False}}),
]
ways = pytest.mark.parametrize("release, values", WAYS, ids=["as it comes", "all of it", "little of it"])


def documents(values: Document, release: str = "penstock") -> Iterator[Document]:
    for text in rendered(CHART, values, release).values():
        yield from filter(None, yaml.safe_load_all(text))


def by_kind(values: Document, release: str) -> dict[str, dict[str, Document]]:
    found: dict[str, dict[str, Document]] = {}
    for document in documents(values, release):
        same_kind = found.setdefault(document["kind"], {})
        assert same_kind.setdefault(document["metadata"]["name"], document) is document, "a name twice"
    return found


@pytest.fixture(scope="module")
def schema() -> Any:
    made = json.loads((CHART / "values.schema.json").read_text())
    jsonschema.Draft7Validator.check_schema(made)
    return jsonschema.Draft7Validator(made)


@ways
def test_the_schema_takes_what_suits(schema: Any, release: str, values: Document) -> None:
    schema.validate(merged(yaml.safe_load((CHART / "values.yaml").read_text()), values))


@pytest.mark.parametrize(
    "values",
    [
        {"replicas": 3},
        {"node": {"replica": 3}},
        {"node": {"workers": 65}},
        {"nats": {"url": "nats-1:4222"}},
        {"nats": {"url": "nats://a:4222, nats://b:4222"}},
        {"http": {"tokenSecretName": ""}},
        {"workers": {"cpu": {"autoscaling": {"min": 0}}}},
        {"workers": {"cpu": {"autoscaling": {"maxQueueWaitSeconds": "0.5"}}}},
        {"networkPolicy": {"cidrs": ["10.20.0.0"]}},
    ],
    ids=str,
)
def test_the_schema_refuses_what_does_not(schema: Any, values: Document) -> None:
    assert not schema.is_valid(merged(yaml.safe_load((CHART / "values.yaml").read_text()), values))


def test_a_configuration_is_given_once() -> None:
    with pytest.raises(Failed):
        list(documents({"config": "x", "configSecretName": "y"}))


@ways
def test_pods_are_hardened_probed_and_mount_what_is_there(release: str, values: Document) -> None:
    kinds = by_kind(values, release)
    for deployment in kinds["Deployment"].values():
        pod = deployment["spec"]["template"]["spec"]
        (container,) = pod["containers"]
        assert pod["securityContext"]["runAsNonRoot"] and not pod["automountServiceAccountToken"]
        assert pod["serviceAccountName"] in kinds["ServiceAccount"]
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        assert not {"hostNetwork", "hostPID", "hostIPC"} & set(pod)
        assert "memory" in container["resources"]["limits"] and "cpu" not in container["resources"]["limits"]
        assert {mount["name"] for mount in container["volumeMounts"]} == {volume["name"] for volume in pod["volumes"]}
        for volume in pod["volumes"]:
            if "configMap" in volume:
                assert "penstock.toml" in kinds["ConfigMap"][volume["configMap"]["name"]]["data"]
        names = [each["name"] for each in container["env"]]
        assert len(names) == len(set(names))
        probes = [probe for name, probe in container.items() if name.endswith("Probe")]
        paths = {probe["httpGet"]["path"] for probe in probes if "httpGet" in probe}
        assert probes and paths <= OPEN, "a probe needs a path that is open to all"


@ways
def test_what_selects_pods_selects_some(release: str, values: Document) -> None:
    kinds = by_kind(values, release)
    pods = [each["spec"]["template"]["metadata"]["labels"] for each in kinds["Deployment"].values()]
    selectors = [each["spec"]["selector"]["matchLabels"] for each in kinds["Deployment"].values()]
    assert [sum(chosen.items() <= pod.items() for pod in pods) for chosen in selectors] == [1] * len(pods)
    others = [each["spec"]["selector"] for each in kinds["Service"].values()]
    for kind in ("PodDisruptionBudget", "PodMonitor"):
        others += [each["spec"]["selector"]["matchLabels"] for each in kinds.get(kind, {}).values()]
    others += [each["spec"]["podSelector"]["matchLabels"] for each in kinds.get("NetworkPolicy", {}).values()]
    for chosen in others:
        assert any(chosen.items() <= pod.items() for pod in pods), chosen
    (service,) = kinds["Service"].values()
    (node,) = (each for name, each in kinds["Deployment"].items() if name.endswith("-node"))
    ports = {port["name"] for port in node["spec"]["template"]["spec"]["containers"][0]["ports"]}
    assert {port["targetPort"] for port in service["spec"]["ports"]} <= ports


def test_workers_are_scaled_by_how_long_items_wait_and_never_to_none() -> None:
    kinds = by_kind(ALL, "site")
    assert len(kinds["ScaledObject"]) == 2
    for scaled in kinds["ScaledObject"].values():
        spec = scaled["spec"]
        target = kinds["Deployment"][spec["scaleTargetRef"]["name"]]
        assert "replicas" not in target["spec"], "Helm would set it back at each upgrade"
        assert spec["minReplicaCount"] >= 1
        first, second = spec["triggers"]
        assert "penstock_pool_queue_wait_seconds" in first["metadata"]["query"] and first["metricType"] == "Value"
        assert "messaging_process_duration_seconds_sum" in second["metadata"]["query"]
        assert second["metricType"] == "AverageValue"
        assert all(trigger["metadata"]["ignoreNullValues"] == "false" for trigger in spec["triggers"])
    assert all("replicas" in each["spec"] for each in by_kind({}, "penstock")["Deployment"].values())


def test_a_worker_gets_the_workers_key_and_no_other() -> None:
    for name, deployment in by_kind({}, "penstock")["Deployment"].items():
        (nats,) = (each for each in deployment["spec"]["template"]["spec"]["volumes"] if each["name"] == "nats")
        keys = {item["key"] for item in nats["secret"]["items"]}
        assert keys == {"ca.pem", "node.nk" if name.endswith("-node") else "worker.nk"}


@ways
def test_helm_makes_the_same_of_it(release: str, values: Document, tmp_path: Path) -> None:
    helm = shutil.which("helm") or pytest.skip("helm is not installed")
    (tmp_path / "values.yaml").write_text(yaml.safe_dump(values))
    command = [helm, "template", release, str(CHART), "--namespace", "video", "--values", str(tmp_path / "values.yaml")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr

    def named(of: Iterator[Document]) -> dict[tuple[str, str], Document]:
        return {(each["kind"], each["metadata"]["name"]): each for each in of}

    assert named(filter(None, yaml.safe_load_all(done.stdout))) == named(documents(values, release))
