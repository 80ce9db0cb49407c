"""A real HTTP server for a directory, with byte ranges, that can be slow, failing or wrong on demand."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


class Server(ThreadingHTTPServer):
    """What it is to do to requests, and what it sent: (file name, bytes) of every answer.

    failing, hanging, cut: how many of the next requests get 503, wait a minute first, or end in mid-body;
    endless: how many answers go on until the client hangs up; ranges: whether it understands byte ranges;
    encoding: what it says its answers are compressed with; altered: {file name: content} given out instead of the file.
    """

    daemon_threads = True

    def __init__(self, directory: Path) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.directory, self.address = directory, f"http://127.0.0.1:{self.server_address[1]}"
        self.failing = self.hanging = self.cut = self.endless = 0
        self.ranges, self.encoding = True, ""
        self.altered: dict[str, bytes] = {}
        self.sent: list[tuple[str, int]] = []
        self._lock = threading.Lock()
        self.ending = threading.Event()

    def counts_down(self, name: str) -> bool:
        """Whether the next request is still to be treated so."""
        with self._lock:
            left = getattr(self, name)
            setattr(self, name, max(0, left - 1))
            return left > 0

    def handle_error(self, *_: object) -> None:
        """Clients that hang up are part of the tests."""


class Handler(BaseHTTPRequestHandler):
    server: Server
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def do_GET(self) -> None:
        server, path = self.server, self.server.directory / self.path.lstrip("/")
        if server.counts_down("hanging"):
            server.ending.wait(60)
        if server.counts_down("failing"):
            self.send_error(503)
            return
        if not path.is_file():
            self.send_error(404)
            return
        content = server.altered.get(path.name, path.read_bytes())
        wanted = self.headers.get("Range") if server.ranges else None
        if wanted:
            first, last = wanted.removeprefix("bytes=").split("-")
            content = content[int(first) : int(last) + 1]
        self.send_response(206 if wanted else 200)
        if server.encoding:
            self.send_header("Content-Encoding", server.encoding)
        if server.counts_down("endless"):
            self._send_without_end()
            return
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if server.counts_down("cut"):
            self.wfile.write(content[: len(content) // 2])
            self.close_connection = True
            return
        server.sent.append((path.name, len(content)))  # before it: the client may be quicker than the next line
        self.wfile.write(content)

    def _send_without_end(self) -> None:
        """A body of no stated length; counts what the client took before it hung up."""
        self.close_connection = True
        self.send_header("Connection", "close")
        self.end_headers()
        taken = 0
        try:
            while not self.server.ending.is_set():
                self.wfile.write(bytes(2**16))
                taken += 2**16
        except OSError:  # the client has had enough
            self.server.sent.append(("endless", taken))

    def log_message(self, *_: object) -> None:
        """Not a word."""


@contextmanager
def serving(directory: Path) -> Iterator[Server]:
    """A server of `directory` on this machine while in context."""
    server = Server(directory)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield server
    finally:
        server.ending.set()
        server.shutdown()
        server.server_close()
        thread.join()
