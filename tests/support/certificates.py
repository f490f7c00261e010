"""Certificates of authorities of our own, as files."""

from pathlib import Path

import trustme

from edl.serving import ServerTls, Trust


class Authority:
    """An authority whose certificate is the file ``ca``, and that writes others beside it."""

    def __init__(self, directory, name="authority"):
        self.directory = Path(directory)
        self._name = name
        self._authority = trustme.CA()
        self.ca = str(self.directory / f"{name}.pem")
        self._authority.cert_pem.write_to_path(self.ca)

    def issue(self, *names, called="", **options):
        """Files of a certificate for names and addresses, and of its key. ``called``: of these."""
        issued = self._authority.issue_cert(*names, **options)
        stem = self.directory / f"{self._name}-{called or names[0]}"
        cert, key = f"{stem}.pem", f"{stem}-key.pem"
        Path(cert).write_bytes(b"".join(blob.bytes() for blob in issued.cert_chain_pems))
        issued.private_key_pem.write_to_path(key)
        return cert, key

    def server(self, *names, client_ca=None, **options):
        """What a teacher is told that has a certificate for these, by default for 127.0.0.1."""
        return ServerTls(*self.issue(*names or ("127.0.0.1",), **options), client_ca)

    def trust(self, *names, **options):
        """What a client is told that believes in this authority; with names, it has a certificate
        of its own.
        """
        own = dict(zip(("cert", "key"), self.issue(*names))) if names else {}
        return Trust(self.ca, **own, **options)
