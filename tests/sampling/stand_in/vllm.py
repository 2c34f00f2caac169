"""A stand-in for vLLM: the signatures and refusals of its `LLM` and `SamplingParams` as its sources have them.

It writes a line about each call to $STAND_IN_LOG, and completions that are a function of the prompt and the seed, to
which it adds the index as vLLM does. Like vLLM it has a process of its own. $STAND_IN_DIES_AT: the call it dies at.
"""

import hashlib
import json
import os
import signal
import subprocess
from dataclasses import asdict, dataclass
from pathlib import Path
from types import SimpleNamespace


@dataclass
class SamplingParams:
    n: int = 1
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    seed: int | None = None
    stop: str | list[str] | None = None
    stop_token_ids: list[int] | None = None
    ignore_eos: bool = False
    max_tokens: int | None = 16
    min_tokens: int = 0
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    detokenize: bool = True
    skip_special_tokens: bool = True
    logit_bias: dict[int, float] | None = None

    def __post_init__(self):
        if self.temperature < 1e-5 and self.n > 1:
            raise ValueError(f"n must be 1 when using greedy sampling, got {self.n}.")
        if self.temperature > 2:
            raise ValueError(f"temperature must be in [0, 2], got {self.temperature}.")
        if self.top_k < -1:
            raise ValueError(f"top_k must be 0 (disable), or at least 1, got {self.top_k}.")
        assert all(isinstance(i, int) for i in self.logit_bias or {})


class LLM:
    def __init__(
        self,
        model: str,
        *,
        tokenizer: str | None = None,
        tokenizer_mode: str = "auto",
        skip_tokenizer_init: bool = False,
        trust_remote_code: bool = False,
        tensor_parallel_size: int = 1,
        dtype: str = "auto",
        quantization: str | None = None,
        revision: str | None = None,
        tokenizer_revision: str | None = None,
        seed: int = 0,
        gpu_memory_utilization: float = 0.9,
        enforce_eager: bool = False,
        max_model_len: int | None = None,
    ):
        print("INFO: vLLM writes to stdout")
        assert not {"RANK", "WORLD_SIZE", "TORCHELASTIC_RUN_ID"} & set(os.environ), "it would join their rendezvous"
        if not os.path.isfile(os.path.join(model, "config.json")):
            raise ValueError(f"Invalid repository ID or local directory specified: {model!r}")
        self.told = {
            **{"model": model, "tensor": tensor_parallel_size, "dtype": dtype, "memory": gpu_memory_utilization},
            **{"revision": revision, "trust": trust_remote_code, "pid": os.getpid()},
            **{"devices": os.environ.get("CUDA_VISIBLE_DEVICES"), "room": max_model_len, "weights": weights(model)},
            "core": subprocess.Popen(["sleep", "600"], stdin=subprocess.DEVNULL).pid,
        }
        self.rows = json.loads(Path(model, "config.json").read_text())["vocab_size"]
        self.calls = 0

    def generate(self, prompts, sampling_params=None, *, use_tqdm=True, lora_request=None, priority=None):
        assert len(prompts) == len(sampling_params)
        self.calls += 1
        if self.calls == int(os.environ.get("STAND_IN_DIES_AT", "0")):
            os.kill(os.getpid(), signal.SIGKILL)
        for prompt, params in zip(prompts, sampling_params, strict=True):
            if unknown := [i for i in params.logit_bias or {} if i >= self.rows]:
                raise ValueError(f"token_id(s) {unknown} in logit_bias contain out-of-vocab token ids.")
            if self.told["room"] is not None and len(prompt["prompt_token_ids"]) > self.told["room"]:
                raise ValueError("The decoder prompt is longer than the maximum model length")
        self.told |= {"prompts": len(prompts), "params": [asdict(params) for params in sampling_params]}
        with open(os.environ["STAND_IN_LOG"], "a") as log:
            log.write(json.dumps(self.told) + "\n")
        return [
            SimpleNamespace(outputs=[completion(prompt["prompt_token_ids"], params, i) for i in range(params.n)])
            for prompt, params in zip(prompts, sampling_params, strict=True)
        ]


def weights(folder: str | Path) -> str:
    """A digest of a folder's tensors."""
    from safetensors.numpy import load_file

    tensors = load_file(Path(folder, "model.safetensors"))
    return hashlib.sha256(b"".join(name.encode() + tensors[name].tobytes() for name in sorted(tensors))).hexdigest()


def completion(ids: list[int], params: SamplingParams, index: int) -> SimpleNamespace:
    seed = params.seed + index if params.temperature else "greedy"
    digest = hashlib.sha256(f"{list(ids)} {seed}".encode()).digest()
    found = [1 + byte % 90 for byte in digest[: params.max_tokens]]
    if digest[-1] % 2:
        found[-1] = params.stop_token_ids[0]
    return SimpleNamespace(index=index, text="", token_ids=tuple(found), finish_reason="length")
