"""The build of the embedded language model, end to end on a few sentences; the quality of the model is not tested."""

import gzip
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

TOOLS = Path(__file__).parents[2] / "tools"
sys.path.insert(0, str(TOOLS))
import build_lm  # noqa: E402
import lm_card  # noqa: E402
import lm_sources  # noqa: E402
from split import split_of, text_document  # noqa: E402


def write_rows(path: Path, rows: list[dict]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with gzip.open(path, "wt", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)


@pytest.fixture
def data(tmp_path, monkeypatch):
    for name, value in {"WIDTH": 16, "LAYERS": 1, "HEADS": 2, "WINDOW": 16, "BATCH": 4}.items():
        monkeypatch.setattr(build_lm, name, value)
    monkeypatch.setattr(lm_card, "LENGTH", 4)
    folder = tmp_path / "data"
    comments = [{"text": f"The {i}th cat sat on the mat and said that mats number {i} are silly."} for i in range(200)]
    write_rows(folder / "labelled-toxic-spans/a.jsonl.gz", comments)
    write_rows(folder / "labelled-toxic-spans/b.jsonl.gz", comments[:50])
    posts = [{"id": str(i), "title": f"Day {i}", "text": "It rained all day in our little town."} for i in range(100)]
    write_rows(folder / "lm-reddit-posts/general.jsonl.gz", posts)
    (folder / "word-lists").mkdir()
    (folder / "word-lists/ldnoobw_en.txt").write_text("drat\n")
    (folder / "word-lists/surge_profanity_en.csv").write_text("text,severity\nblast,1\n")
    return folder


def build(data: Path, name: str, *flags: str) -> Path:
    out = data.parent / f"{name}-assets"
    paths = ["--data", str(data), "--work", str(data.parent / name), "--out", str(out)]
    build_lm.main([*paths, "--vocabulary", "300", "--threads", "1", *flags])
    return out


def test_assets_load_as_they_will_be_used(data):
    out = build(data, "one", "--steps", "3")
    model, tokenizer = AutoModelForCausalLM.from_pretrained(out), AutoTokenizer.from_pretrained(out)
    assert model.dtype == torch.float32
    assert tokenizer.eos_token_id == tokenizer.pad_token_id == model.config.eos_token_id == 0
    assert tokenizer.decode(tokenizer("A cat's mat, too.").input_ids) == "A cat's mat, too."
    card = (out / "README.md").read_text(encoding="utf-8")
    assert "\n20. " in card and "toxic-spans" in card and "classic-books" not in card


def test_same_steps_same_weights_also_when_interrupted(data, monkeypatch):
    whole = build(data, "whole", "--steps", "4")
    draw = build_lm.draw_batch

    def interrupted(tokens, starts, step):
        if step == 2:
            raise KeyboardInterrupt
        return draw(tokens, starts, step)

    monkeypatch.setattr(build_lm, "draw_batch", interrupted)
    with pytest.raises(KeyboardInterrupt):
        build(data, "cut", "--steps", "4", "--save_minutes", "0")
    monkeypatch.setattr(build_lm, "draw_batch", draw)
    cut = build(data, "cut", "--steps", "4")
    assert (whole / "model.safetensors").read_bytes() == (cut / "model.safetensors").read_bytes()


def test_no_test_document_and_no_repeated_one_is_packed(data):
    source = next(source for source in lm_sources.SOURCES if source.name == "toxic-spans")
    parts = {part: list(lm_sources.documents(source, data, part)) for part in ("train", "validation", "test")}
    assert sum(map(len, parts.values())) == 200  # the second file only repeats
    assert all(split_of(text_document(text)) == part for part, texts in parts.items() for text in texts)
    tokenizer = build_lm.prepare(data, data.parent / "work", 300)
    packed = np.load(data.parent / "work/toxic-spans.train.npy")
    assert tokenizer.decode(packed).split(build_lm.EOS)[:-1] == parts["train"]


def test_clean_drops_masks_and_settles_space():
    assert lm_sources.clean("!!! RT @USER: so  much &amp; more [URL]\n\n\n\nbye\t\u2764") == "so much & more\n\nbye"


def test_untokenised():
    row = {"text": "it 's a film , i didn n't like it ( much ) ."}
    assert lm_sources.untokenised(row) == "it's a film, i didnn't like it (much)."


def test_mask_keeps_first_letters():
    assert lm_card.mask("Drat, dratted bad ad.", {"drat", "ad"}) == "D***, d****** bad a*."


def test_schedule_rises_stays_and_ends_at_zero():
    assert [build_lm.schedule(done) for done in (0, 0.01, 0.3, 0.8, 1)] == pytest.approx([0, 0.5, 1, 0.5, 0])
