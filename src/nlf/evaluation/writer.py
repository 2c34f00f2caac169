"""`nlf.load(RUN).write(prompt, tag=…)`: completions in Python, equal to those of `nlf sample` with the same seed.

A `Writer` is a loaded model with its tags. The server and the chat use it too: it reads a request's words and makes the
token ids of its prompt.
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

from nlf.config import Attribute, LoadOptions, SampleRuleOptions, SamplingOptions, attributes_of, sampling_options
from nlf.config.objective import LENGTH, LENGTHS, is_open
from nlf.data.prompts import NumberedPrompt, Prompt, as_prompts, kind_of, numbered
from nlf.data.run_folder import trained_run
from nlf.errors import UserError, did_you_mean
from nlf.evaluation.sample import EVALUATION
from nlf.evaluation.systems import chosen_tag, load_for_commands, negative_tag, with_tags
from nlf.models.encoder import PromptEncoder
from nlf.models.policy import Policy
from nlf.sampling import Request, Sampler
from nlf.sampling.continuous import Decoder
from nlf.sampling.factory import sampler_of
from nlf.sampling.rollout_table import PromptSampler

Tag = str | Sequence[str] | None  # a tag; one tag for each attribute; None = the bare prompt
NONE = "none"  # the name of the bare prompt, as `--tag` has it


@dataclass(frozen=True)
class Writer:
    """A model that writes completions of prompts under its tags.

    Attributes:
        attributes: The attributes that a model was trained on, each with its own tags; none if its tags are of one reward.
        joint: The text between the tags of two attributes.
        length: The run's max_completion_length; None = it follows the prompts.
    """

    policy: Policy
    attributes: Sequence[Attribute] = ()
    joint: str = ""
    length: int | None = None

    def write(
        self,
        prompt: Prompt,
        *,
        tag: Tag = "best",
        feedback: str | None = None,
        negative_tag: Tag = None,
        guidance_scale: float = 0.0,
        n: int = 1,
        seed: int = 0,
        **rule: Any,
    ) -> list[str]:
        """Write completions of a prompt.

        Args:
            prompt: A text, or a conversation `[{"role": "user", "content": "…"}]`.
            tag: 'best', 'middle', 'none', the words of a tag, or a list with one tag for each attribute.
            feedback: Words of your own in place of a tag; special tokens and line breaks are taken out.
            negative_tag: The tag that guidance moves away from; None = the worst tag.
            guidance_scale: Strength of guidance: transformers' `guidance_scale` minus 1; 0 = none.
            n: Number of completions.
            seed: With the prompt it fixes every random number.
            rule: The other knobs of `nlf sample`'s sampling: max_completion_length, min_completion_length, temperature,
                top_p, top_k.

        Returns:
            n texts.

        Raises:
            UserError: the model has no such tag, a knob has a value that is not allowed, or the prompt does not fit.
        """
        words, rows = self.words(tag, feedback), self.prompts([prompt])
        asked = SampleRuleOptions(num_generations=n, guidance_scale=guidance_scale, **rule)
        if is_open(LENGTH, asked.max_completion_length):
            asked = replace(asked, max_completion_length=self.usual_length(rows))
        options = self.guided(sampling_options(asked), negative_tag)
        sampler = PromptSampler(self.policy, self._encoder, self._sampler, options, seed)
        return sampler.table(rows, [words] * len(rows), iteration=EVALUATION)["completion"].to_pylist()

    def usual_length(self, prompts: Sequence[NumberedPrompt]) -> int:
        """Most new tokens of completions of these prompts, where nobody names a number: as in `nlf sample`."""
        return self.length or LENGTHS[kind_of([prompt.row for prompt in prompts])]

    def words(self, tag: Tag = "best", feedback: str | None = None) -> str | None:
        """The words before a prompt; None = the bare prompt.

        Args:
            tag, feedback: See `write`.

        Raises:
            UserError: the model has no such tag or no tags, or nothing is left of the feedback.
        """
        if feedback is None:
            return self._known(tag)
        if self.policy.scheme is None:
            raise UserError("feedback: this model has no tags, so it reads no feedback; choose a model with tags")
        if (words := self._encoder.sentence(feedback)) is None:
            raise UserError("feedback: nothing is left without special tokens and spaces; expected some words")
        return words

    def guided(self, options: SamplingOptions, negative: Tag = None) -> SamplingOptions:
        """The options with the tag that guidance moves away from; unchanged without guidance.

        Raises:
            UserError: the model has no such tag, or no tags.
        """
        if not options.guidance_scale:
            return replace(options, negative_tag=None) if options.negative_tag else options
        words = negative if negative is None or isinstance(negative, str) else self._join(negative)
        return replace(options, negative_tag=words if words in self._joined else negative_tag(self.policy, words))

    def prompts(self, prompts: Sequence[Prompt]) -> list[NumberedPrompt]:
        """The prompts, checked.

        Raises:
            UserError: the model cannot read a prompt.
        """
        rows = as_prompts([{"prompt": prompt} for prompt in prompts])
        self._encoder.check(rows)
        return numbered(rows)

    def prompt_ids(self, prompt: NumberedPrompt) -> list[int]:
        """The token ids of a prompt, without words."""
        return self._encoder.prompt_ids(prompt.row["prompt"])

    def requests(
        self, prompts: Sequence[NumberedPrompt], words: str | None, options: SamplingOptions
    ) -> list[Request]:
        """The prompts after these words, as the sampler reads them."""
        sampler = PromptSampler(self.policy, self._encoder, self._sampler, options, 0)
        return sampler.requests(prompts, [words] * len(prompts))

    def decoder(self, most_rows: int) -> Decoder:
        """A decoder of the model, for completions that come and go.

        Args:
            most_rows: Most completions at the same time.
        """
        policy = self.policy
        return Decoder(policy.model, eos=policy.eos_token_ids, banned=policy.banned_token_ids, most_rows=most_rows)

    @property
    def tags(self) -> tuple[str, ...]:
        """The tags, best first; none if the model has no tags."""
        return self.policy.scheme.tags if self.policy.scheme else ()

    @property
    def chats(self) -> bool:
        """Whether the model answers conversations; any other model completes texts."""
        known = self.policy.scheme.conversational if self.policy.scheme else None
        return bool(self.policy.tokenizer.chat_template) if known is None else known

    def _known(self, tag: Tag) -> str | None:
        if tag is None:
            return None
        if not isinstance(tag, str):
            return self._join(tag)
        return tag if tag in self._joined else chosen_tag(self.policy, tag)

    def _join(self, tags: Sequence[str]) -> str:
        """The joined tag of one tag for each attribute."""
        if len(tags) != max(len(self.attributes), 1):
            names = ", ".join(each.name for each in self.attributes) or "one reward"
            raise UserError(f"tag: {len(tags)} words, and this model's tags are of {names}; give one for each")
        if not self.attributes:
            return str(self._known(tags[0]))
        for tag, own in zip(tags, self.attributes, strict=True):
            if tag not in own.tags:
                known = ", ".join(map(repr, own.tags))
                raise UserError(f"unknown tag {tag!r}{did_you_mean(tag, own.tags)}; the tags of {own.name}: {known}")
        return self.joint.join(tags)

    @functools.cached_property
    def _joined(self) -> frozenset[str]:
        """Every combination of the attributes' tags."""
        own = [each.tags for each in self.attributes]
        return frozenset(map(self.joint.join, product(*own))) if own else frozenset()

    @functools.cached_property
    def _encoder(self) -> PromptEncoder:
        return self.policy.encoder()

    @functools.cached_property
    def _sampler(self) -> Sampler:
        return sampler_of(self.policy)


