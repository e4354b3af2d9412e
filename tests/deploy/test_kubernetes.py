"""The Helm chart and the kustomizations: rendered, valid for Kubernetes, and in step with the server's flags, routes and ports."""

import functools
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from go_template import parse, render_chart

from quire.cli.args import Parser
from quire.cli.args import parse as parse_words
from quire.config import EngineArgs
from quire.server.health import router
from quire.server.options import ServerArgs
from quire.version import __version__

DEPLOY = Path(__file__).parents[2] / "deploy"
CHART = DEPLOY / "helm" / "quire"
VERSIONS = ("1.25.0", "1.37.0")
FOREIGN = "ServiceMonitor"  # of the Prometheus operator, whose schema is not Kubernetes'
EVERYTHING: dict[str, Any] = {
    "model": "Qwen/Qwen2.5-7B-Instruct",
    "image": {"tag": "cuda"},
    "imagePullSecrets": [{"name": "registry"}],
    "extraArgs": ["--max-model-len", "16k", "--served-model-name", "a b", "--seed", 7],
    "env": [{"name": "HF_ENDPOINT", "value": "https://hf-mirror.com"}],
    "apiKey": {"existingSecret": "keys"},
    "hfToken": {"existingSecret": "hub", "key": "hf"},
    "resources": {"limits": {"nvidia.com/gpu": 1}},
    "nodeSelector": {"gpu": "h200"},
    "tolerations": [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}],
    "affinity": {"podAntiAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": []}},
    "runtimeClassName": "nvidia",
    "podAnnotations": {"note": "yes"},
    "persistence": {"enabled": True, "storageClass": "fast"},
    "ingress": {"enabled": True, "className": "nginx", "tlsSecret": "tls", "annotations": {"a/b": "off"}},
    "autoscaling": {"enabled": True},
    "serviceMonitor": {"enabled": True, "labels": {"release": "prometheus"}},
}
CASES: dict[str, dict[str, Any]] = {
    "defaults": {},
    "everything": EVERYTHING,
    "existing claim": {"persistence": {"enabled": True, "existingClaim": "models"}},
    "plain ingress": {"ingress": {"enabled": True}},
}


@functools.cache
def objects(case: str) -> dict[str, dict[str, Any]]:
    """Objects by kind."""
    texts = render_chart(CHART, "llm", CASES[case])
    found = [yaml.safe_load(text) for name, text in texts.items() if name.endswith(".yaml")]
    return {entry["kind"]: entry for entry in found if entry}


def container(deployment: dict[str, Any]) -> dict[str, Any]:
    (found,) = deployment["spec"]["template"]["spec"]["containers"]
    return found


def check(entry: dict[str, Any]) -> None:
    for version in VERSIONS:
        if entry["kind"] != FOREIGN:
            kubernetes_validate.validate(entry, version, strict=True)


@pytest.mark.parametrize("case", CASES)
def test_the_chart_is_valid_kubernetes(case):
    kinds = {"Deployment", "Service"}
    kinds |= {"PersistentVolumeClaim", "Ingress", "HorizontalPodAutoscaler", FOREIGN} if case == "everything" else set()
    kinds |= {"Ingress"} if case == "plain ingress" else set()
    assert set(objects(case)) == kinds
    for entry in objects(case).values():
        check(entry)


@pytest.mark.parametrize("case", CASES)
def test_the_pods_arguments_start_a_server(case):
    values = CASES[case]
    deployment = objects(case)["Deployment"]
    words = container(deployment)["args"]
    assert all(isinstance(word, str) for word in words)
    (engine, server), _ = parse_words(Parser(prog="test"), words, [EngineArgs, ServerArgs])
    assert engine.model == values.get("model") and server.log_format == "json"
    grace_s = deployment["spec"]["template"]["spec"]["terminationGracePeriodSeconds"]
    assert server.shutdown_timeout == grace_s - 10
    if case == "everything":
        assert (engine.max_model_len, engine.seed, server.served_model_name) == ("16k", 7, ["a b"])


def probed(found: dict[str, Any]) -> dict[str, str]:
    return {name: found[f"{name}Probe"]["httpGet"]["path"] for name in ("startup", "readiness", "liveness")}


def test_probes_ask_routes_that_there_are_for_long_enough():
    found = container(objects("defaults")["Deployment"])
    assert probed(found) == {"startup": "/health", "readiness": "/ready", "liveness": "/version"}
    assert set(probed(found).values()) <= {route.path for route in router.routes}
    startup = found["startupProbe"]
    assert startup["periodSeconds"] * startup["failureThreshold"] >= 20 * 60
    assert found["ports"] == [{"name": "http", "containerPort": ServerArgs().port}]


def test_service_monitor_and_autoscaler_find_the_pods():
    found = objects("everything")
    labels = found["Deployment"]["spec"]["template"]["metadata"]["labels"]
    assert found["Service"]["spec"]["selector"] == found["Deployment"]["spec"]["selector"]["matchLabels"] == labels
    assert labels.items() <= found["Service"]["metadata"]["labels"].items()
    assert found[FOREIGN]["spec"]["selector"]["matchLabels"] == labels
    assert found["HorizontalPodAutoscaler"]["spec"]["scaleTargetRef"]["name"] == found["Deployment"]["metadata"]["name"]
    assert "replicas" not in found["Deployment"]["spec"] and objects("defaults")["Deployment"]["spec"]["replicas"] == 1
    assert found["Ingress"]["spec"]["rules"][0]["http"]["paths"][0]["backend"]["service"]["name"] == "llm"


