"""Start `transformers serve` on this machine, in a process that cannot import nlf."""

import contextlib
import importlib.util
import json
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator

import pytest

ALONE = "import sys; sys.modules['nlf'] = None\n"  # `import nlf` fails
SERVING = ("fastapi", "uvicorn", "openai")  # transformers[serving]


@contextlib.contextmanager
def serving() -> Iterator[str]:
    """Run a server inside `with` and give its URL."""
    missing = [name for name in SERVING if importlib.util.find_spec(name) is None]
    if missing:
        pytest.skip(f"needs {', '.join(missing)}: pip install 'transformers[serving]'")
    for _ in range(3):  # another process can take the port that was free
        server, url = _start()
        try:
            if _listens(server, url):
                yield url
                return
        finally:
            server.kill()
            server.wait()
    raise AssertionError("transformers serve has ended")


def _start() -> tuple[subprocess.Popen, str]:
    """Start a server at a free port."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    command = ALONE + "from transformers.cli.transformers import main; main()"
    words = [sys.executable, "-c", command, "serve", "--device", "cpu", "--port", str(port)]
    server = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return server, f"http://localhost:{port}"


def _listens(server: subprocess.Popen, url: str) -> bool:
    """Wait until the server listens, however busy the machine is; False if it ends."""
    while server.poll() is None:
        with contextlib.suppress(OSError):
            urllib.request.urlopen(f"{url}/health", timeout=60).close()
            return server.poll() is None  # else another process answered
        time.sleep(0.25)
    return False


def post(url: str, path: str, body: dict) -> tuple[int, dict]:
    """POST JSON and return the status and the answer."""
    headers = {"Content-Type": "application/json"}
    request = urllib.request.Request(f"{url}{path}", json.dumps(body).encode(), headers)
    try:
        with urllib.request.urlopen(request, timeout=600) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, {}
