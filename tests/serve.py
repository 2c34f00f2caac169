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
def serving(seconds: float = 60) -> Iterator[str]:
    """Run a server inside `with` and give its URL; the start may take this many seconds."""
    missing = [name for name in SERVING if importlib.util.find_spec(name) is None]
    if missing:
        pytest.skip(f"needs {', '.join(missing)}: pip install 'transformers[serving]'")
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    command = ALONE + "from transformers.cli.transformers import main; main()"
    words = [sys.executable, "-c", command, "serve", "--device", "cpu", "--port", str(port)]
    server = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        for _ in range(int(4 * seconds)):
            assert server.poll() is None, "transformers serve has ended"
            with contextlib.suppress(OSError):
                urllib.request.urlopen(f"http://localhost:{port}/health", timeout=5).close()
                break
            time.sleep(0.25)
        yield f"http://localhost:{port}"
    finally:
        server.kill()
        server.wait()


def post(url: str, path: str, body: dict) -> tuple[int, dict]:
    """POST JSON and return the status and the answer."""
    headers = {"Content-Type": "application/json"}
    request = urllib.request.Request(f"{url}{path}", json.dumps(body).encode(), headers)
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, {}
