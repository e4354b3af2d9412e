"""Files for operators: every metric they name is exported, every flag exists; promtool and systemd read them where they are installed."""

import json
import re
import shlex
import shutil
import subprocess
from pathlib import Path, PurePosixPath

import pytest
import yaml

from quire.cli.args import Parser, parse
from quire.config import EngineArgs
from quire.core.params import SamplingParams
from quire.core.request import Request
from quire.engine.ipc import Stats
from quire.engine.times import Times
from quire.server.metrics import Metrics
from quire.server.options import ServerArgs

DEPLOY = Path(__file__).parents[2] / "deploy"
BOARD = json.loads((DEPLOY / "grafana" / "quire.json").read_text(encoding="utf-8"))
RULES = yaml.safe_load((DEPLOY / "prometheus" / "alerts.yml").read_text(encoding="utf-8"))["groups"][0]["rules"]
METRIC = re.compile(r"\b(?:vllm:\w+|http_requests_total)")


def exported() -> dict[str, set[str]]:
    """Labels of every series that /metrics has after a request."""
    metrics = Metrics("m")
    metrics.http("/v1/models", "GET", 200)
    request = Request("id", [1], SamplingParams(max_tokens=2, seed=1))
    metrics.finished(request, Times(0.0, 1.0), 2.0, 3.0, [2], ["stop"])
    text = metrics.render(Stats(), 0).decode()
    lines = re.findall(r"^([\w:]+)(?:\{(.*)\})? \S+$", text, re.M)
    return {name: set(re.findall(r'(\w+)="', labels)) for name, labels in lines}


def expressions() -> list[str]:
    targets = [target["expr"] for panel in BOARD["panels"] for target in panel.get("targets", ())]
    variables = [variable["definition"] for variable in BOARD["templating"]["list"] if "definition" in variable]
    return [*targets, *variables, *(rule["expr"] for rule in RULES)]


@pytest.mark.parametrize("expression", expressions())
def test_metrics_and_labels_exist(expression):
    series = exported()
    named = METRIC.findall(expression)
    assert (named or expression.startswith("up{")) and set(named) <= set(series)
    known = {"job", "instance", *(label for name in named for label in series[name])}
    used = set(re.findall(r"(\w+)=~?\"", expression))
    for group in re.findall(r"by \(([^)]*)\)", expression):
        used |= set(group.split(", "))
    assert used <= known


def test_panels_lie_side_by_side():
    places = [(x, y) for panel in BOARD["panels"] for x, y in cells(panel["gridPos"])]
    assert len(places) == len(set(places)) and all(x < 24 for x, _ in places)
    assert len({panel["id"] for panel in BOARD["panels"]}) == len(BOARD["panels"])


def cells(place: dict) -> list[tuple[int, int]]:
    columns, rows = range(place["x"], place["x"] + place["w"]), range(place["y"], place["y"] + place["h"])
    return [(x, y) for x in columns for y in rows]


def test_every_alert_says_what_to_do_with_flags_that_exist():
    for rule in RULES:
        assert rule["annotations"]["summary"] and rule["annotations"]["description"] and rule["labels"]["severity"]
        for flag in re.findall(r"--[a-z-]+", rule["annotations"]["description"]):
            name = flag[2:].replace("-", "_")
            assert name in EngineArgs.__dataclass_fields__ or name in ServerArgs.__dataclass_fields__, flag


@pytest.mark.parametrize("name", ["docker/Dockerfile.cpu", "docker/Dockerfile.cuda"])
def test_images_start_a_server(name):
    text = (DEPLOY / name).read_text(encoding="utf-8")
    entry = json.loads(re.search(r"^ENTRYPOINT (.*)$", text, re.M)[1])
    assert entry[:2] == ["quire", "serve"]
    (_, server), _ = parse(Parser(prog="test"), [*entry[2:], "builtin:tiny"], [EngineArgs, ServerArgs])
    assert server.host == "0.0.0.0" and f"EXPOSE {server.port}" in text
    assert f":{server.port}/health" in text
    assert text.index("USER quire") < text.index("ENTRYPOINT")


@pytest.mark.parametrize("name", ["docker/Dockerfile.cpu", "docker/Dockerfile.cuda"])
def test_folders_above_the_volumes_are_the_users(name):
    """What Docker has to make for a volume belongs to root, and ~/.cache is where compiled code is kept."""
    text = (DEPLOY / name).read_text(encoding="utf-8")
    above = {str(PurePosixPath(folder).parent) for folder in re.findall(r"^# .* -v [^: ]+:(\S+)", text, re.M)}
    assert above == {"/home/quire/.cache"}
    made = re.search(r"^RUN install -d -o quire -g quire (.*)$", text, re.M)[1].split()
    assert above <= set(made) and text.index("useradd") < text.index("RUN install") < text.index("USER quire")


def test_the_unit_starts_a_server():
    text = (DEPLOY / "systemd" / "quire.service").read_text(encoding="utf-8")
    program, command, *words = shlex.split(re.search(r"^ExecStart=(.*)$", text, re.M)[1])
    assert program.endswith("/quire") and command == "serve"
    (_, server), _ = parse(Parser(prog="test"), ["builtin:tiny", *words[1:]], [EngineArgs, ServerArgs])
    stop_s = int(re.search(r"^TimeoutStopSec=(\d+)$", text, re.M)[1])
    assert server.host == "127.0.0.1" and stop_s > 2 * server.shutdown_timeout


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool (Debian: prometheus) is not installed")
@pytest.mark.parametrize(
    "words", [["check", "config", "prometheus.yml"], ["test", "rules", "alerts_test.yml"]], ids=str
)
def test_promtool(words):
    done = subprocess.run(["promtool", *words], cwd=DEPLOY / "prometheus", capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not installed")
def test_systemd_reads_the_unit(tmp_path):
    text = (DEPLOY / "systemd" / "quire.service").read_text(encoding="utf-8")
    unit = tmp_path / "quire.service"
    unit.write_text(text.replace("/opt/quire/bin/quire", "/bin/true").replace("User=quire", "User=root"))
    done = subprocess.run(["systemd-analyze", "verify", str(unit)], capture_output=True, text=True, check=False)
    assert "quire.service" not in done.stderr, done.stderr
