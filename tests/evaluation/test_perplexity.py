"""`nlf perplexity`: the published number to 1e-5, nothing measured twice, nothing stale, nothing dropped unsaid."""

import json
import math
import re

import pytest
import tiny
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from nlf.cli import main as cli
from nlf.data.generations import read_lines, write_lines
from nlf.evaluation import perplexity
from nlf.evaluation.perplexity import measure_file, model_label
from nlf.models.identity import vocabulary_digest
from nlf.models.policy import load_model, load_policy

EOS = 0


def line(tokenizer, prompt, completions: list[str], vocabulary: str = "another", ended: bool = True) -> dict:
    def ids(text):
        return tokenizer(text)["input_ids"]

    return {
        **{"prompt": prompt, "prompt_id": str(prompt), "occurrence": 0, "prompt_ids": ids(str(prompt))},
        **{
            "feedback": None,
            "completions": completions,
            "completion_ids": [ids(c) + [EOS] * ended for c in completions],
        },
        **{"ended": [ended] * len(completions), "columns": {}, "settings": {"vocabulary": vocabulary}},
    }


@pytest.fixture
def folder(tmp_path):
    tiny.save(tmp_path / "model")
    return tmp_path


@pytest.fixture
def run(folder, capsys):
    """`run(lines, …)`: the command on these lines; gives its table as {column: cell} of the last row."""

    def command(
        lines: list[dict] | None = None, *flags: str, model: str = "model", code: int = 0
    ) -> dict[str, str] | str:
        path = folder / "generations.jsonl"
        if lines is not None:
            write_lines(path, lines)
        assert cli.main(["perplexity", str(path), "--eval_model", str(folder / model), *flags]) == code
        shown = capsys.readouterr()
        if code:
            return shown.err.partition("nlf: error: ")[2]
        header, _, *_, row = [text for text in shown.out.splitlines() if text.startswith("|")]
        return dict(zip(*([cell.strip() for cell in text.split("|")[1:-1]] for text in (header, row)), strict=True))

    return command


def stored(folder) -> list[dict]:
    return [next(iter(row["likelihoods"].values())) for row in read_lines(folder / "generations.jsonl")]


@torch.no_grad()
def plain_nll(model, prompt: list[int], completion: list[int]) -> float:
    logp = model(torch.tensor([prompt + completion])).logits[0].double().log_softmax(-1)
    return -sum(float(logp[len(prompt) - 1 + t, token]) for t, token in enumerate(completion))


# ---- what is measured ---------------------------------------------------------------------------------------------


def test_ids_of_the_same_vocabulary_are_measured_as_they_are(folder, run):
    model, tokenizer = load_model(str(folder / "model"))
    row = line(tokenizer, "the river", [" is calm", " is"], vocabulary_digest(tokenizer))
    row["completion_ids"][1] = [7, 8, 9, EOS]  # other tokens than the text would give
    shown = run([row])
    nll = [plain_nll(model, row["prompt_ids"], ids) for ids in row["completion_ids"]]
    tokens = [len(ids) for ids in row["completion_ids"]]
    assert stored(folder)[0]["nll"] == pytest.approx(nll, rel=1e-5) and stored(folder)[0]["tokens"] == tokens
    assert shown["perplexity"].split()[0] == f"{math.exp(sum(nll) / sum(tokens)):.2f}" and shown["on"] == "ids"
    each = [math.exp(n / t) for n, t in zip(nll, tokens, strict=True)]
    assert shown["mean of completions"].split()[0] == f"{sum(each) / 2:.2f}"


def test_ids_of_another_vocabulary_are_not_used(folder, run):
    model, tokenizer = load_model(str(folder / "model"))
    row = line(tokenizer, "the river", [" is calm", ""])
    row["prompt_ids"], row["completion_ids"] = [99_999], [[99_999], []]
    shown = run([row])
    prompt, full = (tokenizer(text)["input_ids"] for text in ("the river", "the river is calm"))
    completion = full[len(prompt) :]
    assert stored(folder)[0]["tokens"] == [len(completion), 0] and stored(folder)[0]["prompt_tokens"] == len(prompt)
    assert stored(folder)[0]["nll"] == pytest.approx([plain_nll(model, prompt, completion), 0], rel=1e-5)
    assert shown["on"] == "text" and shown["empty completions"] == "1" and shown["completions"] == "2"


def test_a_token_across_the_seam_is_counted_as_published(folder, run):
    """NLL(joined) - NLL(prompt), although the prompt's last tokens are not among the joined ones."""
    model, tokenizer = load_model(str(folder / "model"))
    prompt, joined = (tokenizer(text)["input_ids"] for text in ("th", "the weather"))
    assert joined[: len(prompt)] != prompt and len(joined) > len(prompt)
    run([line(tokenizer, "th", ["e weather", "e"])])
    expected = plain_nll(model, joined[:1], joined[1:]) - plain_nll(model, prompt[:1], prompt[1:])
    assert stored(folder)[0]["nll"] == [pytest.approx(expected, rel=1e-5), 0.0]
    assert stored(folder)[0]["tokens"] == [len(joined) - len(prompt), 0]  # "the" is not longer than "th"


