"""A tiny Llama as a GGUF file, as llama.cpp's converter writes one, and the same model of transformers."""

import json
from pathlib import Path

import numpy as np
import tiny
import torch
from gguf import GGMLQuantizationType, GGUFWriter, TokenType
from gguf.quants import dequantize, quantize
from transformers import AutoConfig, AutoModelForCausalLM

SIZES = {
    **{"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4},
    **{"num_key_value_heads": 2, "max_position_embeddings": 96, "rms_norm_eps": 1e-5},
}
NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}
Q8 = GGMLQuantizationType.Q8_0


def write(path: Path, tied: bool = True, architecture: str = "llama", seed: int = 0):
    """Write the file, its matrices in Q8_0; returns a model of transformers with the weights of the file in bf16."""
    model = _model(tied, seed)
    writer = GGUFWriter(path, architecture)
    _add_settings(writer)
    _add_tokenizer(writer)
    for name, weight in model.state_dict().items():
        if name != "lm_head.weight" or not tied:
            _add_tensor(writer, name, weight)
    for step in ("header", "kv_data", "tensors"):
        getattr(writer, f"write_{step}_to_file")()
    writer.close()
    return _rounded(model)


def _model(tied: bool, seed: int):
    config = AutoConfig.for_model("llama", **SIZES, vocab_size=len(tiny.tokenizer()), tie_word_embeddings=tied)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return AutoModelForCausalLM.from_config(config).eval()


def _rounded(model):
    """The model with what Q8_0, and then bf16, leave of its weights."""
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim == 2:
                weight.copy_(torch.from_numpy(dequantize(quantize(weight.numpy(), Q8), Q8)).bfloat16())
    return model


def _add_settings(writer: GGUFWriter) -> None:
    writer.add_context_length(SIZES["max_position_embeddings"])
    writer.add_embedding_length(SIZES["hidden_size"])
    writer.add_block_count(SIZES["num_hidden_layers"])
    writer.add_feed_forward_length(SIZES["intermediate_size"])
    writer.add_head_count(SIZES["num_attention_heads"])
    writer.add_head_count_kv(SIZES["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(SIZES["rms_norm_eps"])
    writer.add_rope_dimension_count(SIZES["hidden_size"] // SIZES["num_attention_heads"])
    writer.add_vocab_size(len(tiny.tokenizer()))


def _add_tokenizer(writer: GGUFWriter) -> None:
    tokenizer = tiny.tokenizer()
    merges = json.loads(tokenizer.backend_tokenizer.to_str())["model"]["merges"]
    tokens = tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types([TokenType.CONTROL if t == "<|endoftext|>" else TokenType.NORMAL for t in tokens])
    writer.add_token_merges([" ".join(merge) for merge in merges])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(0)


def _add_tensor(writer: GGUFWriter, name: str, weight: torch.Tensor) -> None:
    values = weight.float().numpy()
    for part, heads in (("q_proj", SIZES["num_attention_heads"]), ("k_proj", SIZES["num_key_value_heads"])):
        if part in name:  # llama.cpp rotates neighbouring columns, transformers the two halves
            values = values.reshape(heads, 2, -1, values.shape[1]).swapaxes(1, 2).reshape(values.shape)
    values = np.ascontiguousarray(values)
    if values.ndim == 2:
        writer.add_tensor(_gguf_name(name), quantize(values, Q8), raw_dtype=Q8)
    else:
        writer.add_tensor(_gguf_name(name), values)


def _gguf_name(name: str) -> str:
    outer = {"model.embed_tokens.weight": "token_embd", "model.norm.weight": "output_norm", "lm_head.weight": "output"}
    if name in outer:
        return f"{outer[name]}.weight"
    _, _, layer, inner = name.removesuffix(".weight").split(".", 3)
    return f"blk.{layer}.{NAMES[inner]}.weight"
