"""A collector without a Trainer: a sampler that counts, a reward that counts, and a record of their calls."""

from types import SimpleNamespace

import tiny
import torch

from nlf.config import SamplingOptions
from nlf.data.feedback import make_feedback
from nlf.method.prompt_order import choose_prompts, number_occurrences
from nlf.method.tags import TagScheme
from nlf.models.encoder import PromptEncoder
from nlf.models.policy import Policy
from nlf.rewards import Reward
from nlf.sampling import request_key
from nlf.sampling.rollout_table import PromptSampler
from nlf.training.collector import RolloutCollector, Scoring, Source
from nlf.training.ranks import Ranks, Share
from nlf.training.settings import Stamp

SCHEME = TagScheme()
PROMPTS = [{"prompt": f"prompt {i}", "prompt_id": f"p{i}", "row": i} for i in range(6)]
ROW_OF = {request_key(f"p{i}", 0): i for i in range(6)}


class Recorder:
    """Six prompts in parts of two, three completions each, for which sampler and reward note the rows they are given.

    Attributes:
        sampled: The prompt rows of each call to the sampler.
        queries: The token ids of each query in the last call to the sampler.
        scored: The prompt rows of each call to the reward.
        fail_at: ("sample" or "score", n): call n raises KeyboardInterrupt.
    """

    label = "recorder"

    def __init__(self, folder, policy="a", iteration=0, remote=False, outdated=False, **changes):
        self.sampled, self.scored, self.queries, self.fail_at, self.closed = [], [], [], None, 0
        self.reward = Reward(self.rewards_of, "reward")
        tokenizer = tiny.tokenizer()
        rows = torch.nn.Embedding(len(tokenizer), 1)
        model = SimpleNamespace(generation_config=SimpleNamespace(eos_token_id=0), get_input_embeddings=lambda: rows)
        sampler = PromptSampler(
            Policy(model, tokenizer, SCHEME), PromptEncoder(tokenizer, SCHEME), self,
            SamplingOptions(num_generations=3), seed=0,
        )  # fmt: skip
        values = {
            "run_dir": folder,
            "prompts": PROMPTS,
            "prompts_per_part": 2,
            "source": Source(Stamp(iteration, 0, policy, "s"), sampler, outdated),
            "scoring": Scoring([self.reward], by_first=[self.reward] if remote else []),
            "feedback": make_feedback(SCHEME, ["reward"], seed=0),
            "quiet": True,
        }
        self.collector = RolloutCollector(**values | changes)

    def sample(self, requests, options, *, seed, iteration, progress=None):
        """Token ids [iteration, row, index] of each completion."""
        if self.fail_at == ("sample", len(self.sampled)):
            raise KeyboardInterrupt
        rows = [ROW_OF[request.key] for request in requests]
        self.sampled.append(rows)
        self.queries = [request.input_ids for request in requests]
        return [[[iteration, row, n] for n in range(options.num_generations)] for row in rows]

    def close(self):
        self.closed += 1

    def rewards_of(self, prompts, completions, completion_ids, row, **columns):
        if self.fail_at == ("score", len(self.scored)):
            raise KeyboardInterrupt
        self.scored.append(list(dict.fromkeys(row)))
        return [float(ids[1] + ids[2] / 10) for ids in completion_ids]


def collect(made: Recorder, words=lambda: [None] * len(PROMPTS)) -> None:
    """Sample and score all six prompts."""
    rows = choose_prompts(len(PROMPTS), None, 0, made.collector.iteration)
    parts = made.collector.parts(number_occurrences(rows, [row["prompt_id"] for row in PROMPTS]))
    made.collector.sample(parts, words)
    made.collector.score(parts)


def rank(number: int | None, of: int = 2, **changes) -> Ranks:
    """One of several ranks, without a barrier."""
    return Ranks(Share(number, of), number == 0, **changes)
