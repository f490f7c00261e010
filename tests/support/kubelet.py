"""Pods as local processes, the way a kubelet runs them: the manifests' commands, environments,
probes and signals. A pod's address is one of loopback's, its volumes are folders.
"""

import os
import re
import signal
import ssl
import subprocess
import sys
import threading
import urllib.error
import urllib.request

from edl import _process
from edl.discovery.embedded import etcd_binary
from tests.support.manifests import arguments, container, environment, of_kind, pod, workloads
from tests.support.processes import ROOT

PROGRAMS = {"edl": [sys.executable, "-m", "edl.cli.main"], "etcd": [str(etcd_binary())]}


class Cluster:
    """Makes pods of an overlay's workloads. ``image``: paths in the image, and where they are.
    ``secrets``: what each one has.
    """

    def __init__(self, objects, directory, image, secrets):
        self.objects, self.directory = objects, directory
        self.image, self.secrets = image, secrets
        self.net = f"127.{1 + os.getpid() % 250}"
        self._made = 0

    def pod(self, name, index=None):
        """A pod of a workload; with an index, of a StatefulSet or an Indexed Job."""
        self._made += 1
        which = self._made if index is None else index
        return Pod(self, workloads(self.objects)[name], f"{name}-{which}", self._made)

    def address(self, number):
        return f"{self.net}.0.{number}"

    def stateful_addresses(self):
        """Of the pods of StatefulSets, which are made first, by their names."""
        (name,) = of_kind(self.objects, "StatefulSet")
        return {f"{name}-{index}": self.address(index + 1) for index in range(3)}


class Pod:
    def __init__(self, cluster, workload, name, number):
        self.name, self.address = name, cluster.address(number)
        self.restarts = 0
        self.ready = threading.Event()
        self._spec, self._container = pod(workload), container(workload)
        stateful = workload["kind"] == "StatefulSet"
        if stateful:
            self.address = cluster.stateful_addresses()[name]
        self.directory = cluster.directory / name
        self._make_volumes(cluster.secrets)
        downward = {
            "status.podIP": self.address,
            "metadata.name": name,
            "metadata.labels['batch.kubernetes.io/controller-uid']": cluster.directory.name,
            "limits.cpu": self._container["resources"]["limits"].get("cpu"),
        }
        line = arguments(cluster.objects, workload, downward)
        program = PROGRAMS["edl" if "command" not in self._container else line.pop(0)]
        self.command = [*program, *(self._here(cluster, each) for each in line)]
        own = environment(cluster.objects, workload, downward)
        for source in self._container.get("envFrom", ()):
            if "secretRef" in source:
                own |= cluster.secrets[source["secretRef"]["name"]]
        # Of this machine, what an image would have; and what makes coverage of children work.
        kept = {name: os.environ[name] for name in os.environ if name.startswith("COV")}
        self.environment = {
            **{"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"},
            **{"HOME": str(self.directory), "TMPDIR": str(self.directory / "tmp"), **kept},
            **{key: self._here(cluster, value) for key, value in own.items()},
        }
        self.log = self.directory / "log"
        self._over = threading.Event()
        self._start()
        self._prober = threading.Thread(target=self._probe, daemon=True)
        self._prober.start()

    def _make_volumes(self, secrets):
        """Folders; in those of secrets, what these have."""
        for mount in self._container["volumeMounts"]:
            (self.directory / mount["name"]).mkdir(parents=True, exist_ok=True)
        for volume in self._spec.get("volumes", ()):
            if "secret" in volume:
                values = secrets[volume["secret"]["secretName"]]
                items = volume["secret"].get("items") or [{"key": k, "path": k} for k in values]
                for item in items:
                    path = self.directory / volume["name"] / item["path"]
                    path.write_text(values[item["key"]])

    def _here(self, cluster, text):
        """What names something in a cluster, by what that is here."""
        for name, address in cluster.stateful_addresses().items():
            text = re.sub(rf"\b{name}\.[\w-]+", address, text)
        for name in of_kind(cluster.objects, "Service"):
            text = re.sub(rf"\b{name}:", f"{cluster.address(1)}:", text)
        for own in ("0.0.0.0", "127.0.0.1"):
            text = text.replace(own, self.address)
        for mount in self._container["volumeMounts"]:
            folder = str(self.directory / mount["name"])
            text = re.sub(rf"(?<![\w.]){mount['mountPath']}\b", folder, text)
        for there, here in cluster.image.items():
            text = text.replace(there, str(here))
        return text

    def _start(self):
        with self.log.open("ab") as output:
            self.process = _process.start(
                self.command, env=self.environment, cwd=self.directory,
                stdout=output, stderr=subprocess.STDOUT,
            )  # fmt: skip

    def _probe(self):
        """Startup, then readiness and liveness, until the pod is stopped or has ended."""
        startup = self._container.get("startupProbe")
        if startup is not None and not self._succeeds(startup, startup["failureThreshold"]):
            return self._kill_for(startup)
        readiness = self._container.get("readinessProbe")
        liveness = self._container.get("livenessProbe")
        if readiness is None:
            self.ready.set()
            return None
        while not self._over.wait(0.5):
            (self.ready.set if self._asks(readiness) else self.ready.clear)()
            if not self._succeeds(liveness, liveness["failureThreshold"]):
                return self._kill_for(liveness)
        return None

    def _succeeds(self, probe, times):
        """Whether it does within so many tries; also when that does not matter any more."""
        for _ in range(times):
            if self._over.is_set() or self._asks(probe):
                return True
            self._over.wait(0.3)  # its periodSeconds would take too long
        return self._over.is_set()

    def _asks(self, probe):
        asked = probe["httpGet"]
        ports = {each["name"]: each["containerPort"] for each in self._container["ports"]}
        scheme = asked.get("scheme", "HTTP").lower()
        url = f"{scheme}://{self.address}:{ports[asked['port']]}{asked['path']}"
        timeout, context = probe.get("timeoutSeconds", 5), ssl._create_unverified_context()
        try:
            with urllib.request.urlopen(url, timeout=timeout, context=context) as page:
                return page.status == 200
        except (OSError, urllib.error.HTTPError):
            return False

    def _kill_for(self, probe):
        self.restarts += 1
        self.process.kill()
        raise AssertionError(f"{self.name} failed its probe {probe}: {self.said()[-2000:]}")

    def said(self):
        return self.log.read_text(errors="replace")

    def stop(self):
        """As for a drain: not ready, SIGTERM, and SIGKILL when the grace is over. How it ended."""
        self._over.set()
        self.ready.clear()
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(self._spec["terminationGracePeriodSeconds"])
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            return -signal.SIGKILL

    def kill(self):
        self._over.set()
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
        self._prober.join()