def test_unusual_completions_are_counted_and_published_leaves_them_out(folder, run):
    model, tokenizer = load_model(str(folder / "model"))
    model.lm_head.weight.data.mul_(300)
    model.save_pretrained(folder / "sharp")
    tokenizer.save_pretrained(folder / "sharp")
    one = line(tokenizer, "a", [" b c", ""])
    two = line(tokenizer, "we planted", [" beans", "zzz"])
    shown = run([one, two], "--published", model="sharp")
    assert (shown["one-token prompts"], shown["empty completions"], shown["prompts"]) == ("1", "1", "2")
    values = [math.exp(n / t) for row in stored(folder) for n, t in zip(row["nll"], row["tokens"], strict=True) if t]
    assert shown["1e4 or more"] == str(sum(value >= 1e4 for value in values)) != "0"
    kept = [value for value in values[1:] if value < 1e4]
    assert shown["left out of it"] == str(4 - len(kept))
    assert shown["published"] == (f"{sum(kept) / len(kept):.6g}" if kept else "none")


def test_conversations_need_a_chat_template(folder, run):
    tokenizer = tiny.tokenizer()
    talk = [{"role": "user", "content": "hello"}]
    assert "no chat template" in run([line(tokenizer, talk, [" yes"])], code=2)
    tokenizer.chat_template = tiny.CHAT_TEMPLATE
    tokenizer.save_pretrained(folder / "model")
    run()
    prompt = tokenizer("<user>hello\n<assistant>")["input_ids"]
    assert stored(folder)[0]["prompt_tokens"] == len(prompt)
    model = load_model(str(folder / "model"))[0]
    joined = tokenizer("<user>hello\n<assistant> yes")["input_ids"]
    assert stored(folder)[0]["nll"] == pytest.approx([plain_nll(model, prompt, joined[len(prompt) :])], rel=1e-5)


# ---- measured once, never stale -----------------------------------------------------------------------------------


@pytest.fixture
def asked(monkeypatch):
    """The completions that a model was asked about, in a list."""
    seen, real = [], perplexity.conditional_nll

    def watch(model, prompts, completions, **options):
        seen.extend(tuple(ids) for rows in completions for ids in rows)
        return real(model, prompts, completions, **options)

    monkeypatch.setattr(perplexity, "conditional_nll", watch)
    return seen


def lines_of(count: int) -> list[dict]:
    tokenizer = tiny.tokenizer()
    return [line(tokenizer, f"the river {i}", [f" is {i}", " was"]) for i in range(count)]


def test_what_is_measured_is_not_measured_again(folder, run, asked):
    shown = run(lines_of(3))
    before, count = (folder / "generations.jsonl").read_bytes(), len(asked)
    assert run() == shown and len(asked) == count == 6
    assert (folder / "generations.jsonl").read_bytes() == before
    assert run(None, "--published")["perplexity"] == shown["perplexity"] and len(asked) == count  # text already


def test_a_changed_text_is_measured_again(folder, run, asked):
    run(lines_of(3))
    lines = list(read_lines(folder / "generations.jsonl"))
    lines[1]["completions"][0] = " changed"
    old, count = stored(folder), len(asked)
    run(lines)
    new = stored(folder)
    assert len(asked) == count + 2 and new[0] == old[0] and new[1]["nll"][0] != old[1]["nll"][0]
    assert new[1]["of"] != old[1]["of"]


def test_other_weights_are_another_label(folder, run):
    reader = load_policy(str(folder / "model"))
    run(lines_of(2))
    label = model_label(reader)
    assert re.fullmatch(re.escape(str(folder / "model")) + "@[0-9a-f]{12}", label)
    tiny.save(folder / "model", seed=1)
    run()
    likelihoods = next(read_lines(folder / "generations.jsonl"))["likelihoods"]
    assert next(iter(likelihoods)) == label and len(likelihoods) == 2
    first, second = likelihoods.values()
    assert first["nll"] != second["nll"] and first["of"] == second["of"]
    reader.model.to(torch.bfloat16)
    assert model_label(reader).endswith("/bfloat16")


def test_killed_anywhere_nothing_finished_is_done_again(folder, asked, monkeypatch):
    reader = load_policy(str(folder / "model"))
    path, lines = folder / "generations.jsonl", lines_of(5)
    write_lines(path, lines)
    measure_file(path, reader)
    expected = stored(folder)
    monkeypatch.setattr(perplexity, "BLOCK", 2)
    for kill_at in (1, 2, 3):
        write_lines(path, lines)
        asked.clear()
        real, calls = perplexity._from_text, []

        def dying(row, *rest, real=real, calls=calls, kill_at=kill_at):
            calls.append(row)
            if len(calls) > 2 * (kill_at - 1):
                raise KeyboardInterrupt
            return real(row, *rest)

        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(perplexity, "_from_text", dying)
            measure_file(path, reader)
        told = []
        assert measure_file(path, reader, progress=told.append) == 5
        assert sum(told) == 10 and len(asked) == 10
        for got, wanted in zip(stored(folder), expected, strict=True):
            assert got["nll"] == pytest.approx(wanted["nll"], rel=1e-5) and got["of"] == wanted["of"]


