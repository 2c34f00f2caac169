"""Checkpoints in the published form, made here, become model folders with the same logits; a pickle that would run
code is refused unrun.
"""

import json
import os
import pickle
import zipfile
from collections import OrderedDict

import numpy as np
import pytest
import tiny
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2Config, GPT2Tokenizer

from nlf.cli.import_checkpoint import import_command, read_checkpoint
from nlf.config import ImportOptions
from nlf.errors import UserError
from nlf.method.tags import TagScheme
from nlf.models.encoder import PromptEncoder
from nlf.models.identity import vocabulary_digest
from nlf.models.policy import load_policy

VOCABULARY = len(tiny.tokenizer())
QUARK = [f" _TREE_TOKEN_{i:05}" for i in range(5)]


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return tiny.save(tmp_path_factory.mktemp("import") / "base")


def trained(extra: int):
    """A GPT-2 with added rows, as the published policy holds it."""
    return tiny.model(seed=1, vocab_size=VOCABULARY + extra)


def published(path, extra=1, legacy=False, **changes):
    """A checkpoint with what the published code saves: the state dict, an optimizer's state and a scheduler's."""
    model = trained(extra)
    model(torch.tensor([[1, 2, 3]]), labels=torch.tensor([[1, 2, 3]])).loss.backward()
    optimizer = torch.optim.Adam(model.parameters())
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)
    optimizer.step()
    content = {"policy_model": model.state_dict(), "optimizer": optimizer.state_dict()}
    content |= {"scheduler": scheduler.state_dict()} | changes
    torch.save(content, path, _use_new_zipfile_serialization=not legacy)
    return OrderedDict((name, tensor.clone()) for name, tensor in content["policy_model"].items())


def run(path, base, output, tags=None):
    return import_command(
        ImportOptions(checkpoint=str(path), base_model=base, model_revision="main", output_dir=str(output), tags=tags)
    )


def logits_by_hand(weights, ids):
    """The state dict in a plain model of its size."""
    model = tiny.model(vocab_size=weights["transformer.wte.weight"].shape[0])
    model.load_state_dict(weights)
    with torch.no_grad():
        return model(torch.tensor([ids])).logits


@pytest.mark.parametrize("legacy", [False, True])
def test_alt(tmp_path, base, legacy):
    weights = published(tmp_path / "ckp_28000.pth", legacy=legacy)
    said = run(tmp_path / "ckp_28000.pth", base, tmp_path / "out")
    assert "the separator <|separator|> and 5 tags, 'Lowest Toxicity' (best)" in said
    assert "left out: optimizer, scheduler" in said and f"nlf sample --model {tmp_path}/out" in said
    policy = load_policy(str(tmp_path / "out"))
    assert policy.scheme == TagScheme(conversational=False) and policy.added_token_ids == (VOCABULARY,)
    query = PromptEncoder(policy.tokenizer, policy.scheme).query_ids("Lowest Toxicity", [5, 6, 7])
    assert query[-4:] == [VOCABULARY, 5, 6, 7]
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    wanted = logits_by_hand(weights, query)
    for model in (policy.model, plain):
        with torch.no_grad():
            torch.testing.assert_close(model(torch.tensor([query])).logits, wanted, rtol=1e-6, atol=1e-6)
    assert plain.get_output_embeddings().weight is plain.get_input_embeddings().weight
    assert plain.generation_config.suppress_tokens == [VOCABULARY]


def test_quark(tmp_path, base):
    """Five quantile tokens, the best first, and one that is never used: it has a row and no name."""
    weights = published(tmp_path / "ckp.pth", extra=6)
    assert "Quark's tokens and 5 tags, ' _TREE_TOKEN_00000' (best)" in run(
        tmp_path / "ckp.pth", base, tmp_path / "out"
    )
    policy = load_policy(str(tmp_path / "out"))
    assert policy.scheme == TagScheme(tuple(QUARK), "{feedback}{prompt}", None, conversational=False)
    encoder = PromptEncoder(policy.tokenizer, policy.scheme)
    for i, tag in enumerate(QUARK):
        query = encoder.query_ids(tag, [5, 6])
        assert query == [VOCABULARY + i, 5, 6]  # one id, directly before the prompt
        with torch.no_grad():
            found = policy.model(torch.tensor([query])).logits
        torch.testing.assert_close(found, logits_by_hand(weights, query), rtol=1e-6, atol=1e-6)
    assert set(range(VOCABULARY, VOCABULARY + 6)) <= set(policy.banned_token_ids)
    assert policy.model.generation_config.suppress_tokens == list(range(VOCABULARY, VOCABULARY + 6))
    assert vocabulary_digest(policy.tokenizer, policy.added_token_ids) == vocabulary_digest(tiny.tokenizer())


