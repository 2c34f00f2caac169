"""Write a model as a GGUF file, for llama.cpp and the programs built on it, such as Ollama; gguf.py reads such files.

The package gguf names the tensors and quantizes; what llama.cpp expects of the weights of an architecture is here. A model
whose settings llama.cpp would not compute exactly is refused. Tensors are converted and written one at a time.
"""

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from nlf.data.files import replacing
from nlf.errors import UserError
from nlf.models.gguf import require_gguf
from nlf.models.gguf_tokens import Vocabulary
from nlf.models.names import SUFFIX
from nlf.models.policy import Policy

if TYPE_CHECKING:
    from gguf import GGMLQuantizationType, GGUFWriter

MARK = "nlf.exported_from"  # the key by which a file is known as ours
SUPPRESSED = "tokenizer.ggml.suppress_tokens"  # never written; the package gguf has no name for it
Q4_K_M = "q4_k_m"  # written as f16, then quantized by llama.cpp
# llama.cpp's names, by transformers' model_type
ARCHITECTURES = {"llama": "llama", "qwen2": "qwen2", "qwen3": "qwen3", "gemma3_text": "gemma3", "gpt2": "gpt2"}
_TANH = ("gelu_new", "gelu_pytorch_tanh")
# Fields of a configuration, and the values that llama.cpp computes.
COMPUTED: dict[str, dict[str, tuple[Any, ...]]] = {
    "llama": {"hidden_act": ("silu",)},
    "qwen2": {"hidden_act": ("silu",), "use_sliding_window": (False,)},
    "qwen3": {"hidden_act": ("silu",), "use_sliding_window": (False,), "attention_bias": (False,)},
    "gemma3_text": {
        **{"hidden_activation": _TANH, "attention_bias": (False,), "use_bidirectional_attention": (False, None)},
        **{"attn_logit_softcapping": (None,), "final_logit_softcapping": (None,)},
    },
    "gpt2": {
        **{"activation_function": _TANH, "scale_attn_weights": (True,), "add_cross_attention": (False,)},
        "scale_attn_by_inverse_layer_idx": (False,),
    },
}
GEMMA_PATTERN, GEMMA_LOCAL_THETA = 6, 10_000.0  # every sixth layer sees the whole text; fixed in llama.cpp


# ---- checks -------------------------------------------------------------------------------------------------------


def check_config(config: PreTrainedConfig, name: str) -> None:
    """Refuse a model that llama.cpp does not compute, before its weights are loaded.

    Raises:
        UserError: another architecture, or a setting that llama.cpp does not have.
    """
    kind = config.model_type
    if kind not in ARCHITECTURES:
        raise UserError(
            f"{name}: a model of type {kind!r} cannot be written as GGUF here; expected {', '.join(ARCHITECTURES)}; "
            "llama.cpp's convert_hf_to_gguf.py knows more"
        )
    for field, values in COMPUTED[kind].items():
        if (value := getattr(config, field, values[0])) not in values:
            raise _not_computed(name, f"{field} is {value!r}", " or ".join(map(repr, values)))
    for rope in _ropes(config).values():
        known = ("rope_type", "rope_theta")
        others = [key for key, value in rope.items() if key not in known and value is not None]
        scaled = rope.get("rope_type", "default") != "default" or others
        if scaled and (kind, rope.get("rope_type")) != ("llama", "llama3"):
            raise _not_computed(name, f"rope_parameters is {rope}", "the default, or llama3 in a Llama")
    if kind == "gemma3_text":
        _check_gemma(config, name)


def _check_gemma(config: PreTrainedConfig, name: str) -> None:
    """Refuse a Gemma 3 with other layers or another scale than llama.cpp's."""
    layers = range(1, config.num_hidden_layers + 1)
    pattern = ["full_attention" if i % GEMMA_PATTERN == 0 else "sliding_attention" for i in layers]
    if config.layer_types != pattern:
        raise _not_computed(name, "layer_types has another order", f"full_attention in every layer {GEMMA_PATTERN}")
    if config.query_pre_attn_scalar != config.head_dim:
        raise _not_computed(name, f"query_pre_attn_scalar is {config.query_pre_attn_scalar}", f"{config.head_dim}")
    if (theta := _ropes(config)["sliding_attention"]["rope_theta"]) != GEMMA_LOCAL_THETA:
        raise _not_computed(name, f"rope_theta of sliding_attention is {theta}", f"{GEMMA_LOCAL_THETA}")


def _not_computed(name: str, found: str, expected: str) -> UserError:
    return UserError(f"{name} cannot be written as GGUF: {found}, and llama.cpp computes {expected} only")


def _ropes(config: PreTrainedConfig) -> Mapping[str, Mapping[str, Any]]:
    """The parameters of rotary positions by kind of layer; empty for a model without."""
    parameters = getattr(config, "rope_parameters", None) or {}
    by_kind = any(isinstance(value, dict) for value in parameters.values())
    return parameters if by_kind else {"full_attention": parameters} if parameters else {}


