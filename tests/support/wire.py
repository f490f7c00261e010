"""Raw messages of both protocols, for tests that speak to a teacher's port themselves."""

import socket

from edl.serving.wire import frame
from edl.serving.wire.messages import METHOD, SERVICE, decode_response

INFERENCE = "/GeneralModelService/inference"


def connect(teacher, timeout=10):
    host, _, port = teacher.endpoint.rpartition(":")
    return socket.create_connection((host, int(port)), timeout=timeout)


def rpc(payload, **meta):
    """A baidu_std request."""
    fields = {"service": SERVICE, "method": METHOD, "correlation_id": 7, **meta}
    return b"".join(frame.encode_frame(frame.RequestMeta(**fields), [payload]))


def post(body, content_type="application/proto", path=INFERENCE, headers=""):
    """An HTTP request with a body."""
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: {content_type}\r\n{headers}"
    return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body


def get(path, headers=""):
    """An HTTP request without."""
    return f"GET {path} HTTP/1.1\r\nHost: x\r\n{headers}\r\n".encode()


def receive(sock, size):
    data = b""
    while len(data) < size:
        more = sock.recv(size - len(data))
        if not more:
            raise EOFError(f"closed after {len(data)} of {size} bytes")
        data += more
    return data


def read_rpc(sock):
    """The next baidu_std answer: its meta and its Response."""
    body_size, meta_size = frame.parse_header(receive(sock, 12))
    meta, payload = frame.parse_body(memoryview(receive(sock, body_size)), meta_size)
    return meta, decode_response(payload)


def read_http(sock):
    """The next HTTP response: its status and its body."""
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        head += receive(sock, 1)
    status, *lines = head.decode().split("\r\n")
    sizes = [line.split(":")[1] for line in lines if line.lower().startswith("content-length")]
    return int(status.split()[1]), receive(sock, int(sizes[0]))


def until_closed(sock):
    """Everything that still comes."""
    data = b""
    try:
        while more := sock.recv(1 << 16):
            data += more
    except ConnectionResetError:
        pass
    return data
