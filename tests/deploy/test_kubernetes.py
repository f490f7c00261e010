"""deploy/kubernetes: every overlay is valid, and agrees with itself, with the commands, and with
the documentation. Nothing here needs a cluster; test_kubelet runs what these manifests say.
"""

import re
from urllib.parse import urlsplit

import pytest

from edl.cli.balancer import GAUGES
from edl.cli.main import edl
from edl.distill.metrics import parse_ports
from edl.serving.server import routes
from tests.support.manifests import (
    OVERLAYS,
    arguments,
    container,
    environment,
    need_kubectl,
    of_kind,
    pod,
    render,
    workloads,
)
from tests.support.processes import ROOT

#: From the oldest that has all that is used to the newest that is known.
VERSIONS = ["1.31", "1.33"]
PAGE = (ROOT / "docs/how-to/kubernetes.md").read_text()
ENVIRONMENT = (ROOT / "docs/reference/environment.md").read_text()
DOWNWARD = {
    "status.podIP": "10.0.0.7",
    "metadata.name": "pod-0",
    "metadata.labels['batch.kubernetes.io/controller-uid']": "1f0c",
    "limits.cpu": "2",
}

#: Of custom resources: the fields that there are, and those that must be there.
CUSTOM = {
    ("monitoring.coreos.com/v1", "PodMonitor"): {
        "": ({"selector", "podMetricsEndpoints"}, {"selector", "podMetricsEndpoints"}),
        "podMetricsEndpoints": (
            {"port", "path", "interval", "honorLabels", "scheme", "tlsConfig", "authorization"},
            {"port"},
        ),
    },
    ("keda.sh/v1alpha1", "ScaledObject"): {
        "": (
            {
                *("scaleTargetRef", "minReplicaCount", "maxReplicaCount", "pollingInterval"),
                *("cooldownPeriod", "advanced", "triggers"),
            },
            {"scaleTargetRef", "triggers"},
        ),
        "triggers": ({"type", "metricType", "metadata"}, {"type", "metadata"}),
    },
}


@pytest.fixture(params=OVERLAYS)
def objects(request):
    need_kubectl()
    return render(request.param)


def selected(objects, labels, expressions=()):
    """The workloads whose pods a selector means."""
    found = []
    for workload in workloads(objects).values():
        has = workload["spec"]["template"]["metadata"]["labels"]
        if labels.items() <= has.items() and all(
            each["operator"] == "In" and has.get(each["key"]) in each["values"]
            for each in expressions
        ):
            found.append(workload)
    return found


def ports(workload):
    return {each["name"]: each["containerPort"] for each in container(workload).get("ports", ())}


def of_edl(objects):
    return [each for each in workloads(objects).values() if "edl:" in container(each)["image"]]


@pytest.mark.parametrize("version", VERSIONS)
def test_every_object_is_as_its_schema_says(objects, version):
    kubernetes_validate = pytest.importorskip("kubernetes_validate")
    for each in objects:
        custom = CUSTOM.get((each["apiVersion"], each["kind"]))
        if custom is None:
            kubernetes_validate.validate(each, version, strict=True)
            continue
        for part, (known, needed) in custom.items():
            items = each["spec"][part] if part else [each["spec"]]
            for item in items:
                assert needed <= item.keys() <= known


def test_commands_are_ones_that_edl_has(objects):
    for workload in of_edl(objects):
        name, *given = arguments(objects, workload, DOWNWARD)
        assert "command" not in container(workload), "the image's entry point is edl"
        context = edl.get_command(None, name).make_context(name, list(given))
        assert context.params
        programs = [each for each in given if each.endswith(".py") and each.startswith("/opt/edl/")]
        assert all((ROOT / program[len("/opt/edl/") :]).is_file() for program in programs)


def test_variables_are_ones_that_something_reads(objects):
    for workload in of_edl(objects):
        used = set(re.findall(r"\$\((\w+)\)", " ".join(container(workload)["args"])))
        for name in environment(objects, workload, DOWNWARD):
            assert f"| `{name}` |" in ENVIRONMENT if name.startswith("EDL_") else True
            own = {each["name"] for each in container(workload).get("env", ())}
            assert name in used or name.startswith("EDL_") or name not in own


