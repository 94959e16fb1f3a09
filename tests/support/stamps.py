"""A time stamping authority, by OpenSSL."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID

from entrepot.storage.clock import utc_now
from tests.support.programs import require, run_well
from tests.support.signatures import DAY, Certificate, make_certificate, private_pem

_CONFIG = """\
[tsa]
serial = {folder}/serial
signer_digest = sha256
default_policy = 1.2.3.4
digests = sha256, sha384, sha512
accuracy = secs:1
ess_cert_id_alg = sha256
"""


@dataclass(frozen=True)
class Authority:
    """Stamps what it is asked to; `root` is whom to trust for it."""

    folder: Path
    root: Certificate
    url: str = ""

    def answer(self, request: bytes) -> bytes:
        """The response to a request (RFC 3161)."""
        query, reply = self.folder / "query", self.folder / "reply"
        query.write_bytes(request)
        # Without its root: OpenSSL puts several certificates in any order, where DER asks for one.
        keys = ["-signer", self.folder / "certificate", "-inkey", self.folder / "key"]
        place = ["-config", self.folder / "config", "-section", "tsa", "-queryfile", query, "-out", reply]
        run_well(require("openssl"), "ts", "-reply", *place, *keys)
        return reply.read_bytes()


def make_authority(folder: Path) -> Authority:
    """An authority with a certificate of its own."""
    folder.mkdir()
    valid = (utc_now() - DAY, utc_now() + DAY)
    root = make_certificate("stamps root", is_authority=True, valid=valid)
    usage = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.TIME_STAMPING])
    own = make_certificate("stamps", root, usages=[], extra=usage, valid=valid)
    (folder / "root").write_text(root.pem)
    (folder / "certificate").write_text(own.pem)
    (folder / "key").write_bytes(private_pem(own.key))
    (folder / "serial").write_text("01\n")
    (folder / "config").write_text(_CONFIG.format(folder=folder))
    return Authority(folder, root)


@contextmanager
def stamping(folder: Path) -> Iterator[Authority]:
    """An authority that is asked over HTTP."""
    authority = make_authority(folder)

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = authority.answer(self.rfile.read(int(self.headers["Content-Length"])))
            self.send_response(200)
            self.send_header("Content-Type", "application/timestamp-reply")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the library's name
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield Authority(folder, authority.root, f"http://127.0.0.1:{server.server_port}")
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
