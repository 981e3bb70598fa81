"""A https server of this machine that serves bytes, and breaks off where it is told to."""

import ssl
import subprocess
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


def make_certificate(folder):
    """A certificate of localhost and 127.0.0.1 with its key, in one file."""
    key, certificate, both = (folder / name for name in ("key.pem", "cert.pem", "both.pem"))
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-nodes", "-days", "2", "-subj", "/CN=localhost"),
            *("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"),
            *("-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"),
            *("-keyout", str(key), "-out", str(certificate)),
        ],
        check=True,
        capture_output=True,
    )
    both.write_text(key.read_text() + certificate.read_text())
    return both


class Server:
    """What is served and how.

    Attributes:
        files: path -> content.
        headers: more of them, path -> {name: value}.
        redirects: path -> address.
        cut_after: bytes of an answer's body, one number per answer; None: all of it. When the
            numbers are used up, all answers are whole.
        status: of all answers, instead of what is right.
        ranges: whether parts are given.
        hold: an answer that was cut waits for this before the connection is closed.
        asked: (path, headers) of every request.
    """

    def __init__(self, port, host="localhost"):
        self.port = port
        self.host = host
        self.files, self.headers, self.redirects, self.asked = {}, {}, {}, []
        self.cut_after, self.status, self.ranges = [], None, True
        self.hold = threading.Event()
        self.hold.set()

    def url(self, path, host=None):
        return f"https://{host or self.host}:{self.port}{path}"


@contextmanager
def serving(certificate):
    """A :class:`Server` until the block ends."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *words):
            pass

        def do_GET(self):
            here = self.server.here
            here.asked.append((self.path, dict(self.headers)))
            self.close_connection = True
            if self.path in here.redirects:
                self.send_response(302)
                self.send_header("Location", here.redirects[self.path])
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            content = here.files.get(self.path)
            status = here.status or (404 if content is None else 200)
            if status >= 400:
                self.send_error(status)
                return
            self.answer(here, content)

        def answer(self, here, content):
            more = {"ETag": '"one"', **here.headers.get(self.path, {})}
            start, asked = 0, self.headers.get("Range")
            same = self.headers.get("If-Range") in (None, more["ETag"])
            if asked and here.ranges and same:
                start = int(asked.removeprefix("bytes=").removesuffix("-"))
                if start >= len(content):
                    self.send_response(416)
                    self.send_header("Content-Range", f"bytes */{len(content)}")
                    self.send_header("Content-Length", "0")
                    self.end_headers()
                    return
            self.send_response(206 if start else 200)
            if start:
                more["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
            for name, value in {"Content-Length": len(content) - start, **more}.items():
                if value is not None:
                    self.send_header(name, str(value))
            self.end_headers()
            cut = here.cut_after.pop(0) if here.cut_after else None
            body = content[start:]
            self.wfile.write(body if cut is None else body[:cut])
            self.wfile.flush()
            if cut is not None:
                here.hold.wait(60)

    class Quiet(ThreadingHTTPServer):
        def handle_error(self, *words):
            pass

    server = Quiet(("localhost", 0), Handler)
    server.daemon_threads = True
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    server.here = Server(server.server_address[1])
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield server.here
    finally:
        server.here.hold.set()
        server.shutdown()
        server.server_close()
        thread.join()
