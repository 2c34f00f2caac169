"""`nlf export`: the GGUF file has the model's logits and tokens, is written whole or not at all, and Ollama gets the tag."""

import json
import sys
import types
from pathlib import Path

import gguf
import pytest
import tiny
import torch
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import GemmaTokenizer

from nlf.cli.main import main
from nlf.method.tags import TagScheme
from nlf.models import gguf_export
from nlf.models.gguf_tokens import PRE_TOKENIZERS, vocabulary_of
from nlf.models.policy import load_model, load_policy, prepare_policy, save_policy

KINDS = ("llama", "qwen2", "qwen3", "gemma3_text", "gpt2")
PROMPTS = [row["prompt"] for row in tiny.PROMPTS]
CHATML = (
    "{% for m in messages %}{% if loop.first and m['role'] != 'system' %}<|im_start|>system\nBe kind<|im_end|>\n{% endif %}"
    "{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("NLF_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)


def gemma_tokenizer() -> GemmaTokenizer:
    """A small tokenizer of Gemma's kind."""
    backend = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    backend.normalizer = normalizers.Replace(" ", "\u2581")
    backend.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    backend.decoder = decoders.Replace("\u2581", " ")
    bytes_ = [f"<0x{i:02X}>" for i in range(256)]
    special = ["<pad>", "<eos>", "<bos>", "<unk>", *bytes_]
    backend.train_from_iterator(
        tiny.SENTENCES * 3, trainers.BpeTrainer(vocab_size=380, special_tokens=special, show_progress=False)
    )
    spec = json.loads(backend.to_str())["model"]
    return GemmaTokenizer(vocab=spec["vocab"], merges=[tuple(pair) for pair in spec["merges"]])


def folder_of(kind: str, tied: bool = True, **changes) -> str:
    """Save a model of this kind with random weights, norms and biases included, and a few rows without tokens.

    Gemma 3 and Qwen 3 have the real ones' size of heads, which transformers expects when it reads a file.
    """
    tokenizer = gemma_tokenizer() if kind == "gemma3_text" else tiny.tokenizer()
    own = {"head_dim": {"gemma3_text": 256, "qwen3": 128}[kind]} if kind in ("gemma3_text", "qwen3") else {}
    model = tiny.any_model(kind, vocab_size=len(tokenizer) + 4, tie_word_embeddings=tied, **own, **changes)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in model.parameters():
            weight.copy_(weight + torch.randn(weight.shape, generator=generator) * 0.1)
    model.save_pretrained("model")
    tokenizer.save_pretrained("model")
    return "model"


def export(*flags: str, model: str = "model") -> int:
    return main(["export", "--model", model, "--gguf", "out.gguf", *flags])


def read(path: str = "out.gguf") -> gguf.GGUFReader:
    return gguf.GGUFReader(path)


def difference(one, other, prompts=PROMPTS) -> float:
    """The largest difference of two models' log-probabilities on prompts."""
    (a, tokenizer), (b, _) = one, other
    worst = 0.0
    for prompt in prompts:
        ids = torch.tensor([tokenizer(prompt)["input_ids"]])
        with torch.no_grad():
            logits = [model(ids).logits[..., : len(tokenizer)].float().log_softmax(-1) for model in (a, b)]
        worst = max(worst, float((logits[0] - logits[1]).abs().max()))
    return worst


@pytest.mark.parametrize("kind", KINDS)
def test_the_file_read_back_has_the_logits_and_the_tokens_of_the_model(kind):
    folder = folder_of(kind, tied=kind != "qwen3")
    assert export("--quantize", "bf16") == 0
    before, after = load_model(folder, dtype="bfloat16"), load_model("out.gguf", dtype="bfloat16")
    rounded = {name: weight.float() for name, weight in before[0].state_dict().items()}
    for name, weight in after[0].state_dict().items():
        torch.testing.assert_close(weight.float(), rounded[name], rtol=2**-7, atol=2**-7 if "norm" in name else 1e-7)
    assert len(PROMPTS) == 20 and difference(load_model(folder), load_model("out.gguf")) < 0.05
    for text in (*PROMPTS, "  two  spaces, a tab\tand\na line", "ÄÖ 漢字 1234"):
        assert before[1](text)["input_ids"] == after[1](text)["input_ids"]


@pytest.mark.parametrize(("quantize", "most"), [("f16", 0.05), ("q8_0", 0.1)])
def test_other_types_stay_within_their_rounding(quantize, most):
    folder = folder_of("llama")
    assert export("--quantize", quantize) == 0
    assert difference(load_model(folder), load_model("out.gguf")) < most
    kinds = {tensor.name: tensor.tensor_type.name for tensor in read().tensors}
    assert kinds["blk.0.attn_q.weight"] == quantize.upper() and kinds["output_norm.weight"] == "F32"


