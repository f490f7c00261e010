"""What deploy/kubernetes amounts to, as ``kubectl kustomize`` renders it."""

import functools
import json
import os
import re
import shutil
import subprocess

import pytest

from tests.support.processes import ROOT

KUBERNETES = ROOT / "deploy" / "kubernetes"
OVERLAYS = sorted(path.name for path in (KUBERNETES / "overlays").iterdir())


def need_kubectl():
    """Skip where there is no kubectl that knows components, but not in CI."""
    why = ""
    if shutil.which("kubectl") is None:
        why = "kubectl is not installed"
    else:
        command = ["kubectl", "version", "--client", "-o", "json"]
        said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        minor = int(re.match(r"\d+", json.loads(said)["clientVersion"]["minor"])[0])
        if minor < 21:
            why = f"kubectl 1.{minor} does not know kustomize's components: 1.21 does"
    if why and os.environ.get("CI") == "true":
        pytest.fail(why)
    elif why:
        pytest.skip(why)


def render(overlay):
    """The objects of an overlay."""
    return render_folder(KUBERNETES / "overlays" / overlay)


@functools.cache
def render_folder(folder):
    """The objects of a kustomization."""
    yaml = pytest.importorskip("yaml")
    command = ["kubectl", "kustomize", str(folder)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert result.returncode == 0, result.stderr
    assert "deprecated" not in result.stderr
    return list(yaml.safe_load_all(result.stdout))


def of_kind(objects, kind):
    return {each["metadata"]["name"]: each for each in objects if each["kind"] == kind}


def workloads(objects):
    """Whatever makes pods, by its name."""
    return {
        each["metadata"]["name"]: each
        for each in objects
        if each["kind"] in ("Deployment", "StatefulSet", "Job")
    }


def pod(workload):
    return workload["spec"]["template"]["spec"]


def container(workload):
    (one,) = pod(workload)["containers"]
    return one


def environment(objects, workload, downward):
    """The variables of a container: of its ConfigMaps, and its own, for which ``downward`` says
    what a field or a resource is.
    """
    maps = of_kind(objects, "ConfigMap")
    found = {}
    for source in container(workload).get("envFrom", ()):
        if "configMapRef" in source:
            found |= maps[source["configMapRef"]["name"]]["data"]
    for item in container(workload).get("env", ()):
        if "value" in item:
            found[item["name"]] = expanded(item["value"], found)
        elif "secretKeyRef" not in item["valueFrom"]:
            (reference,) = item["valueFrom"].values()
            found[item["name"]] = downward[reference.get("fieldPath") or reference["resource"]]
    return found


def expanded(text, variables):
    """``text`` with its $(NAME)s in place, as a kubelet puts them there."""
    return re.sub(r"\$\((\w+)\)", lambda match: variables[match[1]], text)


def arguments(objects, workload, downward):
    """The command line of a container without its program."""
    variables = environment(objects, workload, downward)
    one = container(workload)
    return [expanded(each, variables) for each in [*one.get("command", ()), *one.get("args", ())]]