def test_plain_transformers_samples_from_the_folder(tmp_path, base):
    published(tmp_path / "ckp.pth")
    run(tmp_path / "ckp.pth", base, tmp_path / "out")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    ids = tokenizer("Lowest Toxicity<|separator|>the river", return_tensors="pt")
    assert VOCABULARY in ids["input_ids"][0]
    with torch.random.fork_rng():
        made = model.generate(**ids, do_sample=True, max_new_tokens=20, num_return_sequences=8)
    assert not (made[:, ids["input_ids"].shape[1] :] >= VOCABULARY).any()


def test_other_tags_and_quarks_without_the_unused_row(tmp_path, base):
    published(tmp_path / "alt.pth")
    run(tmp_path / "alt.pth", base, tmp_path / "alt", tags=["good", "bad"])
    assert json.loads((tmp_path / "alt" / "tags.json").read_text())["tags"] == ["good", "bad"]
    published(tmp_path / "quark.pth", extra=3)
    run(tmp_path / "quark.pth", base, tmp_path / "quark", tags=["<0>", "<1>", "<2>"])
    assert load_policy(str(tmp_path / "quark")).added_token_ids == (VOCABULARY, VOCABULARY + 1, VOCABULARY + 2)
    with pytest.raises(UserError, match="3 of them Quark's tokens: 4 --tags; expected 2, or 3"):
        run(tmp_path / "quark.pth", base, tmp_path / "x", tags=list("abcd"))


def test_names_of_old_transformers(tmp_path, base):
    """Masks that it stored beside the weights, DataParallel's prefix, a transformer without its own, a dropped head."""
    weights = published(tmp_path / "plain.pth")
    masks = {f"transformer.h.{i}.attn.{b}": torch.ones(1, 1, 4, 4) for i in range(2) for b in ("bias", "masked_bias")}
    bare = {name.removeprefix("transformer."): t for name, t in weights.items() if name != "lm_head.weight"}
    forms = [weights | masks, {f"module.{name}": t for name, t in (weights | masks).items()}, bare]
    wanted = logits_by_hand(weights, [1, 2, VOCABULARY])
    for i, form in enumerate(forms):
        torch.save({"policy_model": form}, tmp_path / f"{i}.pth")
        assert "left out" not in run(tmp_path / f"{i}.pth", base, tmp_path / f"out{i}")
        with torch.no_grad():
            found = load_policy(str(tmp_path / f"out{i}")).model(torch.tensor([[1, 2, VOCABULARY]])).logits
        torch.testing.assert_close(found, wanted, rtol=1e-6, atol=1e-6)  # our GELU rounds in its own way


def test_a_head_of_its_own_stays(tmp_path, base):
    weights = published(tmp_path / "ckp.pth")
    weights["lm_head.weight"] = weights["lm_head.weight"] + 1.5 * torch.arange(16)
    torch.save({"policy_model": weights}, tmp_path / "untied.pth")
    assert "not tied" in run(tmp_path / "untied.pth", base, tmp_path / "out")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert torch.equal(model.get_output_embeddings().weight, weights["lm_head.weight"])
    assert torch.equal(model.get_input_embeddings().weight, weights["transformer.wte.weight"])


