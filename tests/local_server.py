"""A local HTTP server: knows ranges or ignores them, and cuts connections when told to."""

import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Server(ThreadingHTTPServer):
    """cut: bytes after which each of the next connections breaks. ranges: whether it knows them.
    busy: what it answers to the next requests."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: dict[str, bytes] = {}
        self.cut: list[int] = []
        self.ranges, self.asked, self.busy = True, [], []

    def url(self, name: str) -> str:
        return f"http://127.0.0.1:{self.server_port}/{name}"


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        server, data = self.server, self.server.files.get(self.path[1:].split("?")[0])
        asked = self.headers.get("Range", "")
        server.asked.append(asked)
        if data is None or server.busy:
            return self.send_error(404 if data is None else server.busy.pop())
        start, end, status = 0, len(data), 200
        if asked and server.ranges:
            first, last = re.match(r"bytes=(\d*)-(\d*)", asked).groups()
            start = int(first) if first else max(0, len(data) - int(last))
            end, status = (int(last) + 1 if first and last else len(data)), 206
            if start >= len(data):
                self.send_response(416)
                self.send_header("Content-Range", f"bytes */{len(data)}")
                self.send_header("Content-Length", "0")
                return self.end_headers()
        self.send_response(status)
        if status == 206:
            self.send_header("Content-Range", f"bytes {start}-{end - 1}/{len(data)}")
        self.send_header("Content-Length", str(end - start))
        self.end_headers()
        body = data[start:end]
        if server.cut and (most := server.cut.pop(0)) < len(body):
            body = body[:most]
            self.close_connection = True
        self.wfile.write(body)
        return None

    def log_message(self, *args) -> None:
        pass


@contextmanager
def serving() -> Iterator[Server]:
    """A server that runs until the end of the block."""
    served = Server()
    thread = threading.Thread(target=served.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield served
    served.shutdown()
    thread.join()
    served.server_close()
