"""What a teacher's registry entry says: the protocol it speaks, and what it serves.

Written as JSON. Values that are something else (the original ``paddle_edl`` wrote free text such as
``{gpu:20%, net:1}``) mean a teacher of the usual kind of which nothing more is known.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Optional, Protocol

from edl.errors import ConfigError, TeacherError, TlsRefused
from edl.serving.client.teacher import OnAnswer, Outputs, TeacherClient
from edl.serving.client.timing import Timing
from edl.serving.client.tls import Trust
from edl.serving.wire.description import Description
from edl.serving.wire.pipeline_messages import FORMS, TENSORS

BAIDU_STD, PIPELINE = "baidu_std", "pipeline"
PROTOCOLS = (BAIDU_STD, PIPELINE)


class Client(Protocol):
    """A connection to a teacher, whatever it speaks (see TeacherClient)."""

    endpoint: str

    @property
    def way(self) -> str:
        """See TeacherClient.way; to a pipeline it is "grpc"."""

    @property
    def broken(self) -> Optional[TeacherError]:
        """See TeacherClient.broken."""

    def submit(
        self,
        feeds: Mapping[str, Any],
        fetches: Any,
        on_answer: OnAnswer,
        more: bool = False,
        timing: Optional[Timing] = None,
    ) -> int:
        """See TeacherClient.submit."""

    def flush(self) -> None:
        """See TeacherClient.flush."""

    def infer(self, feeds: Mapping[str, Any], fetches: Any = (), timeout: float = 60.0) -> Outputs:
        """See TeacherClient.infer."""

    def describe(self, timeout: float = 10.0) -> Description:
        """See TeacherClient.describe."""

    def close(self) -> None:
        """See TeacherClient.close."""


@dataclass(frozen=True)
class Entry:
    """One teacher. ``form``: how arrays travel to a pipeline. ``tls``: whether it speaks TLS; None
    if nothing is said of it. ``extra``: whatever else is said.
    """

    protocol: str = BAIDU_STD
    form: str = TENSORS
    description: Optional[Description] = None
    extra: Mapping[str, Any] = field(default_factory=dict)
    tls: Optional[bool] = None

    def to_json(self) -> str:
        """One line for the registry."""
        value: dict[str, Any] = {**self.extra, "protocol": self.protocol}
        if self.protocol == PIPELINE:
            value["form"] = self.form
        if self.tls:
            value["tls"] = True
        if self.description is not None:
            value = {**json.loads(self.description.to_json()), **value}
        return json.dumps(value)

    @classmethod
    def from_json(cls, text: str) -> Entry:
        """The inverse, for values of any origin. Raises ConfigError for a protocol or form that is
        not known here.
        """
        try:
            value = json.loads(text)
        except (ValueError, RecursionError):
            return cls()
        if not isinstance(value, dict):
            return cls()
        protocol, form = value.get("protocol", BAIDU_STD), value.get("form", TENSORS)
        if protocol not in PROTOCOLS:
            raise ConfigError(f"it speaks {protocol!r}; known are {', '.join(PROTOCOLS)}")
        if form not in FORMS:
            raise ConfigError(f"it takes the form {form!r}; known are {', '.join(FORMS)}")
        try:
            description: Optional[Description] = Description.from_json(text)
        except ConfigError:
            description = None
        tls = bool(value.get("tls"))
        heard = tls or "protocol" in value  # else it is not ours, and its silence says nothing
        return cls(protocol, form, description, tls=tls if heard else None)

    def connect(
        self,
        endpoint: str,
        token: str = "",
        timeout: float = 3.0,
        trust: Optional[Trust] = None,
    ) -> Client:
        """A connection to the teacher at ``endpoint``. ``trust``: which teachers are believed; by
        default as the environment says. Raises TeacherUnreachable, TlsRefused.
        """
        trust = trust or Trust.from_environment()
        if self.protocol == PIPELINE:
            if trust.wants_tls(endpoint, bool(self.tls)):
                raise TlsRefused(endpoint, "it is a pipeline of Paddle Serving, which has no TLS")
            from edl.serving.client.pipeline import PipelineClient  # gRPC, for those who need it

            return PipelineClient(endpoint, self.description, self.form, timeout)
        return TeacherClient(endpoint, timeout, token=token, trust=trust, tls=self.tls)
