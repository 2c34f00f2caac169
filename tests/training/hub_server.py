"""A local server that speaks the part of the Hugging Face hub's protocol that uploads a model."""

import base64
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

TOKEN = "hf_SecretOfThisTest123"


class HubServer(ThreadingHTTPServer):
    """The server runs inside `with`; `url` is its endpoint.

    Attributes:
        created: The requests to create a repository.
        branches: The names of the branches that were asked for.
        commits: (revision, message, content by path) of each commit.
        faults: A path → the status of its answer, in place of 200.

    Args:
        writable: Whether the token may write; else it may only read.
    """

    daemon_threads = True

    def __init__(self, writable: bool = True):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.writable, self.faults = writable, {}
        self.created: list[dict] = []
        self.branches: list[str] = []
        self.commits: list[tuple[str, str, dict[str, bytes]]] = []

    def __enter__(self):
        threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *_):
        self.shutdown()
        self.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: HubServer

    def log_message(self, *_):
        pass

    def do_GET(self):
        if self.headers["Authorization"] != f"Bearer {TOKEN}":
            return self.answer(401, {"error": f"Invalid token {self.headers['Authorization']}"})
        path = urlsplit(self.path).path
        if path.endswith("/auth-check/write"):
            return self.answer(200 if self.server.writable else 403, {})
        card = {"license": "mit"} if path.endswith("/someone/start") else {}
        return self.answer(200, {"id": "me/x", "sha": "0" * 40, "siblings": [], "cardData": card})

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"] or 0))
        *_, action, last = path = urlsplit(self.path).path.split("/")
        if self.headers["Authorization"] != f"Bearer {TOKEN}":
            return self.answer(401, {"error": f"Invalid token {self.headers['Authorization']}"})
        if fault := self.server.faults.get(action):
            return self.answer(fault, {"error": f"no {action} for {TOKEN[:6]}...{TOKEN[-4:]}"})
        if path[-2:] == ["repos", "create"]:
            self.server.created.append(json.loads(body))
            owner, name = self.server.created[-1]["organization"] or "me", self.server.created[-1]["name"]
            return self.answer(200, {"url": f"{self.server.url}/{owner}/{name}"})
        if action == "branch":
            self.server.branches.append(unquote(last))
        if action == "preupload":
            files = [{"path": each["path"], "uploadMode": "regular"} for each in json.loads(body)["files"]]
            return self.answer(200, {"files": [{**each, "shouldIgnore": False} for each in files]})
        if action == "commit":
            self.commit(unquote(last), [json.loads(line) for line in body.splitlines()])
        return self.answer(
            200, {"errors": [], "warnings": [], "commitUrl": f"{self.server.url}/me/x/commit/0", "commitOid": "0" * 40}
        )

    def commit(self, revision, lines):
        content = {
            line["value"]["path"]: base64.b64decode(line["value"]["content"])
            for line in lines
            if line["key"] == "file"
        }
        self.server.commits.append((revision, lines[0]["value"]["summary"], content))

    def answer(self, status, payload):
        content = json.dumps(payload).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("Content-Type", "application/json")
        self.end_headers()
        self.wfile.write(content)