def test_progress_is_told_within_a_block(folder):
    reader = load_policy(str(folder / "model"))
    write_lines(folder / "generations.jsonl", lines_of(3))
    told = []
    measure_file(folder / "generations.jsonl", reader, progress=told.append, batch_tokens=1)
    assert sum(told) == 6 and len(told) > 3


# ---- mistakes -----------------------------------------------------------------------------------------------------


def test_mistakes_are_one_line(folder, run):
    tokenizer = tiny.tokenizer()
    long = line(tokenizer, "the river " * 60, [" is"])
    message = run([lines_of(1)[0], long], code=2)
    assert "generations.jsonl, prompt the river" in message and "context of 96" in message
    assert "cannot load a causal language model" in run(lines_of(1), model="nowhere", code=2)
    short = lines_of(1)
    short[0]["settings"]["vocabulary"] = vocabulary_digest(tokenizer)
    del short[0]["completion_ids"][0]
    assert "2 completions but ids of 1" in run(short, code=2)
    tokenizer.eos_token = None
    tokenizer.save_pretrained(folder / "model")
    assert "no EOS token" in run(lines_of(1), code=2)


def test_nothing_to_measure(run, tmp_path, capsys):
    assert "generations.jsonl: no generations in this file" in run([], code=2)
    assert cli.main(["perplexity", str(tmp_path / "model")]) == 2
    assert "no generations*.jsonl in it" in capsys.readouterr().err


# ---- the published number -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def reader_folder(parity_dir, tmp_path_factory):
    """`reader_folder(name)`: a folder of the recorded model with its tokenizer, as `--eval_model` takes it."""
    folder = parity_dir / "model"
    known = json.loads((folder / "config.json").read_text())
    sizes = {key: known[key] for key in ("n_layer", "n_embd", "n_head", "n_positions")}

    def save(name: str):
        weights = load_file(folder / f"{name}.safetensors")
        ends = {"bos_token_id": 299, "eos_token_id": 299}
        model = GPT2LMHeadModel(GPT2Config(vocab_size=len(weights["transformer.wte.weight"]), **sizes, **ends))
        model.load_state_dict(weights, strict=False)
        model.tie_weights()
        backend = Tokenizer(models.BPE.from_file(str(folder / "vocab.json"), str(folder / "merges.txt")))
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        backend.decoder = decoders.ByteLevel()
        target = tmp_path_factory.mktemp(name)
        model.save_pretrained(target)
        PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|endoftext|>").save_pretrained(target)
        return target

    return save


@pytest.mark.parametrize("reader", ["ref", "ppl_soft"])
@pytest.mark.parametrize("same_vocabulary", [False, True])
def test_the_published_number(reader, same_vocabulary, parity_dir, reader_folder, tmp_path, capsys, monkeypatch):
    case = json.loads((parity_dir / "perplexity.json").read_text(encoding="utf-8"))
    model, (_, tokenizer) = reader_folder(reader), load_model(str(reader_folder(reader)))
    digest = vocabulary_digest(tokenizer) if same_vocabulary else "another"
    lines = [
        line(tokenizer, prompt, completions, digest)
        for prompt, completions in zip(case["prompts"], case["generations"], strict=True)
    ]
    path = tmp_path / "generations.jsonl"
    write_lines(path, lines)
    monkeypatch.setattr(perplexity.published, "perplexity", full := Full(perplexity.published.perplexity))
    assert cli.main(["perplexity", str(path), "--eval_model", str(model), "--published"]) == 0
    expected = case["expected"][reader]
    assert full.given == pytest.approx(expected["mean"], rel=1e-5)
    assert f"{expected['mean']:.4g}"[:4] in capsys.readouterr().out
    for row, recorded in zip(read_lines(path), expected["per_generation"], strict=True):
        found = next(found for label, found in row["likelihoods"].items() if label.endswith("/text"))
        values = [math.exp(n / t) if t else None for n, t in zip(found["nll"], found["tokens"], strict=True)]
        for value, wanted in zip(values, recorded, strict=True):
            if wanted is None:
                assert value is None or value >= 1e4 or found["prompt_tokens"] == 1
            else:
                assert value == pytest.approx(wanted, rel=1e-5)


class Full:
    """A function that keeps what it gave, to all its digits."""

    def __init__(self, function):
        self.function = function

    def __call__(self, *args):
        self.given = self.function(*args)
        return self.given


def test_generations_of_other_programs_are_measured_from_text_and_stay_in_their_form(folder, run):
    """Quark's `reward.json` and its kin hold no token ids."""
    record = {"prompt": {"text": "the sea"}, "generations": [{"text": " is wide", "toxicity": 0.1}, {"text": " is"}]}
    ours = line(tiny.tokenizer(), "the sea", [" is wide", " is"])
    expected = [run([each])["perplexity"] for each in (ours, record)]
    assert expected[0] == expected[1]
    (found,) = read_lines(folder / "generations.jsonl")
    assert found.keys() == {"prompt", "generations", "likelihoods"} and found["generations"] == record["generations"]
