"""A server behind TLS: its certificate is verified, and a round's connection is as any other's."""

import shutil
import socket
import ssl
import subprocess
import threading

import pytest

from pytest_infer.engines.server.client import Client
from pytest_infer.errors import EngineError
from pytest_infer.measure.clock import TokenClock

pytest.importorskip("httpx")
pytestmark = pytest.mark.skipif(shutil.which("openssl") is None, reason="makes a certificate with openssl")
EVENT = b'data: {"choices": []}\n\ndata: [DONE]\n\n'
ANSWERS = (b"{}", EVENT)


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    """Return a certificate of 127.0.0.1 that nobody signed, and its key."""
    folder = tmp_path_factory.mktemp("tls")
    made, key = folder / "certificate.pem", folder / "key.pem"
    how = "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=here"
    more = ["-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(key), "-out", str(made)]
    subprocess.run(["openssl", *how.split(), *more], check=True, capture_output=True)
    return made, key


@pytest.fixture
def url(certificate):
    """Run a server that answers a connection's requests one after the other; return its address."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*certificate)

    def answer(listening):
        try:
            line, _ = listening.accept()
            with context.wrap_socket(line, server_side=True) as line:
                for body in ANSWERS:
                    line.recv(65536)
                    line.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
                line.recv(65536)  # until the other end closes
        except OSError:
            pass

    with socket.create_server(("127.0.0.1", 0)) as listening:
        listening.settimeout(120)
        thread = threading.Thread(target=answer, args=(listening,))
        thread.start()
        yield f"https://127.0.0.1:{listening.getsockname()[1]}"
        thread.join()


def heard(url):
    client = Client(url, timeout_s=120.0, check=lambda: None)
    try:
        client.prepare("/v1/completions", {})
        return list(client.stream(TokenClock(), lambda: 0))
    finally:
        client.close()


def test_a_round_goes_through_tls(url, certificate, monkeypatch):
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate[0]))
    assert heard(url) == [{"choices": []}, None]


def test_a_certificate_that_nobody_signed_is_refused(url):
    with pytest.raises(EngineError, match=r"no server answers at https://127.0.0.1:\d+: .*CERTIFICATE_VERIFY_FAILED"):
        heard(url)
