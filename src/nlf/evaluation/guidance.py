"""`nlf.TagGuidance`: guidance in transformers' own `generate`.

    guidance = nlf.TagGuidance(model, tokenizer, ["The weather in"], guidance_scale=1.0)
    model.generate(**guidance.inputs, logits_processor=[guidance], do_sample=True)

transformers has `guidance_scale` too, but it contrasts with one prompt for the whole batch, and it changes the probability
of EOS, so completions become shorter. Here each prompt is contrasted with itself after another tag, and EOS keeps its
probability, as in our sampler (`losses.guided_log_probs`).

Letters in shapes: P prompts, R rows = sequences, S tokens so far, V vocabulary.
"""

from collections.abc import Sequence
from typing import Any

import torch
from transformers import LogitsProcessor, PreTrainedModel, PreTrainedTokenizerBase

from nlf.config import SampleRuleOptions, sampling_options
from nlf.data.prompts import Prompt
from nlf.errors import UserError
from nlf.evaluation.systems import with_tags
from nlf.evaluation.writer import Tag, writer_of
from nlf.models.added_tokens import added_ids, load_tags
from nlf.models.cache import cached_forward, read_prompts
from nlf.models.encoder import pad
from nlf.models.policy import Policy
from nlf.models.reading import vocabulary_size
from nlf.sampling.draw import scores_of


class TagGuidance(LogitsProcessor):
    """Guides `generate` away from a tag. For sampling and greedy search; beams are refused.

    Args:
        model: A model that nlf has trained, from `from_pretrained`, with its `tags.json`.
        prompts: Texts or conversations.
        tag, negative_tag, guidance_scale: See `Writer.write`.
        tags: Tags in place of the model's own, best first.

    Attributes:
        inputs: What `generate` reads: the prompts after the tag, left padded, and no tokens suppressed by transformers, since the
            processor does that after the guidance.

    Raises:
        UserError: the model has no such tag or no tags, or cannot read a prompt.
    """

    cache: Any
    mask: torch.Tensor  # (R, S), of what the negative branch has read
    position: torch.Tensor  # (R, 1), of its last token
    seen: torch.Tensor  # (R, S), the ids of the last call

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        prompts: Sequence[Prompt],
        *,
        tag: Tag = "best",
        negative_tag: Tag = None,
        guidance_scale: float = 1.0,
        tags: Sequence[str] | None = None,
    ):
        path = model.name_or_path or ""
        scheme, _ = load_tags(path, tokenizer)
        added = added_ids(path, tokenizer, vocabulary_size(model))
        writer = writer_of(with_tags(Policy(model, tokenizer, scheme, None, added), tags), path)
        options = writer.guided(sampling_options(SampleRuleOptions(guidance_scale=guidance_scale)), negative_tag)
        requests = writer.requests(writer.prompts(prompts), writer.words(tag), options)
        self.scale, self.forward, self.device = options.guidance_scale, cached_forward(model), model.device
        self.eos, self.banned = list(writer.policy.eos_token_ids), list(writer.policy.banned_token_ids)
        self.negative = [request.negative_ids or () for request in requests]
        ids = [request.input_ids for request in requests]
        lengths = torch.tensor([len(each) for each in ids])
        self.width = int(lengths.max())
        mask = (torch.arange(self.width) >= self.width - lengths[:, None]).long()  # (P, S)
        self.inputs: dict[str, Any] = {
            "input_ids": pad(ids, 0, "left").to(self.device),
            "attention_mask": mask.to(self.device),
            "suppress_tokens": None,
        }

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        """Ids (R, S), logits (R, V) → log-probabilities (R, V)."""
        if not self.scale:
            logits = scores[None].clone()
        else:
            logits = torch.stack([scores, self._negative_logits(input_ids).to(scores)])  # (2, R, V)
        return scores_of(logits, self.scale, self.eos, self.banned)  # type: ignore[return-value]  # of its subclass

    def _negative_logits(self, input_ids: torch.Tensor) -> torch.Tensor:
        """Logits (R, V) after the negative tag, the prompt and the tokens so far."""
        if input_ids.shape[1] == self.width:
            return self._begin(input_ids)
        if not torch.equal(input_ids[:, :-1], self.seen):
            raise UserError("TagGuidance follows each sequence on its own; use sampling or greedy search, not beams")
        self.seen = input_ids
        self.mask = torch.cat([self.mask, self.mask.new_ones(len(self.mask), 1)], dim=1)
        self.position = self.position + 1
        logits, self.cache = self.forward(input_ids[:, -1:], self.mask, self.position, self.cache)
        return logits

    def _begin(self, input_ids: torch.Tensor) -> torch.Tensor:
        """Read the prompts after the negative tag, each for as many rows as `generate` has of it."""
        logits, self.cache = read_prompts(self.forward, self.negative, self.device)
        times = len(input_ids) // len(self.negative)
        self.cache.batch_repeat_interleave(times)
        lengths = torch.tensor([len(ids) for ids in self.negative], device=self.device).repeat_interleave(times)
        width = int(lengths.max())
        self.mask = (torch.arange(width, device=self.device) >= width - lengths[:, None]).long()  # (R, S)
        self.position, self.seen = lengths[:, None] - 1, input_ids
        return logits.repeat_interleave(times, dim=0)