def test_secrets_are_referred_to_and_never_written():
    names = {e["name"]: e for e in container(objects("everything")["Deployment"])["env"]}
    assert names["QUIRE_API_KEY"]["valueFrom"]["secretKeyRef"] == {"name": "keys", "key": "api-key"}
    assert names["HF_TOKEN"]["valueFrom"]["secretKeyRef"] == {"name": "hub", "key": "hf"}
    assert names["HF_ENDPOINT"]["value"] == "https://hf-mirror.com"
    assert not any("Secret" == kind for case in CASES for kind in objects(case))


def test_models_are_kept_where_the_claim_says():
    def claim(case: str) -> Any:
        volumes = objects(case)["Deployment"]["spec"]["template"]["spec"]["volumes"]
        return {v["name"]: v for v in volumes}["models"]

    assert "emptyDir" in claim("defaults")
    assert claim("everything")["persistentVolumeClaim"]["claimName"] == "llm"
    assert claim("existing claim")["persistentVolumeClaim"]["claimName"] == "models"
    assert objects("everything")["PersistentVolumeClaim"]["spec"]["storageClassName"] == "fast"


def test_every_value_is_used_and_explained():
    text = (CHART / "values.yaml").read_text(encoding="utf-8")
    templates = "".join(path.read_text(encoding="utf-8") for path in (CHART / "templates").iterdir())
    used = set(re.findall(r"\.Values\.([\w.]+)", templates))

    def leaves(value: Any, name: str) -> list[str]:
        plain = not isinstance(value, dict) or not value or name in used
        return [name] if plain else [leaf for key, inner in value.items() for leaf in leaves(inner, f"{name}.{key}")]

    values = yaml.safe_load(text)
    assert {leaf for key, value in values.items() for leaf in leaves(value, key)} == used - set(values) | used & set(
        values
    )
    assert text.count("#") >= 20


def test_versions_are_the_programs():
    about = yaml.safe_load((CHART / "Chart.yaml").read_text(encoding="utf-8"))
    assert about["appVersion"] == about["version"] == __version__
    assert container(objects("defaults")["Deployment"])["image"] == f"quire:{__version__}"


def test_the_renderer_refuses_what_it_does_not_know():
    with pytest.raises(ValueError, match="not closed"):
        parse("{{ if .a }}", {})
    with pytest.raises(ValueError, match="nothing is open"):
        parse("{{ end }}", {})
    for path in (CHART / "templates").iterdir():
        parse(path.read_text(encoding="utf-8"), {})


@pytest.mark.skipif(shutil.which("helm") is None, reason="helm is not installed: the suite's own renderer stands alone")
@pytest.mark.parametrize("case", CASES)
def test_helm_renders_the_same(case, tmp_path):
    (values := tmp_path / "values.yaml").write_text(yaml.safe_dump(CASES[case]))
    words = ["helm", "template", "llm", str(CHART), "--values", str(values)]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    found = {entry["kind"]: entry for entry in yaml.safe_load_all(done.stdout) if entry}
    assert found == objects(case)
    subprocess.run(["helm", "lint", "--strict", str(CHART), "--values", str(values)], check=True)


def kustomized(name: str) -> list[dict[str, Any]]:
    words = ["kustomize", "build"] if shutil.which("kustomize") else ["kubectl", "kustomize"]
    done = subprocess.run([*words, str(DEPLOY / "kustomize" / name)], capture_output=True, text=True, check=True)
    return list(yaml.safe_load_all(done.stdout))


@pytest.mark.skipif(
    not (shutil.which("kustomize") or shutil.which("kubectl")),
    reason="kubectl (Debian: kubernetes-client) is not installed",
)
@pytest.mark.parametrize(
    ("name", "model", "tag"), [("base", "builtin:tiny", "cpu"), ("gpu", "Qwen/Qwen2.5-7B-Instruct", "cuda")]
)
def test_kustomizations(name, model, tag):
    found = {entry["kind"]: entry for entry in kustomized(name)}
    assert set(found) == {"Deployment", "Service", "PersistentVolumeClaim"}
    for entry in found.values():
        check(entry)
    pod = container(found["Deployment"])
    (engine, server), _ = parse_words(Parser(prog="test"), pod["args"], [EngineArgs, ServerArgs])
    assert engine.model == model and pod["image"] == f"quire:{tag}" and server.shutdown_timeout == 50
    assert ("nvidia.com/gpu" in pod["resources"]["limits"]) == (name == "gpu")
    labels = found["Deployment"]["spec"]["template"]["metadata"]["labels"]
    assert found["Service"]["spec"]["selector"].items() <= labels.items()
    assert found["Deployment"]["spec"]["selector"]["matchLabels"].items() <= labels.items()


def test_chart_and_kustomization_ask_the_same_probes():
    plain = yaml.safe_load((DEPLOY / "kustomize" / "base" / "deployment.yaml").read_text(encoding="utf-8"))
    charts = container(objects("defaults")["Deployment"])
    for name in ("startupProbe", "readinessProbe", "livenessProbe", "securityContext", "ports", "volumeMounts"):
        assert container(plain)[name] == charts[name]
    names = {e["name"]: e["valueFrom"]["secretKeyRef"]["optional"] for e in container(plain)["env"] if "valueFrom" in e}
    assert names == {"QUIRE_API_KEY": True, "HF_TOKEN": True}
