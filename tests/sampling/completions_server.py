"""A server on this machine that speaks OpenAI's `/v1/completions` in one of several dialects, and fails as `FaultyServer`.

What it writes is a function of the prompt as it reads it and the seed, so that tests know it beforehand.
"""

import hashlib
import json
import time

import tiny
from rewards.faulty_server import HARMLESS, FaultyServer, Request, _Handler

PLAIN = {"model", "prompt", "max_tokens", "temperature", "top_p", "seed", "n", "logit_bias"}
VLLM = PLAIN | {"top_k", "min_tokens", "stop_token_ids", "return_token_ids"}
MODEL = "tagged"
EOS = 0


def written(prompt_ids, seed: int, most: int) -> list[int]:
    """The completion of a prompt: ordinary tokens, and sometimes an EOS."""
    digest = hashlib.sha256(f"{list(prompt_ids)} {seed}".encode()).digest()
    ids = [1 + byte % 90 for byte in digest[:most]]
    return [*ids[: most // 2], EOS] if digest[-1] % 2 else ids


class CompletionsServer(FaultyServer):
    """Open inside `with`; `url` is its base URL.

    Args:
        dialect: "vllm" takes and returns token ids; "text" is as vLLM for text alone; "openai" takes token ids and no
            fields but OpenAI's; "misread" takes token ids for a text.
        key: Another one is a 401; None takes any.
    """

    def __init__(self, dialect: str = "vllm", *, key: str | None = None, **options):
        super().__init__(**options)
        self.RequestHandlerClass = _CompletionsHandler
        self.dialect, self.key, self.tokenizer = dialect, key, tiny.tokenizer()

    @property
    def bodies(self) -> list[dict]:
        """Of the requests but for the probe's."""
        return [request.body for request in self.requests if request.body["seed"]]


class _CompletionsHandler(_Handler):
    server: CompletionsServer

    def do_POST(self):
        arrived = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.path != "/v1/completions":
            return self.answer(404, {"error": {"message": f"no such path {self.path}"}})
        fault = self.server.note(str(arrived["prompt"]), arrived, self.path)
        self.fail(fault) if fault and fault not in HARMLESS else self.complete(arrived, fault)

    def complete(self, arrived, fault):
        dialect, tokenizer, prompt = self.server.dialect, self.server.tokenizer, arrived["prompt"]
        if fault == "slow":
            time.sleep(0.02)
        if self.server.key and self.headers["Authorization"] != f"Bearer {self.server.key}":
            return self.answer(401, {"error": {"message": f"wrong key {self.headers['Authorization']}"}})
        if arrived["model"] != MODEL:
            return self.answer(404, {"error": {"message": f"The model `{arrived['model']}` does not exist."}})
        if unknown := arrived.keys() - (PLAIN if dialect == "openai" else VLLM):
            return self.answer(400, {"error": {"message": f"Unrecognized argument: {min(unknown)}"}})
        if dialect == "text" and not isinstance(prompt, str):
            return self.answer(422, {"detail": "prompt must be a string."})
        if dialect == "misread" and not isinstance(prompt, str):
            prompt = str(prompt)
        read = tokenizer(prompt)["input_ids"] if isinstance(prompt, str) else prompt
        ids = written(read, arrived["seed"], arrived["max_tokens"])
        choice = {
            "index": 0,
            "text": tokenizer.decode(ids, skip_special_tokens=True),
            "finish_reason": "stop" if ids[-1] == EOS else "length",
        }
        if arrived.get("return_token_ids") and dialect == "vllm":
            choice["token_ids"] = ids
        choices = [] if fault == "missing" else [choice]
        self.answer(200, {"object": "text_completion", "choices": choices, "usage": {"prompt_tokens": len(read)}})


__all__ = ["EOS", "MODEL", "CompletionsServer", "Request", "written"]