def test_rows_that_are_not_whole_blocks_stay_in_f16():
    folder_of("llama")  # ffn_down has rows of 48
    assert export("--quantize", "q8_0") == 0
    assert {t.tensor_type.name for t in read().tensors if "ffn_down" in t.name} == {"F16"}


def test_llama_3_keeps_the_frequencies_of_its_positions():
    rope = {
        **{"rope_type": "llama3", "rope_theta": 10000.0, "factor": 8.0, "low_freq_factor": 1.0},
        **{"high_freq_factor": 4.0, "original_max_position_embeddings": 32},
    }
    folder = folder_of("llama", rope_parameters=rope)
    assert export() == 0
    (factors,) = [tensor.data for tensor in read().tensors if tensor.name == "rope_freqs.weight"]
    scaled = load_model(folder)[0].model.rotary_emb.inv_freq
    plain = 10000.0 ** -(torch.arange(0, 8, 2) / 8)
    torch.testing.assert_close(torch.from_numpy(factors.copy()), plain / scaled)
    assert factors[-1] == pytest.approx(8)


# ---- tokens -------------------------------------------------------------------------------------------------------


def test_tokens_that_training_added_and_rows_without_tokens():
    policy = prepare_policy(tiny.model("llama", vocab_size=320), tiny.tokenizer(), TagScheme())
    found = vocabulary_of(policy.tokenizer, 320)
    at = policy.tokenizer.convert_tokens_to_ids("<|separator|>")
    assert found.tokens[at] == "<|separator|>" and found.types[at] == found.types[0] == 3
    assert found.tokens[-1] == "[PAD319]" and found.types[-1] == 5
    assert found.pre == "gpt-2" and not found.adds_bos and not found.scores


def test_tokens_that_end_a_text_and_tokens_that_are_never_written():
    tagged()
    path = Path("model/generation_config.json")
    ends = [*range(3)]
    path.write_text(json.dumps({**json.loads(path.read_text()), "eos_token_id": ends}))
    policy = load_policy("model")
    assert export() == 0
    fields = read().fields
    roles = [fields[f"tokenizer.ggml.{role}_token_id"].contents() for role in ("eos", "eot", "eom")]
    assert sorted(roles) == ends and roles[0] == policy.tokenizer.eos_token_id
    separator = policy.tokenizer.convert_tokens_to_ids("<|separator|>")
    assert separator in policy.banned_token_ids
    assert tuple(fields["tokenizer.ggml.suppress_tokens"].contents()) == policy.banned_token_ids


@pytest.mark.parametrize("name", PRE_TOKENIZERS.values())
def test_the_rule_of_words_gets_llama_cpps_name(name):
    tokenizer = tiny.tokenizer()
    rule = next(rules for rules, known in PRE_TOKENIZERS.items() if known == name)
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex="ByteLevel" in rule)
    if "Digits" in rule:
        steps = [pre_tokenizers.Digits(individual_digits=True), byte_level]
    else:
        steps = [pre_tokenizers.Split(Regex(each), "isolated") for each in rule if each != "ByteLevel"] + [byte_level]
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(steps)
    assert vocabulary_of(tokenizer, len(tokenizer)).pre == name


def test_sentencepiece_merges_in_the_order_of_the_merges():
    tokenizer = gemma_tokenizer()
    bos = processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 2)])
    tokenizer.backend_tokenizer.post_processor = bos
    found = vocabulary_of(tokenizer, len(tokenizer))
    first = found.merges[0].replace(" ", "")
    assert found.kind == "llama" and found.adds_bos and not found.adds_space
    assert found.scores[found.tokens.index(first)] == 0 == max(found.scores)
    assert found.types[found.tokens.index("<0x0A>")] in (4, 6)


# ---- Ollama -------------------------------------------------------------------------------------------------------


def tagged(template: str | None = None) -> None:
    tokenizer = tiny.tokenizer()
    tokenizer.chat_template = template
    scheme = TagScheme(separator=None, conversational=True) if template else TagScheme(conversational=False)
    save_policy(prepare_policy(tiny.model("llama"), tokenizer, scheme), "model")


def test_the_modelfile_of_a_model_of_text_holds_the_tag(capsys):
    tagged()
    assert export("--ollama", "true") == 0
    text = Path("out.Modelfile").read_text()
    assert text.partition("\n")[2] == (
        'FROM ./out.gguf\nTEMPLATE """Lowest Toxicity<|separator|>{{ .Prompt }}"""\nPARAMETER stop "<|separator|>"\n'
    )
    assert "ollama create out -f out.Modelfile" in capsys.readouterr().out
    assert export("--ollama", "true", "--tag", "none") == 0
    assert 'TEMPLATE """{{ .Prompt }}"""' in Path("out.Modelfile").read_text()


