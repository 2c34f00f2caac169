"""`nlf chat`: prompts in the terminal, and their completions as they come, under a tag that can be changed.

    /tag [WORDS]        show the tags, or write under another one; 'none' is the bare prompt, A | B one tag for each attribute
    /guidance [NUMBER]  show or set the strength of guidance
    /base               the same prompt once more, completed by the model that the run started from
    /score              the scores of the last completion
    /new                forget the conversation
    /help, /quit

A model that was trained on conversations remembers the turns; any other model completes each text alone. Ctrl-C stops a
completion, and at the prompt it discards the line; Ctrl-D ends the program.
"""

import contextlib
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np

from nlf.config import RemoteOptions, SamplingOptions, TerminalOptions, sampling_options
from nlf.data.prompts import Prompt
from nlf.data.run_folder import model_folder, run_settings, trained_run
from nlf.errors import UserError, did_you_mean
from nlf.evaluation.run_defaults import recorded_base
from nlf.evaluation.sample import EVALUATION
from nlf.evaluation.systems import load_for_commands, with_tags
from nlf.evaluation.writer import Writer, writer_of
from nlf.rewards import Reward
from nlf.rewards.contract import score
from nlf.rewards.registry import configure, resolve_reward
from nlf.sampling.continuous import Decoder, rows_of
from nlf.sampling.text import TextStream, seam_of

PROMPT = "> "
HELP = "\n".join(__doc__.split("\n\n")[1].splitlines())


def chat_command(options: TerminalOptions) -> str:
    """`nlf chat`: talk until Ctrl-D, and return a line for the end."""
    options = replace(options, model=model_folder(options.model))
    policy = with_tags(load_for_commands(options.model, options, digest=False), options.tags)
    talk = Talk(writer_of(policy, options.model), options)
    with contextlib.suppress(ImportError):  # Windows has no readline
        import readline  # noqa: F401  # input() edits lines and remembers them once it is loaded
    show(f"{options.model}, {talk.condition}; /help lists the commands, Ctrl-D ends\n")
    while (line := ask()) is not None:
        with told():
            if not talk.take(line.strip()):
                break
    return f"{talk.count} completions"


def ask() -> str | None:
    """A line of the person; None = the end. Ctrl-C discards a line."""
    while True:
        try:
            return input(PROMPT)
        except KeyboardInterrupt:
            show("\n")
        except EOFError:
            show("\n")
            return None


@contextlib.contextmanager
def told() -> Iterator[None]:
    """Inside the `with` block a mistake is told in a line, Ctrl-C ends what runs, and the program goes on."""
    try:
        yield
    except UserError as error:
        show(f"{error}\n")
    except KeyboardInterrupt:
        show("\n")


def show(text: str) -> None:
    """Write to the terminal at once. Characters that could steer a terminal are left out: texts of models are hostile."""
    sys.stdout.write("".join(c for c in text if c.isprintable() or c in "\n\t"))
    sys.stdout.flush()


