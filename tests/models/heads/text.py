"""Language models of transformers with their heads: encoders, decoders, both."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import nn

from tests.models.heads.case import Case, Keywords, generator

VOCABULARY, PADDING, END, LENGTHS = 83, 0, 2, (13, 19)
#: Sizes under the names that most configurations understand.
ENCODER: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "max_position_embeddings": 80,
    "type_vocab_size": 2,
    "pad_token_id": PADDING,
    "bos_token_id": 1,
    "eos_token_id": END,
}
DECODER = {"num_key_value_heads": 1, "use_cache": False}

#: A size that a family does not take.
ABSENT = object()
#: Family → (more about its configuration, its heads); the configuration is the family's name + "Config".
ENCODERS: dict[str, tuple[dict[str, Any], str]] = {
    "Bert": ({}, "QuestionAnswering TokenClassification SequenceClassification MaskedLM PreTraining NextSentencePrediction MultipleChoice"),
    "Roberta": ({"pad_token_id": 1}, "QuestionAnswering TokenClassification SequenceClassification MaskedLM MultipleChoice"),
    "DistilBert": ({}, "QuestionAnswering TokenClassification SequenceClassification MaskedLM MultipleChoice"),
    "Albert": ({"embedding_size": 16}, "QuestionAnswering SequenceClassification MaskedLM PreTraining MultipleChoice"),
    "Electra": ({"embedding_size": 16}, "QuestionAnswering TokenClassification SequenceClassification MaskedLM PreTraining"),
    "MobileBert": (
        {"embedding_size": 16, "intra_bottleneck_size": 16, "true_hidden_size": 16},
        "QuestionAnswering MaskedLM NextSentencePrediction",
    ),
    "SqueezeBert": ({"embedding_size": 32}, "QuestionAnswering SequenceClassification"),
    "MPNet": ({"pad_token_id": 1}, "QuestionAnswering MaskedLM"),
    "Deberta": (
        {"relative_attention": True, "pos_att_type": ["c2p", "p2c"], "max_relative_positions": 16},
        "QuestionAnswering SequenceClassification",
    ),
    "DebertaV2": (
        {"relative_attention": True, "pos_att_type": ["c2p", "p2c"], "position_buckets": 8, "norm_rel_ebd": "layer_norm"},
        "QuestionAnswering TokenClassification MaskedLM",
    ),
    "ConvBert": ({"embedding_size": 32, "head_ratio": 2, "num_groups": 1}, "QuestionAnswering TokenClassification"),
    "RoFormer": ({"embedding_size": 32}, "QuestionAnswering MaskedLM"),
    "XLMRoberta": ({"pad_token_id": 1}, "TokenClassification"),
    "XLMRobertaXL": ({"pad_token_id": 1}, "SequenceClassification"),
    "RobertaPreLayerNorm": ({"pad_token_id": 1}, "TokenClassification"),
    "Camembert": ({"pad_token_id": 1}, "MaskedLM"),
    "MegatronBert": ({}, "NextSentencePrediction QuestionAnswering"),
    "Ernie": ({}, "TokenClassification"),
    "RemBert": ({"input_embedding_size": 16, "output_embedding_size": 24}, "QuestionAnswering"),
    "FNet": ({}, "QuestionAnswering"),
    "Funnel": (
        {"num_hidden_layers": ABSENT, "block_sizes": [1, 1], "d_model": 32, "n_head": 2, "d_head": 16, "d_inner": 64},
        "QuestionAnswering SequenceClassification",
    ),
    "LayoutLM": ({}, "TokenClassification"),
    "Longformer": ({"attention_window": [8, 8], "pad_token_id": 1}, "TokenClassification"),
    "BigBird": ({"attention_type": "original_full"}, "QuestionAnswering TokenClassification"),
    "XLNet": (
        {"max_position_embeddings": ABSENT, "d_model": 32, "n_layer": 2, "n_head": 2, "d_inner": 64},
        "QuestionAnsweringSimple SequenceClassification",
    ),
    "Flaubert": ({"emb_dim": 32, "n_layers": 2, "n_heads": 2}, "QuestionAnsweringSimple SequenceClassification"),
    "Splinter": ({}, "QuestionAnswering"),
    "ModernBert": (
        {"global_attn_every_n_layers": 2, "local_attention": 8},
        "QuestionAnswering TokenClassification SequenceClassification MaskedLM",
    ),
    "Esm": ({"pad_token_id": 1, "position_embedding_type": "rotary"}, "TokenClassification"),
    "NomicBert": ({}, "MaskedLM"),
    "EuroBert": ({"num_key_value_heads": 2}, "SequenceClassification"),
    "IBert": ({"quant_mode": False, "pad_token_id": 1}, "QuestionAnswering"),
    "Data2VecText": ({"pad_token_id": 1}, "QuestionAnswering"),
    "Xmod": ({"pad_token_id": 1, "languages": ["en"], "default_language": "en"}, "TokenClassification"),
    "Luke": ({"entity_vocab_size": 9, "entity_emb_size": 8}, "TokenClassification"),
}
DECODERS: dict[str, tuple[dict[str, Any], str]] = {
    "GPT2": ({}, "QuestionAnswering TokenClassification SequenceClassification LMHeadModel"),
    "GPTNeo": ({"attention_types": [[["global", "local"], 1]], "window_size": 4}, "QuestionAnswering TokenClassification CausalLM"),
    "GPTNeoX": ({}, "QuestionAnswering SequenceClassification"),
    "GPTJ": ({"rotary_dim": 8}, "QuestionAnswering"),
    "GPTBigCode": ({}, "TokenClassification"),
    "OPT": ({"ffn_dim": 64, "word_embed_proj_dim": 24}, "QuestionAnswering SequenceClassification CausalLM"),
    "Bloom": ({}, "QuestionAnswering TokenClassification"),
    "Falcon": ({"alibi": False}, "QuestionAnswering"),
    "Mpt": ({"d_model": 32, "n_heads": 2, "n_layers": 2, "max_seq_len": 80}, "QuestionAnswering"),
    "Llama": ({}, "QuestionAnswering TokenClassification SequenceClassification CausalLM"),
    "Mistral": ({"sliding_window": 6}, "QuestionAnswering TokenClassification"),
    "Qwen2": ({}, "TokenClassification QuestionAnswering"),
    "Qwen3": ({"head_dim": 16}, "SequenceClassification"),
    "Gemma": ({"head_dim": 16}, "TokenClassification"),
    "Gemma2": ({"head_dim": 16, "query_pre_attn_scalar": 16, "sliding_window": 6}, "CausalLM"),
    "Phi": ({}, "TokenClassification"),
    "Phi3": ({}, "CausalLM"),
    "StableLm": ({}, "CausalLM"),
    "Persimmon": ({}, "TokenClassification"),
    "Olmo2": ({}, "CausalLM"),
    "Cohere": ({}, "CausalLM"),
    "SmolLM3": ({}, "TokenClassification"),
    "Mixtral": ({"num_local_experts": 2}, "TokenClassification"),
    "Mamba": ({"state_size": 4, "expand": 2, "time_step_rank": 2}, "CausalLM"),
    "CodeGen": ({"rotary_dim": 8}, "CausalLM"),
    "BioGpt": ({}, "TokenClassification"),
    "XGLM": ({"d_model": 32, "ffn_dim": 64, "num_layers": 2, "attention_heads": 2}, "CausalLM"),
    "OpenAIGPT": ({"n_positions": 80}, "SequenceClassification"),
    "CTRL": ({"n_positions": 80, "dff": 64}, "SequenceClassification"),
}
BOTH: dict[str, tuple[dict[str, Any], str]] = {
    "Bart": ({}, "QuestionAnswering SequenceClassification ConditionalGeneration"),
    "MBart": ({}, "QuestionAnswering"),
    "T5": ({"d_kv": 16, "num_layers": 2, "d_ff": 64}, "QuestionAnswering TokenClassification SequenceClassification ConditionalGeneration"),
    "MT5": ({"d_kv": 16, "num_layers": 2, "d_ff": 64}, "TokenClassification"),
    "LED": ({"attention_window": 8}, "QuestionAnswering"),
    "Pegasus": ({}, "ConditionalGeneration"),
    "Marian": ({}, "MTModel"),
    "M2M100": ({}, "ConditionalGeneration"),
    "Blenderbot": ({}, "ConditionalGeneration"),
    "PLBart": ({}, "SequenceClassification"),
}
BOTH_SIZES = {
    "d_model": 32,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 64,
    "decoder_ffn_dim": 64,
    "decoder_start_token_id": 2,
    "forced_eos_token_id": None,
}


def sentences(batch: int, length: int) -> Keywords:
    """Ids above all special ones, an end, and a mask with padding behind; row 0 is full."""
    ids = torch.randint(5, VOCABULARY, (batch, length), generator=generator(batch, length))
    last = torch.tensor([max(2, length - 4 * row) - 1 for row in range(batch)])[:, None]
    place = torch.arange(length).expand(batch, length)
    ids = torch.where(place < last, ids, torch.where(place == last, END, PADDING))
    return {"input_ids": ids, "attention_mask": (place <= last).long()}


def choices(batch: int, length: int) -> Keywords:
    """Two sentences in each row."""
    return {name: value.view(batch, 2, length) for name, value in sentences(2 * batch, length).items()}


def with_start(batch: int, length: int) -> Keywords:
    """Ids for the decoder too."""
    return {**sentences(batch, length), "decoder_input_ids": sentences(batch, length - 4)["input_ids"].clamp_min(3)}


def make(model: str, configuration: str, given: Mapping[str, Any]) -> nn.Module:
    """A model of transformers from the fields of its configuration; a pair of a name and fields is a configuration inside."""
    import transformers

    return getattr(transformers, model)(_configuration(configuration, given))


def _configuration(name: str, given: Mapping[str, Any]) -> Any:
    import transformers

    nested = {key: _configuration(*value) if isinstance(value, tuple) else value for key, value in given.items() if value is not ABSENT}
    return getattr(transformers, name)(**nested)


def _cases(families: dict[str, tuple[dict[str, Any], str]], sizes: dict[str, Any]) -> dict[str, Case]:
    made = {}
    for family, (more, heads) in families.items():
        for head in heads.split():
            name = f"{family}{'' if head in ('LMHeadModel', 'MTModel') else 'For'}{head}"
            given = {**sizes, "num_labels": 2 if "Answering" in head else 3, **more}
            made[name] = Case(partial(make, name, f"{family}Config", given), _inputs(families is BOTH, head), LENGTHS)
    return made


def _inputs(both: bool, head: str) -> Callable[[int, int], Keywords]:
    if head == "MultipleChoice":
        return choices
    return with_start if both and head in ("ConditionalGeneration", "MTModel") else sentences


CASES = _cases(ENCODERS, ENCODER) | _cases(DECODERS, ENCODER | DECODER) | _cases(BOTH, ENCODER | BOTH_SIZES | {"use_cache": False})