def test_the_modelfile_of_a_chat_model_holds_its_wording_and_the_tag():
    tagged(CHATML)
    assert export("--ollama", "true") == 0
    template = Path("out.Modelfile").read_text().split('"""')[1]
    assert template == (
        "{{ if .System }}<|im_start|>system\n{{ .System }}\n\nLowest Toxicity<|im_end|>\n"
        "{{ else }}<|im_start|>system\nLowest Toxicity<|im_end|>\n{{ end }}"
        '{{ range .Messages }}{{ if eq .Role "user" }}<|im_start|>user\n{{ .Content }}<|im_end|>\n'
        '{{ else if eq .Role "assistant" }}<|im_start|>assistant\n{{ .Content }}<|im_end|>\n{{ end }}{{ end }}'
        "<|im_start|>assistant\n"
    )
    field = read().fields["tokenizer.chat_template"]
    assert bytes(field.parts[field.data[0]]).decode() == CHATML


def test_a_chat_template_that_is_more_than_wording_is_refused(capsys):
    tagged("{% for m in messages %}{{ m['content'][::-1] }}{% endfor %}>")
    assert export("--ollama", "true") == 2
    assert "this chat template does more than put words around messages" in capsys.readouterr().err
    assert not Path("out.gguf").exists()
    assert export() == 0


# ---- bad input ----------------------------------------------------------------------------------------------------


def refused(capsys, said: str, *flags: str) -> None:
    assert export(*flags) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("nlf: error")]
    assert len(lines) == 1 and said in lines[0]
    assert not [path for path in Path().iterdir() if ".tmp" in path.name or ".f16" in path.name]


def test_another_architecture_is_refused_before_the_weights_are_loaded(capsys, monkeypatch):
    tiny.save("model", "gpt_neox")
    monkeypatch.setattr("nlf.cli.export.load_for_commands", lambda *given, **named: pytest.fail("loaded"))
    refused(capsys, "a model of type 'gpt_neox' cannot be written as GGUF here; expected llama, qwen2, qwen3")


@pytest.mark.parametrize(
    ("kind", "changes", "said"),
    [
        ("gpt2", {"activation_function": "relu"}, "activation_function is 'relu'"),
        ("gemma3_text", {"layer_types": ["full_attention"] * 2}, "layer_types has another order"),
        (
            "qwen2",
            {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0}},
            "rope_parameters is",
        ),
    ],
)
def test_what_llama_cpp_does_not_compute_is_refused(kind, changes, said, capsys):
    folder_of(kind, **changes)
    refused(capsys, said)


def test_files_of_other_programs_stay(capsys):
    tagged()
    Path("out.gguf").write_bytes(b"GGUF of another program")
    refused(capsys, "out.gguf is there already and would be overwritten")
    assert Path("out.gguf").read_bytes() == b"GGUF of another program"
    Path("out.gguf").unlink()
    Path("out.Modelfile").write_text("FROM llama3.2")
    refused(capsys, "out.Modelfile is there already", "--ollama", "true")
    assert export() == 0 and export("--quantize", "q8_0") == 0  # our own file is replaced
    assert Path("out.Modelfile").read_text() == "FROM llama3.2"


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(28, "No space left on device")])
def test_a_stopped_export_leaves_no_file(error, monkeypatch, capsys):
    tagged()

    def stop(*given):
        raise error

    monkeypatch.setattr(gguf_export, "_values", stop)
    assert export() in (2, 130)
    assert "cannot write" in (said := capsys.readouterr().err) or "interrupted" in said
    assert not list(Path().glob("*out*"))


def test_q4_k_m_is_made_by_llama_cpp(monkeypatch, capsys):
    """A stand-in for llama-cpp-python: its quantizer gets the f16 file, and its result becomes the file."""
    tagged()
    monkeypatch.setitem(sys.modules, "llama_cpp", None)
    refused(
        capsys, "--quantize q4_k_m needs llama.cpp's quantizer: `pip install llama-cpp-python`", "--quantize", "q4_k_m"
    )

    def quantize(source, target, parameters):
        assert parameters.ftype == 15 and read(source.decode()).tensors
        Path(target.decode()).write_bytes(b"GGUF quantized")
        return code

    stand_in = types.SimpleNamespace(
        LLAMA_FTYPE_MOSTLY_Q4_K_M=15, llama_model_quantize=quantize,
        llama_model_quantize_default_params=types.SimpleNamespace,
    )  # fmt: skip
    monkeypatch.setitem(sys.modules, "llama_cpp", stand_in)
    code = 1
    refused(capsys, "llama.cpp cannot quantize this model to q4_k_m", "--quantize", "q4_k_m")
    assert not Path("out.gguf").exists()
    code = 0
    assert export("--quantize", "q4_k_m") == 0
    assert Path("out.gguf").read_bytes() == b"GGUF quantized"
