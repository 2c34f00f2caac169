"""A local server that speaks Perspective's protocol and OpenAI's moderation, and fails on purpose.

It records every request with its time. The faults are drawn by a seed or given as a list; besides `FAULTS` there is
"hang": no answer until the client closes the connection.
"""

import hashlib
import json
import random
import socket
import struct
import threading
import time
from collections import Counter
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

KEY = "AIza-secret/key+1"
KNOWN = "TOXICITY SEVERE_TOXICITY IDENTITY_ATTACK INSULT PROFANITY THREAT SEXUALLY_EXPLICIT FLIRTATION".split()
CATEGORIES = ["harassment", "hate", "hate/threatening", "violence"]
FAULTS = ("429", "429 after", "429 date", "500", "503", "reset", "truncated", "invalid", "slow", "missing")
NOW = datetime(2026, 11, 6, 8, 49, 37, tzinfo=UTC)  # the server's clock stands still
HARMLESS = {"slow", "missing"}  # the answer arrives


def value(text: str, name: str) -> float:
    """The score of a text, in [0, 1)."""
    return int.from_bytes(hashlib.sha256(f"{name} {text}".encode()).digest()[:4], "big") / 2**32


@dataclass
class Request:
    time: float
    text: str
    fault: str | None
    body: dict
    path: str


class FaultyServer(ThreadingHTTPServer):
    """The server runs inside `with`; `url` is its base URL.

    Args:
        faults: The share of requests that fail, or a list of the faults of the first requests (None = no fault).
        most: Requests after this many hang.
        after: The header Retry-After of "429 after".
    """

    daemon_threads, request_queue_size = True, 128

    def __init__(self, faults=0.0, *, seed: int = 0, most: float = float("inf"), after: str = "0.05", key: str = KEY):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.share, self.plan = (faults, []) if isinstance(faults, float) else (0.0, list(faults))
        self.random, self.most, self.after, self.key = random.Random(seed), most, after, key
        self.requests: list[Request] = []
        self.lock = threading.Lock()

    def __enter__(self):
        threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *_):
        self.shutdown()
        self.server_close()

    def handle_error(self, request, client_address):
        """Ignore clients that have closed the connection."""

    def note(self, text: str, body: dict, path: str) -> str | None:
        now = time.monotonic()
        with self.lock:
            fault = self.plan.pop(0) if self.plan else None
            if self.random.random() < self.share:
                fault = self.random.choice(FAULTS)
            if len(self.requests) >= self.most:
                fault = "hang"
            self.requests.append(Request(now, text, fault, body, path))
        return fault

    def asked(self) -> Counter:
        """The number of requests for each text."""
        return Counter(request.text for request in self.requests)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: FaultyServer

    def log_message(self, *_):
        pass

    def date_time_string(self, timestamp=None):
        return format_datetime(NOW, usegmt=True)

    def do_POST(self):
        arrived = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        url = urlsplit(self.path)
        speak = {"/v1alpha1/comments:analyze": self.perspective, "/v1/moderations": self.moderation}.get(url.path)
        if speak is None:
            return self.answer(404, {"error": {"message": f"no such path {url.path}"}})
        text = arrived["comment"]["text"] if "comment" in arrived else arrived["input"]
        fault = self.server.note(text, arrived, self.path)
        self.fail(fault) if fault and fault not in HARMLESS else self.speak(speak, arrived, fault)

    def speak(self, speak, arrived, fault):
        if fault == "slow":
            time.sleep(0.02)
        status, payload = speak(arrived)
        if fault == "missing" and status == 200:
            payload.get("attributeScores", {}).pop("TOXICITY", None)
            payload["results"] = [{}]
        self.answer(status, payload)

    def perspective(self, arrived):
        if parse_qs(urlsplit(self.path).query).get("key") != [self.server.key]:
            return self.google(403, f"key not valid: {self.server.key} (api_key:{self.path})", "PERMISSION_DENIED")
        text, names = arrived["comment"]["text"], list(arrived["requestedAttributes"])
        expected = {
            "comment": {"text": text},
            "requestedAttributes": {name: {} for name in names},
            "languages": ["en"],
            "doNotStore": True,
            "spanAnnotations": False,
        }
        if arrived != expected:
            return self.google(400, "not the protocol", "INVALID_ARGUMENT")
        if unknown := [name for name in names if name not in KNOWN]:
            return self.google(400, f"Attribute {unknown[0]} not supported", "INVALID_ARGUMENT", "UNKNOWN_ATTRIBUTE")
        if not text.strip():
            return self.google(400, "Comment must be non-empty", "INVALID_ARGUMENT", "COMMENT_EMPTY")
        if len(text.encode()) > 20_480:
            return self.google(400, "Comment text was too many bytes", "INVALID_ARGUMENT", "COMMENT_TOO_LONG")
        if text.startswith("bonjour"):
            reason = "LANGUAGE_NOT_SUPPORTED_BY_ATTRIBUTE"
            return self.google(400, "Attribute does not support this language", "INVALID_ARGUMENT", reason)
        scores = {
            name: {"summaryScore": {"value": value(text, name), "type": "PROBABILITY"}, "spanScores": []}
            for name in names
        }
        return 200, {"attributeScores": scores, "languages": ["en"], "detectedLanguages": ["en"]}

    def google(self, code, message, status, error_type=None):
        details = [{"@type": "type.googleapis.com/Error", "errorType": error_type}] if error_type else []
        return code, {"error": {"code": code, "message": message, "status": status, "details": details}}

    def moderation(self, arrived):
        if self.headers["Authorization"] != f"Bearer {self.server.key}":
            return 401, {"error": {"message": f"Incorrect API key: {self.headers['Authorization']}", "code": "key"}}
        if len(arrived["input"]) > 30_000:
            return 400, {"error": {"message": "too long", "code": "string_above_max_length"}}
        scores = {name: value(arrived["input"], name) for name in CATEGORIES}
        flags = {name: score > 0.5 for name, score in scores.items()}
        result = {"flagged": any(flags.values()), "categories": flags, "category_scores": scores}
        return 200, {"id": "modr-1", "model": arrived["model"], "results": [result]}

    def fail(self, fault):
        kind, _, rest = fault.partition(" ")
        if kind == "reset":
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.close()
        elif kind == "hang":
            self.connection.recv(1)  # nothing comes until the client closes
            self.close()
        elif kind in ("truncated", "invalid"):
            self.respond(200, b'{"attributeScores": {"TOXICITY": {"summ', missing=100 * (kind == "truncated"))
        else:
            until = format_datetime(NOW + timedelta(seconds=1), usegmt=True)
            after = {"after": self.server.after, "date": until}.get(rest)
            self.respond(int(kind), b"<html>not now</html>", {"Retry-After": after} if after else {})

    def close(self):
        self.close_connection = True
        self.connection.close()

    def answer(self, status, payload):
        self.respond(status, json.dumps(payload).encode())

    def respond(self, status, content, headers=None, missing=0):
        self.send_response(status)
        for name, text in {"Content-Length": str(len(content) + missing), **(headers or {})}.items():
            self.send_header(name, text)
        self.end_headers()
        self.wfile.write(content)
        if missing:
            self.wfile.flush()
            self.close_connection = True