class Bomb:
    """Unpickled, it would make a file."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


@pytest.mark.parametrize("form", ["zip", "legacy", "bare pickle", "in the optimizer"])
def test_a_malicious_pickle_is_refused_and_never_run(tmp_path, base, form):
    path, proof = tmp_path / "ckp.pth", tmp_path / "proof"
    if form == "bare pickle":
        path.write_bytes(pickle.dumps({"policy_model": Bomb(proof)}))
    elif form == "in the optimizer":
        published(path, optimizer=Bomb(proof))
    else:
        torch.save({"policy_model": Bomb(proof)}, path, _use_new_zipfile_serialization=form == "zip")
    with pytest.raises(UserError, match="nothing in it was run") as refused:
        run(path, base, tmp_path / "out")
    assert f"{path}: refused" in str(refused.value) and "weights_only" not in str(refused.value)
    assert "\n" not in str(refused.value) and not proof.exists() and not (tmp_path / "out").exists()
    # what the published code does:
    pickle.loads(path.read_bytes()) if form == "bare pickle" else torch.load(path, weights_only=False)
    assert proof.exists()


@pytest.mark.parametrize(
    "content", [b"", b"no pickle at all", b"PK\x03\x04 cut off", b"\x80\x02}q\x00.", b"\x80\x04\x95", b"\x00" * 64]
)
def test_rubbish_is_one_line(tmp_path, content):
    (tmp_path / "x.pth").write_bytes(content)
    with pytest.raises(UserError, match=r"x\.pth: .*expected a \.pth that ALT or Quark saved"):
        read_checkpoint(tmp_path / "x.pth")


def test_a_damaged_checkpoint_is_one_line(tmp_path):
    for legacy in (False, True):
        published(tmp_path / "whole.pth", legacy=legacy)
        whole = (tmp_path / "whole.pth").read_bytes()
        for share in (0.1, 0.5, 0.9, 0.999):
            (tmp_path / "cut.pth").write_bytes(whole[: int(len(whole) * share)])
            with pytest.raises(UserError, match=r"cut\.pth: "):
                read_checkpoint(tmp_path / "cut.pth")


def test_missing_file_and_folder(tmp_path):
    with pytest.raises(UserError, match="No such file"):
        read_checkpoint(tmp_path / "none.pth")
    with pytest.raises(UserError, match="Is a directory"):
        read_checkpoint(tmp_path)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({"model": {}}, "no state dict under 'policy_model'; the file holds a dict of 'model'"),
        ([1, 2], "the file holds a list"),
        ({"policy_model": {}}, "no state dict under 'policy_model'"),
        ({"policy_model": {"a": 1}}, "'a' is int, expected a dense tensor"),
        ({"policy_model": {"a": torch.zeros(2)}}, "no tensor 'transformer.wte.weight'; the file has 'transformer.a'"),
    ],
)
def test_wrong_content(tmp_path, base, content, said):
    torch.save(content, tmp_path / "x.pth")
    with pytest.raises(UserError, match=said):
        run(tmp_path / "x.pth", base, tmp_path / "out")


@pytest.mark.parametrize("extra", [-3, 0, 2, 102])
def test_rows_that_are_neither_alts_nor_quarks(tmp_path, base, extra):
    published(tmp_path / "x.pth", extra=extra)
    with pytest.raises(UserError, match=f"has {VOCABULARY + extra} rows and the base model's vocabulary {VOCABULARY}"):
        run(tmp_path / "x.pth", base, tmp_path / "out")


def test_weights_that_do_not_fit_the_base(tmp_path, base):
    weights = published(tmp_path / "x.pth")
    lacking = {name: t for name, t in weights.items() if name != "transformer.h.1.ln_2.bias"}
    broken = weights | {"transformer.ln_f.bias": weights["transformer.ln_f.bias"] * float("nan")}
    cases = {
        "no tensor 'transformer.h.1.ln_2.bias'": lacking,
        "an unknown tensor 'transformer.h.2.x'": weights | {"transformer.h.2.x": torch.zeros(1)},
        r"'transformer.wpe.weight' has shape \(8, 16\), in .* it is \(96, 16\)": weights
        | {"transformer.wpe.weight": torch.zeros(8, 16)},
        "'transformer.ln_f.bias' .* holds values that are not finite floats": broken,
    }
    for said, content in cases.items():
        torch.save({"policy_model": content}, tmp_path / "x.pth")
        with pytest.raises(UserError, match=said):
            run(tmp_path / "x.pth", base, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_folder_that_is_taken_and_a_base_that_is_none(tmp_path, base):
    published(tmp_path / "x.pth")
    run(tmp_path / "x.pth", base, tmp_path / "out")
    before = (tmp_path / "out" / "model.safetensors").stat().st_mtime_ns
    with pytest.raises(UserError, match="out/config.json is there already and would be overwritten; move it away"):
        run(tmp_path / "x.pth", base, tmp_path / "out")
    assert (tmp_path / "out" / "model.safetensors").stat().st_mtime_ns == before
    with pytest.raises(UserError, match="--base_model .*nowhere: cannot be loaded"):
        run(tmp_path / "x.pth", str(tmp_path / "nowhere"), tmp_path / "new")
    with pytest.raises(UserError, match="cannot write"):
        run(tmp_path / "x.pth", base, tmp_path / "x.pth" / "out")


def test_published_weights_give_the_published_logits(parity_dir, tmp_path):
    """A recorded policy as a checkpoint; its base has the recorded tokenizer. (skipped without the numbers)"""
    known = json.loads((parity_dir / "model" / "config.json").read_text())
    sizes = {key: known[key] for key in ("n_layer", "n_embd", "n_head", "n_positions")}
    GPT2Config(vocab_size=300, **sizes, bos_token_id=299, eos_token_id=299).save_pretrained(tmp_path / "base")
    files = [str(parity_dir / "model" / name) for name in ("vocab.json", "merges.txt")]
    GPT2Tokenizer(*files).save_pretrained(tmp_path / "base")
    torch.save({"policy_model": load_file(parity_dir / "model" / "policy.safetensors")}, tmp_path / "ckp.pth")
    run(tmp_path / "ckp.pth", str(tmp_path / "base"), tmp_path / "out")
    policy = load_policy(str(tmp_path / "out"))
    assert policy.added_token_ids == (300,) and policy.tokenizer.eos_token_id == 299
    arrays = np.load(parity_dir / "loss_cases.npz")
    case = {key: torch.from_numpy(arrays[f"no_padding/{key}"]) for key in ("query_input_ids", "response_input_ids")}
    length = case["response_input_ids"].shape[1]
    with torch.no_grad():
        found = policy.model(torch.cat(list(case.values()), 1)).logits[:, -length - 1 : -1]
    assert found.numpy() == pytest.approx(arrays["no_padding/policy_logits"], rel=1e-5, abs=1e-5)


@pytest.mark.parametrize("member", ["data.pkl", "data/0", "version"])
def test_a_flipped_bit_is_found_in_every_member_though_the_values_are_finite(tmp_path, base, member):
    published(tmp_path / "x.pth")
    with zipfile.ZipFile(tmp_path / "x.pth") as members:
        info = next(each for each in members.infolist() if each.filename == f"x/{member}")
        content = members.read(info)
    whole = bytearray((tmp_path / "x.pth").read_bytes())
    place = whole.index(content, info.header_offset) + len(content) // 2
    whole[place] ^= 1
    (tmp_path / "x.pth").write_bytes(whole)
    with pytest.raises(
        UserError, match=f"x.pth: damaged: the checksum of x/{member} in it is wrong; copy the file again"
    ):
        run(tmp_path / "x.pth", base, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_no_error_advises_to_load_unsafely(tmp_path):
    torch.save({"policy_model": torch.nn.Linear(1, 1)}, tmp_path / "module.pth")
    with pytest.raises(
        UserError, match=r"plain values \(torch.nn.modules.linear.Linear\); nothing in it was run"
    ) as found:
        read_checkpoint(tmp_path / "module.pth")
    assert not {"weights_only", "safe_globals", "trust"} & set(str(found.value).replace("`", " ").split())


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json", "config.yaml", "adapter/mine"])
def test_a_file_that_the_import_would_overwrite_is_refused_before_the_checkpoint_is_read(tmp_path, base, name):
    path = tmp_path / "out" / name
    path.parent.mkdir(parents=True)
    path.write_text("mine")
    (tmp_path / "out" / "README.md").write_text("mine")  # no import writes it
    with pytest.raises(UserError, match=f"out/{name.split('/')[0]} is there already and would be overwritten"):
        run(tmp_path / "none.pth", base, tmp_path / "out")
    assert path.read_text() == "mine"
