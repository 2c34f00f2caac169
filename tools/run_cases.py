"""Run small programs with unusual models, data and settings, and compare what each prints with what is right.

    python tools/run_cases.py ../shared/cases            # all of them, about twelve minutes; needs a finished `make demo`
    python tools/run_cases.py ../shared/cases 04 shell/27

The programs may name modules by earlier paths, so copies of them are changed and run. A line of the table is a case, its state, and the last line it
printed. The exit code is 1 if a case prints something else than what is right.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
MOVED = {  # earlier names in the programs, as patterns → today's
    r"from nlf\.batches import": "from nlf.models.encoder import",
    r"from nlf\.policy import": "from nlf.models.policy import",
    r"from nlf\.arguments import": "from nlf.cli.arguments import",
    r"from nlf\.perplexity import": "from nlf.evaluation.perplexity import",
    r"(?m)^from nlf import cli$": "from nlf.cli import main as cli",
    r"\$PYTHONPATH/nlf/lm": "$PYTHONPATH/nlf/assets/lm",
    "generations-moderate-toxicity": "generations-moderate-politeness",  # the words come from the reward
    r'"--eval_max_completion_length"': '"--max_completion_length"',
    r'\\"distilled( in Results|\\" in s\()': r'\\"plain\1',  # the demo's model without tags is the plain one
    r"\*\*tr\.facts\(\), \*\*tr\.sampling_settings\(\)": "**__import__('nlf.training.settings', fromlist=['']).sampling_settings("
    "tr.args, tr.policy, tr.encoder, tr.inputs.prompts, tr.inputs.rewards)",
}
ONE_LINE = "exit 2; traceback: False"
NEVER = ("Traceback", "traceback: True", r"\bnan\b")

# What each case must print (`has`) and must not print (`lacks`), as patterns.
RIGHT: dict[str, dict[str, list[str]]] = {
    "01-generation-config": {"has": ["nlf train: exit 0", "final model written: True"]},
    "02-no-pad-or-eos-token": {"has": ["no EOS token: UserError"], "lacks": ["no pad token: \\w*Error"]},
    "03-ids-the-reference-does-not-know": {"lacks": ["IndexError"]},
    "04-tag-that-is-a-word-of-the-vocabulary": {
        "has": [r"loading: \['<\|separator\|>'\]", "distill: exit 0"],
        "lacks": ["EOS banned from sampling: True"],
    },
    "06-chat-templates": {
        "has": [r"\(a\).*exit 0", r"\(b\) leaves.*exit 0", rf"\(c\).*{ONE_LINE}", "for every tag: False"],
        "lacks": [r"losses: .*0\.693147, 0\.693147"],
    },
    "07-chat-max-prompt-length": {"lacks": ["reference reads 40 tokens", r"or set --max_prompt_length"]},
    "08-chat-model-card": {"lacks": [r"write\('Lowest Toxicity<\|separator\|>"]},
    "09-eval-dataset-though-eval-is-off": {"has": ["conversations.*exit 0", "not there.*exit 0"]},
    "10-persistent-workers": {"has": ["a persistent worker == no workers: True"]},
    "11-functional-dropout": {"lacks": [r"mode: 0\.0*[1-9]"]},
    "12-save-only-model": {
        "has": ["only_model=False: resumed == unbroken: True"],
        "lacks": ["resumed == unbroken: False"],
    },
    "13-nan-in-another-column": {"has": ["score of that: exit 0", "evaluate: exit 0", "evaluate, Parquet: exit 0"]},
    "14-lora-and-embeddings": {"lacks": [r"\((a|b|c)\).*: (Value|Type|Runtime)Error"]},
    "15-spaces-of-sentencepiece": {},  # it decodes a completion alone, as sampling no longer does
    "16-models-without-past-key-values": {
        "has": [
            rf"{kind}: exit (0|2); traceback: False" for kind in ("mamba", "recurrent_gemma", "rwkv", "openai-gpt")
        ]
    },
    "17-errors-while-loading": {"has": [rf"\({letter}\).*{ONE_LINE}" for letter in "abcd"]},
    "18-errors-of-the-trainer": {
        "has": [rf"\({letter}\).*{ONE_LINE}" for letter in "abcdfg"] + [r"\(e\).*exit 0"],
        "lacks": [r"\(g\).*exit 0"],
    },
    "19-rewards-of-another-kind": {"lacks": ["every reward is 100", "inputs_embeds"]},
    "21-prefix-that-is-not-bos": {"has": [r"nlf +: \['\[gMASK\]', '<sop>', 'good'\]"]},
    "22-chat-template-date-and-switches": {"has": ["same ids a moment later: True"]},
    "23-small-things": {
        "has": [
            r"\(a\): exit 0",
            r"metrics.jsonl: \[\]  card: \[\]",
            r"\(c\): exit 0",
            r"\(d\): exit (0|2); traceback: False",
        ]
    },
    "01-overwrites-foreign-files": {"has": [r"rc 2\nrc 2\n(.*\n)*mine\n(.*\n)*mine\n(.*\n)*mine"]},
    "02-two-evaluates-wrong-numbers": {"has": ["24 two/generations-base.jsonl"], "lacks": ["48 two"]},
    "03-tag-in-vocabulary-banned": {"has": [r"banned: \['<\|separator\|>'\]"], "lacks": ["error"]},
    "04-distill-of-python-run-uses-embedded-prompts": {
        "has": ["r/distilled\\n"],
        "lacks": ["hotel bar", "unknown reward"],
    },
    "05-template-without-system-role-silent": {"lacks": ["tag_margin': '0'"]},
    "06-template-refuses-system-role": {"has": ["(nlf: error: (.|\n)*){2}"]},
    "07-chat-run-evaluated-on-text-silent": {"lacks": ["best tag: Lowest"]},
    "08-reward-mutates-prompts": {"lacks": ["assistant"]},
    "09-resume-without-optimizer-silent": {"has": ["rc [02]"]},
    "12-missing-tensor-random": {"has": ["rc 2\nrc 2"]},
    "14-separator-is-eos": {"lacks": ["suppress_tokens"]},
    "15-prompt-with-separator": {"lacks": ["IndexError", "has token ids of"]},
    "16-import-ignores-crc": {"lacks": ["o: embedded"]},
    "17-score-makes-private-file-public": {"has": ["600"]},
    "18-push-to-hub": {"has": ["tags.json"], "lacks": ["rollouts/", r"token in files: \['", "training_args.bin"]},
    "19-partial-key-in-error": {"has": ["401"], "lacks": ["sk-proj-", "1234"]},
    "20-judge-echo-key-kept": {"has": ["^0\n0$"]},
    "21-retry-after-forever": {"lacks": ["124 \\(124"]},
    "22-two-trainings-hang": {"has": ["second rc 2"]},
    "23-disk-full-checkpoint": {"has": ["nlf: error: .*(space|full)"]},
    "24-torn-weights-traceback": {"has": ["nlf: error"]},
    "25-nlf.distill-second-call": {"has": ["UserError"], "lacks": ["not callable"]},
    "26-reward-weights-in-python": {"lacks": ["."]},
    "27-tags-without-letters": {"lacks": ["."]},
    "28-nan-column": {"lacks": ["."]},
    "31-trainer-mistakes-are-tracebacks": {"lacks": ["=> [A-Z]\\w*Error"]},
    "32-bad-url-tracebacks": {"has": ["0\n0\n0"]},
    "33-constant-reward-and-foreign-tags": {"lacks": ["Lowest Toxicity"]},
    "34-tag-tokens-traceback": {"lacks": ["IndexError"]},
    "35-cache-rows-and-pace": {"lacks": ["^victim", "JSONDecodeError"]},
    "37-report-hides-distilled": {"has": ["plain in Results: True in Control \\(one model under each tag\\): False"]},
    "38-two-scores-misleading": {"has": ["(nlf: error: (.|\n)*){3}"], "lacks": ["free some space"]},
}


def main() -> int:
    """Run the chosen cases and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", type=Path)
    parser.add_argument("names", nargs="*", help="starts of the cases to run, such as 04 or shell/27; default: all")
    parser.add_argument("--demo", type=Path, default=ROOT / "runs" / "demo")
    options = parser.parse_args()
    wrong = 0
    with tempfile.TemporaryDirectory() as scratch:
        for case in found(copied(options.cases, Path(scratch)), options.names):
            missing = compared(case.name, output := printed(case, options.demo))
            wrong += bool(missing)
            last = next((line for line in reversed(output.splitlines()) if line.strip()), "")
            print(f"{case.name:48s} {'right' if not missing else 'WRONG'}  {last[:120]}", flush=True)
            for pattern in missing:
                print(f"    {pattern}\n" + "\n".join(f"    | {line[:200]}" for line in output.splitlines()[-12:]))
    print(f"{wrong} wrong")
    return bool(wrong)


