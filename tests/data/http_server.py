"""A real HTTP server of a folder for the tests of remote shard sets."""

import collections
import http.server
import threading
from collections.abc import Callable
from pathlib import Path


class Server:
    """A real HTTP server of a folder on the loopback; counts requests and can spoil what it sends."""

    def __init__(self, folder: Path) -> None:
        self.requests: collections.Counter[str] = collections.Counter()
        self.spoil: Callable[[str, bytes], bytes | None] = lambda name, data: data
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                name = self.path.split("?")[0].rsplit("/", 1)[-1]
                outer.requests[name] += 1
                path = folder / name
                data = outer.spoil(name, path.read_bytes()) if path.is_file() else None
                if data is None:
                    self.send_error(404)
                    return
                self.send_response(200)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *args: object) -> None:
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}/some/set"
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()