def load(
    model: str,
    *,
    tags: Sequence[str] | None = None,
    device: str | None = None,
    model_revision: str = "main",
    dtype: str = "float32",
    trust_remote_code: bool = False,
    chat_template_kwargs: dict | None = None,
) -> Writer:
    """Load a model for `Writer.write`.

    Args:
        model: A run folder, the folder of any causal language model, a hub id, or 'embedded'.
        tags: Tags in place of the model's own, best first, or the path of a `tags.json`.
        device: None = this machine's accelerator, else its CPU.
        model_revision, dtype, trust_remote_code, chat_template_kwargs: See `nlf sample --help`.

    Raises:
        UserError: the model cannot be loaded.
    """
    options = LoadOptions(
        model=str(model), model_revision=model_revision, dtype=dtype,  # type: ignore[arg-type]  # checked there
        trust_remote_code=trust_remote_code, chat_template_kwargs=chat_template_kwargs,
    )  # fmt: skip
    return writer_of(with_tags(load_for_commands(options.model, options, device, digest=False), tags), str(model))


def writer_of(policy: Policy, model: str) -> Writer:
    """The writer of a loaded model, with the attributes and the length that its run recorded."""
    run = trained_run(model)
    attributes = attributes_of(run.get("attributes") or []) if policy.scheme else []
    return Writer(policy, attributes, run.get("attribute_template", "") if attributes else "", run.get(LENGTH))
