"""Everything that EDL raises, one tree under :class:`EdlError`.

Each message names the culprit (a teacher, a file, a slot, a key) and, where there is one,
the remedy. Errors of the libraries underneath are mapped at the border and kept as
``__cause__``.
"""

from __future__ import annotations


class EdlError(Exception):
    """Base of all errors that EDL raises on purpose."""


class ConfigError(EdlError, ValueError):
    """An argument, environment variable or file says something that cannot be done."""


class MissingDependencyError(EdlError, ImportError):
    """An optional package is needed for what was asked; the message says how to install it."""


# --- the wire -------------------------------------------------------------------------------


class WireError(EdlError, ValueError):
    """Bytes that are not a valid message of the protocol, or an array it cannot carry."""


# --- talking to a teacher -------------------------------------------------------------------


class TeacherError(EdlError):
    """Talking to one teacher failed. ``endpoint`` says which."""

    def __init__(self, endpoint: str, message: str) -> None:
        super().__init__(f"teacher {endpoint}: {message}")
        self.endpoint = endpoint
        self.message = message


class TeacherUnreachable(TeacherError):
    """No connection could be made: refused, no route, unknown host, or time ran out."""


class TeacherConnectionLost(TeacherError):
    """The connection broke while requests were in flight, or was closed."""


class TeacherTimeout(TeacherError):
    """No answer within the limit."""


class TeacherProtocolError(TeacherError):
    """The teacher's bytes, or the arrays in them, are not what the protocol promises."""


class AccessDenied(TeacherError):
    """The teacher wants a token that it was not shown."""


class TlsRefused(TeacherError):
    """There is no TLS with the teacher as it is wanted: its certificate is not accepted here, or
    ours there, or one of both speaks plain text. Nothing was asked of it.
    """


class TeacherUnavailable(TeacherError):
    """The teacher answered that it cannot serve now (draining, busy); another one may."""


class TeacherFailed(TeacherError):
    """The teacher answered that it failed while computing (not the request's fault)."""


class RequestRefused(TeacherError):
    """The teacher answered that the request itself is wrong (unknown feed, wrong shape, ...)."""


# --- hosting a teacher ----------------------------------------------------------------------


class ModelError(EdlError):
    """A model cannot be found, read, exported or run."""


class BadRequest(EdlError, ValueError):
    """What a request feeds or asks for is wrong, whoever computes it. For predictors to raise: who
    asked is answered with its words (RequestRefused), and it is asked of no other teacher for long.
    """


# --- discovery ------------------------------------------------------------------------------


class DiscoveryError(EdlError):
    """etcd could not do what was asked."""


class EtcdUnavailable(DiscoveryError):
    """No etcd endpoint answered within the limit."""


class AlreadyRegistered(DiscoveryError):
    """Another live process holds this endpoint's entry in the registry."""


# --- reading --------------------------------------------------------------------------------


class ReaderError(EdlError):
    """DistillReader cannot deliver the next batch, or TeacherPool an answer."""


class NoTeacherError(ReaderError):
    """The student has waited for longer than ``no_teacher_timeout`` while no teacher took work."""


class PoolFull(ReaderError):
    """As many requests to a TeacherPool are outstanding as may be, and the time to wait is over."""


class BatchRefused(ReaderError):
    """Two teachers, or all there are, refused the same rows, or answered them with errors of their
    own too often (``Limits.max_failures``). The message holds their words.
    """


class SourceError(ReaderError):
    """The wrapped reader yielded something that is not a sample or a batch, or what a TeacherPool
    was given cannot be sent.
    """


# --- stored labels --------------------------------------------------------------------------


class StoreError(EdlError):
    """A label store cannot be opened, or what it holds is not what it should be."""
