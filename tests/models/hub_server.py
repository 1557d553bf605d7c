"""A stand-in for the HTTP interface of the Hugging Face hub: models, commits and files, in memory."""

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class Hub(ThreadingHTTPServer):
    """`repositories`: name -> file name -> content. `requests`: method and path of everything that was asked."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.repositories: dict[str, dict[str, bytes]] = {}
        self.private: dict[str, bool] = {}
        self.requests: list[str] = []
        self.down = False

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def commit(self, name: str) -> str:
        listed = sorted((k, hashlib.sha1(v).hexdigest()) for k, v in self.repositories[name].items())
        return hashlib.sha1(json.dumps(listed).encode()).hexdigest()


class Handler(BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *args: Any) -> None: ...

    def answer(self, status: int, body: bytes | Any = b"", **headers: str) -> None:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        for key, value in {"Content-Length": str(len(data)), **headers}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def handle_request(self) -> None:
        data = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        path = self.path.partition("?")[0]
        self.server.requests.append(f"{self.command} {path}")
        if self.server.down:
            self.answer(503)
        elif path == "/api/repos/create":
            values = json.loads(data)
            name = (
                f"{values['organization']}/{values['name']}" if values.get("organization") else values["name"]
            )
            self.server.repositories.setdefault(name, {})
            private = values.get("visibility") == "private" or bool(values.get("private"))
            self.server.private.setdefault(name, private)
            self.answer(200, {"url": f"{self.server.address}/{name}", "name": name, "id": name})
        elif path == "/api/validate-yaml":
            self.answer(200, {"errors": [], "warnings": []})
        elif match := re.fullmatch(r"/api/models/([^/]+/[^/]+)(/.*)?", path):
            self.model(match[1], match[2] or "", data)
        elif match := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            self.file(match[1], match[3])
        else:
            self.answer(404)

    do_GET = do_POST = do_HEAD = handle_request

    def model(self, name: str, rest: str, data: bytes) -> None:
        files = self.server.repositories.get(name)
        if files is None:
            self.answer(404, **{"X-Error-Code": "RepoNotFound"})
        elif rest.startswith("/preupload/"):
            wanted = json.loads(data)["files"]
            self.answer(
                200,
                {
                    "files": [
                        {"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in wanted
                    ]
                },
            )
        elif rest.startswith("/commit/"):
            for line in filter(None, data.splitlines()):
                entry = json.loads(line)
                if entry["key"] == "file":
                    files[entry["value"]["path"]] = base64.b64decode(entry["value"]["content"])
            commit = self.server.commit(name)
            self.answer(
                200,
                {
                    "commitUrl": f"{self.server.address}/{name}/commit/{commit}",
                    "commitOid": commit,
                    "success": True,
                },
            )
        elif rest.startswith("/tree/"):
            self.answer(200, [self.described(k, v) for k, v in files.items()])
        else:
            siblings = [{"rfilename": k} for k in files]
            self.answer(
                200,
                {
                    "id": name,
                    "modelId": name,
                    "sha": self.server.commit(name),
                    "siblings": siblings,
                    "tags": [],
                    "private": True,
                },
            )

    @staticmethod
    def described(name: str, content: bytes) -> dict[str, Any]:
        return {"type": "file", "path": name, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}

    def file(self, name: str, path: str) -> None:
        files = self.server.repositories.get(name, {})
        if path not in files:
            self.answer(404, **{"X-Error-Code": "EntryNotFound"})
            return
        etag = f'"{hashlib.sha1(files[path]).hexdigest()}"'
        self.answer(200, files[path], ETag=etag, **{"X-Repo-Commit": self.server.commit(name)})


@contextmanager
def running_hub() -> Iterator[Hub]:
    with Hub() as hub:
        thread = threading.Thread(target=hub.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield hub
        finally:
            hub.shutdown()
            thread.join()
