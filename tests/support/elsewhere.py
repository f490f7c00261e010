"""Two addresses that are not on one machine, as far as a program can tell: in a network of its own.

``python -m tests.support.elsewhere``, in such a network (see ``NETWORK``): a teacher listens at one
address, and is connected to from the other. Prints what came of it, as JSON.
"""

import json
import os
import shutil
import subprocess
import sys

from tests.support.processes import ROOT

TEACHER, STUDENT = "192.0.2.1", "192.0.2.2"  # RFC 5737: for documentation, and nobody's
TOKEN = "secret-of-this-test"

NETWORK = (
    "ip link set lo up && "
    f"ip addr add {TEACHER}/32 dev lo && ip addr add {STUDENT}/32 dev lo && "
    f"ip route replace local {TEACHER} dev lo src {STUDENT} table local && "
)


def can_be():
    """Whether this system lets us have a network of our own."""
    if not shutil.which("unshare") or not shutil.which("ip"):
        return False
    command = ["unshare", "-rn", "sh", "-c", NETWORK + "true"]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


def what_comes_of_it(**environment):
    """See ``main``; in a network of its own, with such variables."""
    code = f"{NETWORK} exec {sys.executable} -m tests.support.elsewhere"
    done = subprocess.run(
        ["unshare", "-rn", "sh", "-c", code],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    return json.loads(done.stdout)


def main():
    """For a client and a page, with the token and without: what was raised, and whether the token
    has arrived.
    """
    import socket
    import threading

    from edl.errors import TeacherError
    from edl.serving import TeacherClient
    from edl.serving.client.page import read_page

    def describe(endpoint, token):
        with TeacherClient(endpoint, token=token) as client:
            client.describe()

    found = {}
    for name, ask in (
        ("client", describe),
        ("page", lambda endpoint, token: read_page(endpoint, "/metrics", token)),
    ):
        for token in (TOKEN, ""):
            received = []
            with socket.create_server((TEACHER, 0)) as listener:

                def serve(listener=listener, received=received):
                    conn, _ = listener.accept()
                    with conn:
                        received.append(conn.recv(1 << 16))

                thread = threading.Thread(target=serve)
                thread.start()
                raised = ""
                try:
                    ask(f"{TEACHER}:{listener.getsockname()[1]}", token)
                except TeacherError as error:
                    raised = f"{type(error).__name__}: {error}"
                thread.join()
            key = f"{name} with a token" if token else f"{name} without"
            found[key] = [raised, bool(received[0]), TOKEN.encode() in received[0]]
    print(json.dumps(found))


if __name__ == "__main__":
    main()