def check_quantizer(quantize: str) -> None:
    """Check that this kind of file can be written.

    Raises:
        UserError: the package gguf, or the quantizer of llama-cpp-python, is missing.
    """
    require_gguf("nlf export")
    if quantize == Q4_K_M:
        _quantizer()


def _quantizer() -> Any:
    """llama.cpp's library, by llama-cpp-python."""
    try:
        import llama_cpp
    except (ImportError, OSError, RuntimeError) as error:  # missing, or its library cannot be loaded
        raise UserError(
            f"--quantize {Q4_K_M} needs llama.cpp's quantizer: `pip install llama-cpp-python`, which compiles it; or take "
            "--quantize q8_0, or llama.cpp's `llama-quantize` on a file of --quantize f16"
        ) from error
    return llama_cpp


# ---- writing ------------------------------------------------------------------------------------------------------


def write_gguf(path: Path, policy: Policy, vocabulary: Vocabulary, quantize: str) -> None:
    """Write a model into a file, whole or not at all.

    Args:
        policy: A model that `check_config` lets pass.
        quantize: f16, bf16, q8_0 or q4_k_m. Vectors stay in float32, and rows that no block fits in f16.

    Raises:
        UserError: a tensor has no place in GGUF or does not fit into f16; the file cannot be written; or llama.cpp cannot
            quantize.
    """
    if quantize != Q4_K_M:
        with replacing(path) as file:
            _write(Path(file.name), policy, vocabulary, quantize)
        return
    whole = path.with_name(f".{path.name}.f16")
    try:
        with replacing(whole) as file:
            _write(Path(file.name), policy, vocabulary, "f16")
        with replacing(path) as file:
            _quantize_file(whole, Path(file.name))
    finally:
        whole.unlink(missing_ok=True)


def _quantize_file(source: Path, target: Path) -> None:
    """Let llama.cpp quantize a file."""
    library = _quantizer()
    parameters = library.llama_model_quantize_default_params()
    parameters.ftype = library.LLAMA_FTYPE_MOSTLY_Q4_K_M
    if library.llama_model_quantize(os.fsencode(source), os.fsencode(target), parameters):
        raise UserError(
            f"llama.cpp cannot quantize this model to {Q4_K_M}; see its lines above, or take --quantize q8_0"
        )


def _write(path: Path, policy: Policy, vocabulary: Vocabulary, quantize: str) -> None:
    from gguf import GGML_QUANT_VERSION, GGUFWriter, LlamaFileType

    config = policy.model.config
    writer = GGUFWriter(path, ARCHITECTURES[config.model_type])
    try:
        name = Path(str(config.name_or_path)).resolve().name.removesuffix(SUFFIX)
        writer.add_string(MARK, name)
        writer.add_name(name)
        writer.add_file_type(LlamaFileType[f"MOSTLY_{quantize.upper()}"])
        writer.add_quantization_version(GGML_QUANT_VERSION)
        _add_settings(writer, config)
        _add_tokenizer(writer, policy, vocabulary)
        _write_tensors(writer, policy.model, quantize)
    finally:
        writer.close()


def _add_settings(writer: "GGUFWriter", config: PreTrainedConfig) -> None:
    """The configuration, in llama.cpp's words."""
    heads = config.num_attention_heads
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_head_count(heads)
    writer.add_vocab_size(config.vocab_size)
    if config.model_type == "gpt2":
        writer.add_feed_forward_length(config.n_inner or 4 * config.hidden_size)
        writer.add_layer_norm_eps(config.layer_norm_epsilon)
        return
    size = getattr(config, "head_dim", None) or config.hidden_size // heads
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_key_length(size)
    writer.add_value_length(size)
    writer.add_rope_dimension_count(size)
    writer.add_rope_freq_base(_ropes(config)["full_attention"]["rope_theta"])
    if config.model_type == "gemma3_text":
        writer.add_sliding_window(config.sliding_window)
        writer.add_rope_freq_base_swa(GEMMA_LOCAL_THETA)