def test_probes_ask_for_pages_that_there_are_at_ports_that_are_listened_on(objects):
    pages = {
        "edl-teacher": routes._PAGES,
        "edl-balancer": ("/metrics",),
        "edl-etcd": ("/health",),
    }
    for name, workload in workloads(objects).items():
        one = container(workload)
        listens = " ".join(arguments(objects, workload, DOWNWARD))
        told = environment(objects, workload, DOWNWARD).get("EDL_METRICS_PORT")
        metrics = () if told is None else parse_ports("EDL_METRICS_PORT", told)
        if metrics and name == "edl-student":
            ranks = re.search(r"--nproc_per_node=(\d+)", listens)
            assert sorted(ports(workload).values()) == list(metrics)
            assert len(metrics) == int(ranks[1]), "a port for each rank"
        for kind in ("startupProbe", "readinessProbe", "livenessProbe"):
            if kind in one:
                asked = one[kind]["httpGet"]
                assert urlsplit(asked["path"]).path in pages[name]
                assert asked["port"] in ports(workload)
                tls = "EDL_TLS_CERT" in environment(objects, workload, DOWNWARD)
                assert asked.get("scheme", "HTTP") == ("HTTPS" if tls else "HTTP")
        for port in ports(workload).values():
            found = re.search(rf"port={port}\b|0\.0\.0\.0:{port}\b", listens)
            assert found or port in metrics, (name, port)


def test_what_is_referred_to_is_there_or_the_page_says_how_to_make_it(objects):
    maps = of_kind(objects, "ConfigMap")
    for workload in workloads(objects).values():
        spec, one = pod(workload), container(workload)
        volumes = {each["name"]: each for each in spec.get("volumes", ())}
        volumes |= {
            each["metadata"]["name"]: each
            for each in workload["spec"].get("volumeClaimTemplates", ())
        }
        mounted = [each["name"] for each in one["volumeMounts"]]
        assert sorted(mounted) == sorted(volumes), "neither missing nor unused"
        for source in one.get("envFrom", ()):
            if "configMapRef" in source:
                assert source["configMapRef"]["name"] in maps
            else:
                secret = source["secretRef"]["name"]
                assert f"create secret generic {secret} " in PAGE
        for volume in volumes.values():
            if "secret" in volume:
                assert f"create secret generic {volume['secret']['secretName']} " in PAGE
            if "persistentVolumeClaim" in volume:
                assert f"`{volume['persistentVolumeClaim']['claimName']}`" in PAGE


def test_selectors_mean_pods_that_there_are(objects):
    for each in objects:
        spec = each.get("spec", {})
        if each["kind"] in ("PodDisruptionBudget", "PodMonitor", "NetworkPolicy"):
            selector = spec.get("selector") or spec["podSelector"]
            found = selected(
                objects, selector.get("matchLabels", {}), selector.get("matchExpressions", ())
            )
            assert found, each["metadata"]
            known = {
                port for workload in found for pair in ports(workload).items() for port in pair
            }
            for endpoint in spec.get("podMetricsEndpoints", ()):
                assert endpoint["port"] in known
            for rule in spec.get("ingress", ()):
                assert {port["port"] for port in rule.get("ports", ())} <= known
                for peer in rule["from"]:
                    if "podSelector" in peer:
                        assert selected(objects, peer["podSelector"]["matchLabels"])
        elif each["kind"] == "Service":
            (workload,) = selected(objects, spec["selector"])
            assert {port["targetPort"] for port in spec["ports"]} <= ports(workload).keys()


def test_nobody_is_root_or_has_more_than_it_needs(objects):
    for workload in workloads(objects).values():
        spec, security = pod(workload), container(workload)["securityContext"]
        assert spec["securityContext"]["runAsNonRoot"]
        assert spec["automountServiceAccountToken"] is False
        assert security["readOnlyRootFilesystem"]
        assert not security["allowPrivilegeEscalation"]
        assert security["capabilities"] == {"drop": ["ALL"]}
        assert "memory" in container(workload)["resources"]["limits"]


def test_whoever_scales_the_teachers_looks_at_the_number_wanted(objects):
    (settings,) = of_kind(objects, "ConfigMap").values()
    service = settings["data"]["SERVICE"]
    metric, _ = GAUGES["wanted"]
    teacher = workloads(objects)["edl-teacher"]
    assert "replicas" not in teacher["spec"], "applying it again would reset the number"
    for scaled in of_kind(objects, "ScaledObject").values():
        assert scaled["spec"]["scaleTargetRef"]["name"] == "edl-teacher"
        (trigger,) = scaled["spec"]["triggers"]
        namespace = scaled["metadata"]["namespace"]
        query = f'max({metric}{{namespace="{namespace}", service="{service}"}})'
        assert trigger["metadata"]["query"] == query
        assert trigger["metadata"]["threshold"] == "1"
    for scaled in of_kind(objects, "HorizontalPodAutoscaler").values():
        assert scaled["spec"]["scaleTargetRef"]["name"] == "edl-teacher"
        (used,) = scaled["spec"]["metrics"]
        assert used["external"]["metric"]["name"] == metric
        assert used["external"]["metric"]["selector"]["matchLabels"] == {"service": service}
        assert used["external"]["target"] == {"type": "AverageValue", "averageValue": "1"}
    balancer = arguments(objects, workloads(objects)["edl-balancer"], DOWNWARD)
    assert any(each.startswith("--max-teachers=") for each in balancer)
