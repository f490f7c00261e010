"""What is where in the registry.

====================================================  ==========================================
``/service/<service>/nodes/<host:port>``              a teacher (the layout of the original
                                                      ``paddle_edl``), with a lease
``/service/<service>/rates/<host:port>``              rows per second that the teacher computes,
                                                      under the same lease: apart from its entry,
                                                      which every student watches
``/service/<service>/students/<id>``                  a student: what it wants and measures, with
                                                      a lease
``/service/<service>/assignments/<id>``               the teachers that a student is to use
``/service/<service>/leader``                         who assigns, with a lease
``/service/<service>/candidate``                      a process that does nothing but assign, and
                                                      waits to lead, with a lease
``/service/<service>/balance``                        demand and supply, for people and autoscalers
``/service/<service>/labelling/<job>/<part>``         who labels what ahead of training, with a
                                                      lease (see ``claims``)
====================================================  ==========================================

Values are one line of JSON each, but the leader's, which is a name, and what says whether a part is
done.
"""

from __future__ import annotations

from collections.abc import Mapping

from edl.errors import ConfigError

ROOT = "/service"
NODES, RATES, STUDENTS, ASSIGNMENTS = "nodes/", "rates/", "students/", "assignments/"
LEADER, CANDIDATE, BALANCE = "leader", "candidate", "balance"


def service_prefix(service: str) -> str:
    """Under which everything of a service is. Raises ConfigError for an impossible name."""
    if not service or "/" in service or service != service.strip():
        raise ConfigError(f"service name {service!r} must not be empty or contain '/' or blanks")
    return f"{ROOT}/{service}/"


def nodes_prefix(service: str) -> str:
    """Under which the teachers of a service are. Raises ConfigError for an impossible name."""
    return service_prefix(service) + NODES


def under(entries: Mapping[str, str], kind: str) -> dict[str, str]:
    """Those of a service's entries that are of one kind, by what follows it in the key."""
    return {key[len(kind) :]: value for key, value in entries.items() if key.startswith(kind)}
