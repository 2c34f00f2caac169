"""A run of tiny models, and `nlf serve` for it in this process."""

import contextlib
import json
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import tiny
import yaml

from nlf.config import ServeOptions
from nlf.method.tags import TagScheme
from nlf.models.policy import prepare_policy, save_policy
from nlf.serving import server
from nlf.serving.completions import application
from nlf.serving.served import Service, writers_of

LENGTH = 6  # max_completion_length of the run


def make_run(path: Path, settings: Mapping[str, Any] | None = None, **scheme) -> str:
    """A run with a tagged model, its base and a plain model. `settings` are further lines of its config.yaml."""
    base = tiny.save(path / "base", "llama", seed=1)
    run = path / "run"
    tokenizer = tiny.tokenizer()
    if scheme.get("conversational"):
        tokenizer.chat_template = tiny.CHAT_TEMPLATE
    save_policy(prepare_policy(tiny.model("llama"), tokenizer, TagScheme(**scheme)), run)
    tiny.save(run / "plain", "llama", seed=2)
    own = {"model_name_or_path": base, "reward_funcs": ["local"], "max_completion_length": LENGTH}
    (run / "config.yaml").write_text(yaml.safe_dump({**own, **(settings or {})}))
    (run / "run.json").write_text(json.dumps({"train_prompts": "0"}))
    return str(run)


@contextlib.contextmanager
def running(run: str, key: str = "", hosts=None, **options) -> Iterator[tuple[str, Service]]:
    """Run the server inside `with`, and give its URL and its service."""
    chosen = ServeOptions(model=run, **options)
    service = Service(writers_of(chosen), chosen, key)
    listener = server.listen("127.0.0.1", 0)
    serves = server.server_of(application(service, hosts))
    thread = threading.Thread(target=serves.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        yield server.url_of(listener), service
    finally:
        serves.should_exit = True
        thread.join()
        service.stop()
