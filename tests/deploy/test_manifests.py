"""The files of deploy/: valid for their own tools, and true of this server."""

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import httpx
import kubernetes_validate
import pytest
import yaml
from tests.runtime.serve.live import live

from s2ap_defend.commands.options import named_models
from s2ap_defend.commands.serve import serve
from s2ap_defend.serve import ServerConfig

DEPLOY = Path(__file__).parents[2] / "deploy"
SYSTEMD_ANALYZE = shutil.which("systemd-analyze")
STOP_S = 1.0  # that idle connections stay
DOCKERFILES = ("Dockerfile", "Dockerfile.cuda")


def documents(name: str) -> list[dict]:
    return list(yaml.safe_load_all((DEPLOY / name).read_text()))


def pod(name: str) -> dict:
    """The pod of a manifest."""
    first = documents(name)[0]
    return first["spec"]["predictor"] if first["kind"] == "InferenceService" else first["spec"]["template"]["spec"]


def unit() -> dict[str, str]:
    lines = (DEPLOY / "s2ap-defend.service").read_text().splitlines()
    return dict(line.split("=", 1) for line in lines if "=" in line and not line.startswith("#"))


def dockerfile_command(name: str) -> list[str]:
    return yaml.safe_load(re.search(r"^CMD (\[.*\])$", (DEPLOY / name).read_text(), re.MULTILINE)[1])


COMMANDS = {
    **{name: dockerfile_command(name) for name in DOCKERFILES},
    **{name: pod(name)["containers"][0]["args"] for name in ("kubernetes.yaml", "kserve.yaml")},
    "s2ap-defend.service": shlex.split(unit()["ExecStart"])[2:],
}


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_line_is_one_of_serve_and_its_settings_are_allowed(name):
    values = serve.make_context("serve", list(COMMANDS[name]), resilient_parsing=False).params
    config = ServerConfig(
        model=named_models(values["model"]),
        host=values["host"],
        port=values["port"],
        grpc_port=values["grpc_port"],
        insecure=values["insecure"],
        device=values["device"],
        threads=values["threads"],
        drain_delay_s=values["drain_delay"],
        grace_s=values["grace"],
    )
    assert config.host == ("127.0.0.1" if name.endswith("service") else "0.0.0.0")  # noqa: S104
    assert (config.device == "cuda") == (name == "Dockerfile.cuda")


@pytest.mark.parametrize("name", ["kubernetes.yaml", "kserve.yaml", "s2ap-defend.service"])
def test_whoever_stops_the_server_waits_for_its_own_grace(name):
    values = serve.make_context("serve", list(COMMANDS[name])).params
    waits = unit()["TimeoutStopSec"] if name.endswith("service") else pod(name)["terminationGracePeriodSeconds"]
    assert float(waits) > values["drain_delay"] + values["grace"] + STOP_S


@pytest.mark.parametrize("name", ["kubernetes.yaml", "kserve.yaml"])
def test_probes_and_ports_are_those_of_the_server(name, classifier):
    container = pod(name)["containers"][0]
    probes = [found for key, found in container.items() if key.endswith("Probe")]
    with live(classifier) as server:
        for probe in probes:
            assert httpx.get(server.url + probe["httpGet"]["path"]).status_code == 200
    assert len(probes) >= 2
    values = serve.make_context("serve", list(COMMANDS[name])).params
    opened = {port["containerPort"] for port in container["ports"]}
    assert opened == {port for port in (values["port"], values["grpc_port"]) if port is not None}


def test_resources_are_valid_for_kubernetes():
    for resource in documents("kubernetes.yaml"):
        kubernetes_validate.validate(resource, "1.37", strict=True)
    (service,) = documents("kserve.yaml")
    made = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "x"}}
    known = {"containers", "terminationGracePeriodSeconds"}
    spec = {key: value for key, value in service["spec"]["predictor"].items() if key in known}
    kubernetes_validate.validate({**made, "spec": spec}, "1.37", strict=True)


def test_selectors_of_kubernetes_choose_the_pods():
    deployment, *others = documents("kubernetes.yaml")
    labels = deployment["spec"]["template"]["metadata"]["labels"]
    chosen = {
        "Service": lambda spec: spec["selector"],
        "PodDisruptionBudget": lambda spec: spec["selector"]["matchLabels"],
        "NetworkPolicy": lambda spec: spec["podSelector"]["matchLabels"],
    }
    assert [one["kind"] for one in others] == list(chosen)
    for one in others:
        assert chosen[one["kind"]](one["spec"]) == deployment["spec"]["selector"]["matchLabels"] == labels


@pytest.mark.parametrize("name", DOCKERFILES)
def test_dockerfiles_pass_the_linter_and_copy_what_is_there(name):
    linter = Path(sys.executable).with_name("hadolint")
    found = subprocess.run([linter, DEPLOY / name], capture_output=True, text=True, check=False)
    assert (found.returncode, found.stdout) == (0, "")
    text = (DEPLOY / name).read_text()
    copied = [part for line in re.findall(r"^COPY (?!--from)(.*)$", text, re.MULTILINE) for part in line.split()[:-1]]
    assert copied
    assert [part for part in copied if not (DEPLOY.parent / part).exists()] == []
    (user,) = re.findall(r"^USER (\d+):\d+$", text, re.MULTILINE)
    assert int(user) > 0


@pytest.mark.parametrize("name", DOCKERFILES)
def test_the_health_check_of_a_container_asks_for_readiness(name, classifier):
    text = (DEPLOY / name).read_text()
    (check,) = re.findall(r"^HEALTHCHECK .*?CMD (\[.*?\])$", text, re.MULTILINE | re.DOTALL)
    program, *arguments = yaml.safe_load(check)
    assert program == "python"
    with live(classifier) as server:
        asked = [one.replace("127.0.0.1:8000", f"127.0.0.1:{server.address[1]}") for one in arguments]
        assert asked != arguments
        assert subprocess.run([sys.executable, *asked], check=False).returncode == 0
    failed = subprocess.run([sys.executable, *asked], capture_output=True, check=False)
    assert failed.returncode != 0


@pytest.mark.skipif(SYSTEMD_ANALYZE is None, reason="systemd-analyze is not there")
def test_systemd_takes_the_unit(tmp_path):
    """With a program that is there in the place of the installed one."""
    program = shlex.split(unit()["ExecStart"])[0]
    text = (DEPLOY / "s2ap-defend.service").read_text().replace(program, sys.executable)
    path = tmp_path / "s2ap-defend.service"
    path.write_text(text)
    found = subprocess.run([SYSTEMD_ANALYZE, "verify", path], capture_output=True, text=True, check=False)
    assert (found.returncode, found.stderr) == (0, "")