def copied(cases: Path, scratch: Path) -> Path:
    """A copy of the cases with today's module paths."""
    copy = Path(shutil.copytree(cases, scratch / "cases", copy_function=shutil.copyfile))
    for path in [*copy.rglob("*.py"), *copy.rglob("*.sh")]:
        path.parent.chmod(0o755)
        text = path.read_text(encoding="utf-8")
        for old, new in MOVED.items():
            text = re.sub(old, new, text)
        path.write_text(text, encoding="utf-8")
    return copy


def found(copy: Path, names: list[str]) -> list[Path]:
    """The folders of the cases whose names start as one of `names` does."""
    folders = sorted({path.parent for path in [*copy.glob("*/run.py"), *copy.glob("shell/*/run.sh")]})
    return [f for f in folders if not names or any(str(f.relative_to(copy)).startswith(name) for name in names)]


def printed(case: Path, demo: Path) -> str:
    """The output of a case."""
    command = [sys.executable, case / "run.py"] if (case / "run.py").is_file() else ["bash", case / "run.sh"]
    env = {"PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    env |= {"PY": sys.executable, "DEMO": str(demo.resolve()), "NLF_ROOT": str(ROOT)}
    done = subprocess.run(
        [*map(str, command)], env=os.environ | env, cwd=ROOT, text=True, errors="replace", timeout=600,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    return done.stdout


def compared(name: str, output: str) -> list[str]:
    """What the output lacks or should not have."""
    right = RIGHT.get(name, {})
    lacking = [f"lacks: {pattern}" for pattern in right.get("has", []) if not re.search(pattern, output)]
    told = [line for line in output.splitlines()[-2:] if line.startswith("nlf.errors.UserError: ")]
    if told:  # the right end of a script that calls the Python face
        output = re.sub(r"(?s)Traceback \(most recent call last\):.*", "", output) + told[0]
    found = [*NEVER, *right.get("lacks", [])]
    return lacking + [f"has: {pattern}" for pattern in found if re.search(pattern, output)]


if __name__ == "__main__":
    sys.exit(main())