def _add_tokenizer(writer: "GGUFWriter", policy: Policy, vocabulary: Vocabulary) -> None:
    """The tokens, what they are for, and the chat template."""
    tokenizer = policy.tokenizer
    writer.add_tokenizer_model(vocabulary.kind)
    writer.add_tokenizer_pre(vocabulary.pre)
    writer.add_token_list(vocabulary.tokens)
    writer.add_token_types(vocabulary.types)
    writer.add_token_merges(vocabulary.merges)  # llama.cpp reads them for byte-level BPE, transformers for both
    if vocabulary.scores:
        writer.add_token_scores(vocabulary.scores)
        writer.add_add_space_prefix(vocabulary.adds_space)
    writer.add_add_bos_token(vocabulary.adds_bos)
    writer.add_add_eos_token(False)
    ends = sorted(policy.eos_token_ids, key=lambda i: i != policy.end_token_id)
    roles = [(role, getattr(tokenizer, f"{role}_token_id")) for role in ("bos", "unk", "pad")]
    for role, i in [*roles, *zip(("eos", "eot", "eom"), ends, strict=False)]:
        if i is not None and i < len(vocabulary.tokens):
            getattr(writer, f"add_{role}_token_id")(i)
    if policy.banned_token_ids:  # llama.cpp would write the separator of tags, whose weights are much like EOS's
        writer.add_array(SUPPRESSED, policy.banned_token_ids)
    if isinstance(tokenizer.chat_template, str):
        writer.add_chat_template(tokenizer.chat_template)


# ---- tensors ------------------------------------------------------------------------------------------------------


def _write_tensors(writer: "GGUFWriter", model: PreTrainedModel, quantize: str) -> None:
    """The header of the file with the shapes of all tensors, then one tensor after another."""
    from gguf import GGMLQuantizationType
    from gguf.quants import quant_shape_to_byte_shape
    from gguf.quants import quantize as pack

    wanted, weights = GGMLQuantizationType[quantize.upper()], list(_tensors(model))
    for name, weight, transposed in weights:
        shape = tuple(weight.shape[::-1] if transposed else weight.shape)
        kind = _kind(name, shape, wanted)
        stored = quant_shape_to_byte_shape(shape, kind)
        writer.add_tensor_info(name, stored, np.dtype(np.uint8), int(np.prod(stored)), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for name, weight, transposed in weights:
        values = _values(name, weight.T if transposed else weight, model.config)
        kind = _kind(name, values.shape, wanted)
        packed = pack(values, kind)
        if kind == GGMLQuantizationType.F16 and not np.isfinite(packed).all():
            raise UserError(f"the weights of {name} do not fit into f16; export with --quantize bf16")
        writer.write_tensor_data(packed)


def _tensors(model: PreTrainedModel) -> Iterator[tuple[str, torch.Tensor, bool]]:
    """The weights by llama.cpp's names, and whether they are transposed, as those of GPT-2's Conv1D are.

    Raises:
        UserError: a tensor has no place in GGUF.
    """
    from gguf import MODEL_ARCH, get_tensor_name_map

    config = model.config
    kind = next(arch for arch in MODEL_ARCH if arch.name.lower() == ARCHITECTURES[config.model_type])
    names = get_tensor_name_map(kind, config.num_hidden_layers)
    for full, weight in model.named_parameters():  # names a tied head once, as the embeddings
        stem, _, suffix = full.rpartition(".")
        name = names.get_name(stem)
        if name is None:
            raise UserError(f"the tensor {full} of this model has no place in a GGUF file of {config.model_type}")
        yield f"{name}.{suffix}", weight.detach(), config.model_type == "gpt2" and ".c_" in full and weight.ndim == 2
    if (factors := _rope_factors(config)) is not None:
        yield "rope_freqs.weight", factors, False


def _rope_factors(config: PreTrainedConfig) -> torch.Tensor | None:
    """What Llama 3 divides the frequencies of its rotary positions by; None for a model that does not."""
    rope = _ropes(config).get("full_attention", {})
    if rope.get("rope_type") != "llama3":
        return None
    scaled, _ = ROPE_INIT_FUNCTIONS["llama3"](config, torch.device("cpu"))
    size = 2 * len(scaled)
    plain = rope["rope_theta"] ** -(torch.arange(0, size, 2, dtype=torch.float64) / size)
    return plain / scaled


def _kind(name: str, shape: tuple[int, ...], wanted: "GGMLQuantizationType") -> "GGMLQuantizationType":
    """The type of a tensor: vectors and positions in float32, and f16 for rows that are not whole blocks."""
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

    if len(shape) == 1 or name == "position_embd.weight":
        return GGMLQuantizationType.F32
    return wanted if shape[-1] % GGML_QUANT_SIZES[wanted][0] == 0 else GGMLQuantizationType.F16


def _values(name: str, weight: torch.Tensor, config: PreTrainedConfig) -> np.ndarray:
    """A tensor as llama.cpp reads it, in float32."""
    values = weight.float().numpy()
    if config.model_type == "gemma3_text" and name.endswith("norm.weight"):
        values = values + 1
    if config.model_type == "llama" and (".attn_q." in name or ".attn_k." in name):
        heads = config.num_attention_heads if ".attn_q." in name else config.num_key_value_heads
        # llama.cpp rotates neighbouring columns, transformers the two halves
        values = values.reshape(heads, 2, -1, *values.shape[1:]).swapaxes(1, 2).reshape(values.shape)
    return np.ascontiguousarray(values)