class Talk:
    """A person's talk with a model.

    Attributes:
        tag: The words before the next prompt; None = the bare prompt.
        turns: The conversation so far; unused if the model completes texts.
        count: Completions so far.
    """

    def __init__(self, writer: Writer, options: TerminalOptions):
        self.writer, self.options = writer, options
        self.sampling = sampling_options(options)
        self.tag, self.negative = writer.words(options.tag), options.negative_tag
        writer.guided(self.sampling, self.negative)  # a mistake is told before the first prompt
        self.chats = writer.chats
        self.turns: list[dict] = []
        self.prompt: Prompt | None = None
        self.completion = ""
        self.count = 0
        self.base: Writer | None = None
        self.scorers: list[Reward] | None = None
        self.decoders: dict[int, Decoder] = {}

    @property
    def condition(self) -> str:
        """The tag and the guidance, in words."""
        words = f"after {self.tag!r}" if self.tag else "without a tag"
        return words + (f", guidance {self.sampling.guidance_scale:g}" if self.sampling.guidance_scale else "")

    def take(self, line: str) -> bool:
        """Do what a line says. False = it ends the program.

        Raises:
            UserError: it says something that cannot be done.
        """
        if not line.startswith("/"):
            if line:
                self._write(line)
            return True
        name, _, rest = line[1:].partition(" ")
        if name in ("quit", "exit"):
            return False
        if name not in self.commands:
            raise UserError(f"unknown command /{name}{did_you_mean(name, self.commands)}; /help lists the commands")
        self.commands[name](rest.strip())
        return True

    @property
    def commands(self) -> dict[str, Callable[[str], None]]:
        """What each command does with the words after it."""
        return {
            **{"tag": self._tag, "guidance": self._guidance, "base": self._base, "score": self._score},
            **{"new": self._new, "help": lambda _: show(f"{HELP}\n")},
        }

    def _write(self, line: str) -> None:
        turns = [*self.turns, {"role": "user", "content": line}]
        self.prompt = turns if self.chats else line
        self.completion = self._stream(self.writer, self.prompt, self.tag)
        self.turns = [*turns, {"role": "assistant", "content": self.completion}]

    def _stream(self, writer: Writer, prompt: Prompt, words: str | None) -> str:
        """Show a completion as it comes, and return it. Ctrl-C ends it there."""
        options = replace(
            writer.guided(self.sampling if words else plain(self.sampling), self.negative), num_generations=1
        )
        (numbered,) = writer.prompts([prompt])
        (request,) = writer.requests([numbered], words, options)
        (row,) = rows_of(request, options, seed=self.options.seed + self.count, iteration=EVALUATION)
        decoder = self._decoder(writer)
        decoder.check([row])
        decoder.add([row])
        text = TextStream(writer.policy.tokenizer, seam_of(prompt, writer.prompt_ids(numbered)))
        self.count += 1
        try:
            while decoder.busy:
                decoder.step()
                show(text.add(row.out[len(text.ids) - len(text.seam) :]))
            show(text.finish())
        except KeyboardInterrupt:
            decoder.reset()  # the pass that was cut short may have left it half done
            show(" …")
        show("\n")
        return text.text

    def _decoder(self, writer: Writer) -> Decoder:
        if id(writer) not in self.decoders:
            self.decoders[id(writer)] = writer.decoder(most_rows=1)
        return self.decoders[id(writer)]

    def _tag(self, words: str) -> None:
        if words:
            self.tag = self.writer.words([each.strip() for each in words.split("|")] if "|" in words else words)
        own = [f"{each.name}: {', '.join(each.tags)}\n" for each in self.writer.attributes]
        show("".join(own) or f"{', '.join(self.writer.tags) or 'this model has no tags'}\n")
        show(f"{self.condition}\n")

    def _guidance(self, words: str) -> None:
        if words:
            sampling = replace(self.sampling, guidance_scale=words)  # type: ignore[arg-type]  # read as a flag is
            self.writer.guided(sampling, self.negative)
            self.sampling = sampling
        show(f"{self.condition}\n")

    def _base(self, _: str) -> None:
        if self.prompt is None:
            raise UserError("/base completes the last prompt with the base model; write a prompt first")
        if self.base is None:
            path = recorded_base(run_settings(Path(self.options.model)), self.options.model)
            if path is None:
                raise UserError("/base: this model is of no run that names the model that it started from")
            self.base = Writer(load_for_commands(path, self.options, digest=False))
        self._stream(self.base, self.prompt, None)

    def _score(self, _: str) -> None:
        if self.prompt is None:
            raise UserError("/score scores the last completion; write a prompt first")
        if self.scorers is None:
            run = trained_run(self.options.model)
            names = self.options.reward_funcs or run.get("reward_funcs") or ["local"]
            configure(RemoteOptions())
            self.scorers = [resolve_reward(name) for name in names]
        answer = [{"role": "assistant", "content": self.completion}] if self.chats else self.completion
        found = score(self.scorers, None, [self.prompt], [answer], [[]], {})
        told = {**found.per_function, **found.attributes}
        numbers = {name: "not scored" if np.isnan(value[0]) else f"{value[0]:.3f}" for name, value in told.items()}
        show("\n".join(f"{name}  {number}" for name, number in numbers.items()) + "\n")

    def _new(self, _: str) -> None:
        self.turns, self.prompt, self.completion = [], None, ""


def plain(sampling: SamplingOptions) -> SamplingOptions:
    """The sampling rule without guidance, which contrasts two tags."""
    return replace(sampling, guidance_scale=0.0)
