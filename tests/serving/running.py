"""A scorer whose scores a test can compute, and the server of `nlf score --serve` in this process."""

import contextlib
import json
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator

import numpy as np

from nlf.rewards import Reward
from nlf.serving import server
from nlf.serving.perspective import Limit, Service, application
from nlf.serving.scoring import AttributeScorer


class Letters:
    """toxicity = the share of letters `t`, insult = half of it; no score for text that begins with "bonjour"; "boom" is a
    bug of the scorer.
    """

    name, version, none_is_worst = "letters", 1, True

    def __init__(self):
        self.calls: list[list[str]] = []

    def __call__(self, prompts, completions, completion_ids, **columns):
        return [None if text.startswith("bonjour") else 1.0 for text in completions]

    def attributes(self, texts):
        self.calls.append(list(texts))
        if any("boom" in text for text in texts):
            raise RuntimeError(f"a bug that quotes the text: {texts}")
        toxicity = np.array([np.nan if text.startswith("bonjour") else text.count("t") / len(text) for text in texts])
        return {"toxicity": toxicity, "insult": toxicity / 2, "length": np.array([float(len(text)) for text in texts])}


def service(scorer=None, **options) -> Service:
    return Service(AttributeScorer(Reward(scorer or Letters())), **options)


@contextlib.contextmanager
def serving(running: Service | None = None, **options) -> Iterator[str]:
    """Run the server inside `with` and give its URL."""
    listener = server.listen("127.0.0.1", 0)
    serves = server.server_of(application(running or service(**options)))
    thread = threading.Thread(target=serves.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        yield server.url_of(listener)
    finally:
        serves.should_exit = True
        thread.join()


def ask(url: str, path: str, body=None, method="POST", **headers: str) -> tuple[int, dict, dict]:
    """The status, the JSON and the headers of an answer. A body that is no bytes is sent as JSON."""
    content = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
    request = urllib.request.Request(f"{url}{path}", content, headers, method=method)
    try:
        with urllib.request.urlopen(request, timeout=60) as found:
            return found.status, json.load(found), dict(found.headers)
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.load(error), dict(error.headers)


def analyze(text: str, *names: str, **fields) -> dict:
    """A request of comments:analyze."""
    requested = {name: {} for name in names or ("TOXICITY",)}
    return {"comment": {"text": text}, "requestedAttributes": requested, **fields}


__all__ = ["Letters", "Limit", "analyze", "ask", "service", "serving"]
