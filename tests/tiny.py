"""Small models, tokenizers and rewards that tests build in a second, without downloads."""

import functools
import json

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoConfig, AutoModelForCausalLM, LlamaTokenizer, PreTrainedTokenizerFast

SENTENCES = [
    "the weather is warm and the river is calm today",
    "nobody at the station knew when the train would leave",
    "she said the game was lost before it began",
    "we planted beans and peas behind the old house",
    "a quarrel about nothing can last the whole winter",
]
ARCHITECTURES = {
    "gpt2": {"model_type": "gpt2", "n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 96},
    "llama": {
        **{"model_type": "llama", "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2},
        **{"num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 96},
    },
    "qwen2": {
        **{"model_type": "qwen2", "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2},
        **{"num_attention_heads": 2, "num_key_value_heads": 2, "max_position_embeddings": 96},
    },
    "gpt_neox": {
        **{"model_type": "gpt_neox", "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2},
        **{"num_attention_heads": 2, "max_position_embeddings": 96},
    },
    "mistral": {
        **{"model_type": "mistral", "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2},
        **{"num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 96},
    },
}
CHAT_TEMPLATE = (
    "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


@functools.cache
def _backend() -> str:
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(SENTENCES, trainer)
    return backend.to_str()


def tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level BPE of 300 tokens whose EOS, BOS and padding are `<|endoftext|>`."""
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(_backend()),
        **dict.fromkeys(("eos_token", "bos_token", "pad_token"), "<|endoftext|>"),
    )


def llama_tokenizer() -> LlamaTokenizer:
    """A small tokenizer of Llama 2's kind: a space before the first word of every text, which decoding drops."""
    backend = Tokenizer(models.BPE(unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    trainer = trainers.BpeTrainer(vocab_size=120, special_tokens=["<unk>", "<s>", "</s>"], show_progress=False)
    backend.train_from_iterator(SENTENCES * 3, trainer)
    spec = json.loads(backend.to_str())["model"]
    tokenizer = LlamaTokenizer(vocab=spec["vocab"], merges=[tuple(pair) for pair in spec["merges"]])
    tokenizer.pad_token = "</s>"
    return tokenizer


def model(architecture: str = "gpt2", seed: int = 0, vocab_size: int | None = None):
    """A random two-layer model, determined by its seed."""
    size = vocab_size or len(tokenizer())
    config = AutoConfig.for_model(
        **ARCHITECTURES[architecture], vocab_size=size, bos_token_id=0, eos_token_id=0, pad_token_id=0
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        made = AutoModelForCausalLM.from_config(config)
    return made.eval()


SHAPE = {  # small sizes, under the names that transformers' configurations have for them
    **dict.fromkeys(
        ("hidden_size", "n_embd", "d_model", "word_embed_proj_dim", "lru_width", "attention_hidden_size"), 32
    ),
    **dict.fromkeys(("intermediate_size", "ffn_dim", "decoder_ffn_dim", "encoder_ffn_dim", "dff"), 48),
    **dict.fromkeys(("num_hidden_layers", "n_layer", "n_layers", "num_layers", "decoder_layers", "encoder_layers"), 2),
    **dict.fromkeys(("num_attention_heads", "n_head", "n_heads", "attention_heads", "decoder_attention_heads"), 4),
    **{"num_key_value_heads": 2, "head_dim": 8, "state_size": 4, "encoder_attention_heads": 4},
    **dict.fromkeys(("max_position_embeddings", "n_positions", "context_length", "max_seq_len"), 96),
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts"), 4),
    **{"num_experts_per_tok": 2, "moe_intermediate_size": 16, "shared_expert_intermediate_size": 16},
}


def any_model(kind: str, seed: int = 0, **changes):
    """A small random model of any kind that transformers has as a causal LM; `changes` are fields of its configuration."""
    plain = AutoConfig.for_model(kind)
    sizes = {name: size for name, size in SHAPE.items() if name in vars(plain) or name in plain.attribute_map}
    ids = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}
    config = AutoConfig.for_model(kind, **{**sizes, "vocab_size": len(tokenizer()), **ids, **changes})
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        made = AutoModelForCausalLM.from_config(config)
    return made.eval()


def save(folder, architecture: str = "gpt2", seed: int = 0) -> str:
    """Save model and tokenizer; returns the folder."""
    model(architecture, seed).save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return str(folder)


def vowels(prompts, completions, completion_ids, **kwargs) -> list[float]:
    """A reward that random models can earn: the share of vowels."""
    return [sum(c in "aeiou" for c in text) / (1 + len(text)) for text in completions]


PROMPTS = [{"prompt": " ".join(s.split()[:n])} for s in SENTENCES for n in (2, 3, 4, 6)]
