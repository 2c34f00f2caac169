"""A local server of OpenAI's chat completions that judges by a rule and fails as `FaultyServer` does.

It supports JSON schemas, rejects them as old servers do, or ignores them. Like a good judge it reads the texts between the
marks of a message only.
"""

import json
import re
import time

from faulty_server import HARMLESS, FaultyServer, Request, _Handler

TEXTS = re.compile(r"<(prompt|completion) (?P<mark>[0-9a-f]{16})>\n(.*?)\n</\1 (?P=mark)>", re.S)


def words(text: str, levels: int) -> int:
    """The rule: a completion of n words has level n, up to the best level."""
    return min(len(text.split()), levels - 1)


def texts_of(message: str) -> dict[str, str]:
    """The texts between the marks of a message: prompt and completion."""
    return {name: text for name, _, text in TEXTS.findall(message)}


class ChatServer(FaultyServer):
    """The server runs inside `with`; `url` is its base URL.

    Args:
        answer: (prompt, completion) → the answer as a dict; without schema support it may be any text.
        structured: "yes", "refuse" (400) or "ignore".
        refuse: completion → (status, body) of an error, or None.
        key: Any other key is a 401; None accepts every key.
    """

    def __init__(self, answer, *, structured: str = "yes", refuse=None, key: str | None = None, **options):
        super().__init__(**options)
        self.RequestHandlerClass = _ChatHandler
        self.rule, self.structured, self.refuse, self.key = answer, structured, refuse, key
        self.keys: list[str | None] = []

    @property
    def bodies(self) -> list[dict]:
        return [request.body for request in self.requests]


class _ChatHandler(_Handler):
    server: ChatServer

    def do_POST(self):
        arrived = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.path != "/v1/chat/completions":
            return self.answer(404, {"error": {"message": f"no such path {self.path}"}})
        texts = texts_of(arrived["messages"][-1]["content"])
        fault = self.server.note(texts["completion"], arrived, self.path)
        self.server.keys.append(self.headers["Authorization"])
        self.fail(fault) if fault and fault not in HARMLESS else self.chat(arrived, texts, fault)

    def chat(self, arrived, texts, fault):
        if fault == "slow":
            time.sleep(0.02)
        if self.server.key and self.headers["Authorization"] != f"Bearer {self.server.key}":
            return self.answer(401, {"error": {"message": f"Incorrect API key provided: {self.server.key}"}})
        if refused := self.server.refuse and self.server.refuse(texts["completion"]):
            return self.answer(*refused)
        if "response_format" in arrived and self.server.structured == "refuse":
            return self.answer(400, {"error": {"message": "'response_format.type' must be 'text'", "code": None}})
        said = self.server.rule(texts.get("prompt", ""), texts["completion"])
        content = said if isinstance(said, str) else json.dumps(said)
        if "response_format" in arrived and self.server.structured == "yes":
            schema = arrived["response_format"]["json_schema"]["schema"]
            assert list(said) == schema["required"], "the rule answers by the schema"
        message = {"role": "assistant", "content": None if fault == "missing" else content}
        cut = len(content.split()) > arrived.get("max_tokens", 1000)
        choice = {"index": 0, "message": message, "finish_reason": "length" if cut else "stop"}
        self.answer(200, {"id": "chat-1", "object": "chat.completion", "model": arrived["model"], "choices": [choice]})


__all__ = ["ChatServer", "Request", "texts_of", "words"]
