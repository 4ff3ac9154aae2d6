"""A small hub on loopback: the few requests that huggingface_hub makes to take a folder and to give it back."""

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import yaml

TOKEN = "hf_of_the_tests"


class Hub(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.repos: dict[str, dict[str, bytes]] = {}
        self.cards: list[dict[str, Any]] = []  # the metadata that were checked before an upload
        self.asked: list[str] = []

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def commit(self, name: str) -> str:
        content = json.dumps({file: data.hex() for file, data in sorted(self.repos[name].items())})
        return mark(content.encode())


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Hub

    def log_message(self, *_: object) -> None:
        pass

    def answer(self, code: int, body: bytes = b"", **headers: str) -> None:
        self.send_response(code)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def json(self, value: object) -> None:
        self.answer(200, json.dumps(value).encode(), Content_Type="application/json")

    def do_POST(self) -> None:
        if "chunked" in self.headers.get("Transfer-Encoding", ""):
            body = b""
            while size := int(self.rfile.readline(), 16):
                body += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
        else:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        path = self.path.partition("?")[0]
        self.server.asked.append(path)
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            return self.answer(401, b'{"error": "Invalid username or password."}')
        if path == "/api/validate-yaml":
            front = yaml.safe_load(json.loads(body)["content"].split("---\n")[1])
            self.server.cards.append(front)
            return self.json({"errors": [], "warnings": []})
        if path == "/api/repos/create":
            asked = json.loads(body)
            name = f"{asked['organization']}/{asked['name']}"
            self.server.repos.setdefault(name, {})
            return self.json({"url": f"{self.server.address}/{name}"})
        _, kind, name = re.fullmatch(r"(/api/models/([^/]+/[^/]+)/)(preupload|commit)/main", path).group(0, 3, 2)
        if kind == "preupload":
            files = [file["path"] for file in json.loads(body)["files"]]
            modes = [{"path": file, "uploadMode": "regular", "shouldIgnore": False} for file in files]
            return self.json({"files": modes})
        for line in map(json.loads, body.splitlines()):
            if line["key"] == "file":
                self.server.repos[name][line["value"]["path"]] = base64.b64decode(line["value"]["content"])
        commit = self.server.commit(name)
        return self.json({"success": True, "commitOid": commit, "commitUrl": f"{self.server.address}/{name}/commit/1"})

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        self.server.asked.append(path)
        found = re.fullmatch(r"/(?:api/models/)?([^/]+/[^/]+)(?:/(revision|tree|resolve)/([^/]+))?(?:/(.+))?", path)
        if found is None or found[1] not in self.server.repos:
            return self.answer(404, b"{}", X_Error_Code="RepoNotFound", X_Error_Message="Repository not found")
        name, what, _, file = found.groups()
        files, commit = self.server.repos[name], self.server.commit(name)
        if what == "tree":
            rows = [{"type": "file", "path": n, "size": len(data), "oid": mark(data)} for n, data in files.items()]
            return self.json(rows)
        if what == "resolve":
            return self.answer(200, files[file], ETag=f'"{mark(files[file])}"', X_Repo_Commit=commit)
        siblings = [{"rfilename": n} for n in files]
        return self.json({"id": name, "sha": commit, "siblings": siblings, "private": False, "tags": []})

    def do_HEAD(self) -> None:
        self.do_GET()


def mark(content: bytes) -> str:
    return hashlib.sha1(content).hexdigest()


@contextmanager
def running() -> Iterator[Hub]:
    hub = Hub()
    threading.Thread(target=hub.serve_forever, args=[0.01], daemon=True).start()
    try:
        yield hub
    finally:
        hub.shutdown()
        hub.server_close()
