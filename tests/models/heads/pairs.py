"""Models of transformers that read sound, series, or text beside images and boxes."""

from functools import partial
from typing import Any

import torch
from torch import Tensor

from tests.models.heads.case import Case, Keywords, generator
from tests.models.heads.images import PIXELS, TRANSFORMER, VIT, photographs
from tests.models.heads.text import ENCODER, VOCABULARY, make, sentences

TEXT = {**ENCODER, "projection_dim": 16}
VISION = {**VIT, "projection_dim": 16}
BOTH = {"text_config": TEXT, "vision_config": VISION, "projection_dim": 16}
SAMPLES = (640, 960)
WAVE: dict[str, Any] = {
    **TRANSFORMER,
    "vocab_size": 20,
    "conv_dim": [16, 16, 16],
    "conv_stride": [4, 4, 2],
    "conv_kernel": [8, 4, 4],
    "num_feat_extract_layers": 3,
    "num_conv_pos_embeddings": 8,
    "num_conv_pos_embedding_groups": 2,
    "mask_time_prob": 0.0,
    "num_labels": 3,
    "classifier_proj_size": 16,
}
SERIES: dict[str, Any] = {"context_length": 32, "num_input_channels": 3, "patch_length": 4, "prediction_length": 8}


def normal(*shape: int) -> Tensor:
    """Numbers that depend on the shape alone."""
    return torch.randn(shape, generator=generator(*shape))


def text_and_image(batch: int, length: int) -> Keywords:
    """A sentence to each photograph."""
    return {**sentences(batch, length), **photographs(batch, PIXELS, PIXELS)}


def pair_of_lists(batch: int, length: int) -> Keywords:
    """Two sentences to each photograph."""
    return {**sentences(2 * batch, length), **photographs(batch, PIXELS, PIXELS)}


def sound(batch: int, length: int) -> Keywords:
    """[batch, samples]; the second recording is shorter."""
    valid = torch.arange(length) < torch.tensor([length - 160 * (row % 2) for row in range(batch)])[:, None]
    return {"input_values": normal(batch, length) * valid, "attention_mask": valid.long()}


def boxes(batch: int, length: int) -> Keywords:
    """A box on the page to each word."""
    corners = torch.randint(0, 500, (batch, length, 4), generator=generator(batch, length, 4))
    corners[..., 2:] += corners[..., :2]
    return {**sentences(batch, length), "bbox": corners}


def spectrogram(name: str, bins: int, frames: int, first: bool = True) -> Any:
    """[batch, bins, frames], or frames first."""
    return lambda batch, _: {name: normal(batch, bins, frames) if first else normal(batch, frames, bins)}


def speech_and_text(batch: int, length: int) -> Keywords:
    """Log-mel features and the words so far."""
    return {"input_features": normal(batch, 16, 40), "decoder_input_ids": sentences(batch, length)["input_ids"]}


def series(batch: int, _: int) -> Keywords:
    """[batch, steps, channels]."""
    return {"past_values": normal(batch, 32, 3)}


def regions(batch: int, length: int) -> Keywords:
    """Words and features of regions of an image."""
    return {**sentences(batch, length), "visual_embeds": normal(batch, 5, 16), "visual_attention_mask": torch.ones(batch, 5).long()}


WHISPER = {
    "vocab_size": VOCABULARY,
    "num_mel_bins": 16,
    "max_source_positions": 20,
    "max_target_positions": 40,
    "d_model": 32,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 64,
    "decoder_ffn_dim": 64,
    "decoder_start_token_id": 1,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "use_cache": False,
    "num_labels": 3,
    "classifier_proj_size": 16,
}

#: Model → (configuration, its fields, inputs of a call, two lengths).
MODELS: dict[str, tuple[str, dict[str, Any], Any, tuple[int, int]]] = {
    "CLIPModel": ("CLIPConfig", BOTH, text_and_image, (11, 7)),
    "SiglipModel": ("SiglipConfig", BOTH, text_and_image, (11, 11)),
    "AltCLIPModel": ("AltCLIPConfig", {**BOTH, "text_config": {**TEXT, "project_dim": 16, "pad_token_id": 1}}, text_and_image, (11, 7)),
    "ChineseCLIPModel": ("ChineseCLIPConfig", BOTH, text_and_image, (11, 7)),
    "CLIPSegForImageSegmentation": (
        "CLIPSegConfig",
        {**BOTH, "reduce_dim": 16, "extract_layers": [0, 1], "decoder_num_attention_heads": 2, "decoder_intermediate_size": 32},
        text_and_image,
        (11, 7),
    ),
    "BlipForImageTextRetrieval": (
        "BlipConfig",
        {**BOTH, "text_config": {**TEXT, "encoder_hidden_size": 32}, "image_text_hidden_size": 16},
        text_and_image,
        (11, 7),
    ),
    "OwlViTForObjectDetection": ("OwlViTConfig", {**BOTH, "projection_dim": 32}, pair_of_lists, (11, 7)),
    "Owlv2ForObjectDetection": ("Owlv2Config", {**BOTH, "projection_dim": 32}, pair_of_lists, (11, 7)),
    "GroupViTModel": (
        "GroupViTConfig",
        {**BOTH, "vision_config": {**VISION, "depths": [1, 1, 1], "num_group_tokens": [8, 4, 0], "num_output_groups": [8, 4, 0]}},
        text_and_image,
        (11, 7),
    ),
    "ViltForQuestionAnswering": ("ViltConfig", {**ENCODER, **VIT, "max_image_length": -1}, text_and_image, (11, 7)),
    "FlavaModel": (
        "FlavaConfig",
        {"text_config": TEXT, "image_config": VIT, "multimodal_config": TRANSFORMER, "hidden_size": 32, "projection_dim": 16},
        text_and_image,
        (11, 7),
    ),
    "BridgeTowerForImageAndTextRetrieval": (
        "BridgeTowerConfig",
        {"text_config": ENCODER, "vision_config": {**VIT, "hidden_size": 64}, **TRANSFORMER},
        text_and_image,
        (11, 7),
    ),
    "LayoutLMForQuestionAnswering": ("LayoutLMConfig", {**ENCODER, "num_labels": 2}, boxes, (13, 19)),
    "LayoutLMv3ForTokenClassification": (
        "LayoutLMv3Config",
        {**ENCODER, "pad_token_id": 1, "input_size": PIXELS, "patch_size": 16, "coordinate_size": 5, "shape_size": 6, "num_labels": 3},
        boxes,
        (13, 19),
    ),
    "LiltForTokenClassification": (
        "LiltConfig",
        {**ENCODER, "pad_token_id": 1, "hidden_size": 24, "channel_shrink_ratio": 2, "num_labels": 3},
        boxes,
        (13, 19),
    ),
    "VisualBertForQuestionAnswering": ("VisualBertConfig", {**ENCODER, "visual_embedding_dim": 16, "num_labels": 3}, regions, (13, 19)),
    "Wav2Vec2ForCTC": ("Wav2Vec2Config", WAVE, sound, SAMPLES),
    "Wav2Vec2ForSequenceClassification": ("Wav2Vec2Config", WAVE, sound, SAMPLES),
    "Wav2Vec2ForAudioFrameClassification": ("Wav2Vec2Config", WAVE, sound, SAMPLES),
    "HubertForSequenceClassification": ("HubertConfig", WAVE, sound, SAMPLES),
    "WavLMForSequenceClassification": ("WavLMConfig", WAVE, sound, SAMPLES),
    "UniSpeechForSequenceClassification": ("UniSpeechConfig", WAVE, sound, SAMPLES),
    "Data2VecAudioForSequenceClassification": ("Data2VecAudioConfig", {**WAVE, "num_conv_pos_embeddings": 2}, sound, SAMPLES),
    "SEWForSequenceClassification": ("SEWConfig", WAVE, sound, SAMPLES),
    "ASTForAudioClassification": (
        "ASTConfig",
        {**TRANSFORMER, "patch_size": 16, "max_length": 64, "num_mel_bins": 32, "num_labels": 3},
        spectrogram("input_values", 32, 64, first=False),
        (64, 64),
    ),
    "WhisperForConditionalGeneration": ("WhisperConfig", WHISPER, speech_and_text, (7, 11)),
    "WhisperForAudioClassification": ("WhisperConfig", WHISPER, spectrogram("input_features", 16, 40), (40, 40)),
    "PatchTSTForPrediction": (
        "PatchTSTConfig",
        {**SERIES, "d_model": 32, "num_attention_heads": 2, "ffn_dim": 64, "num_hidden_layers": 2},
        series,
        (1, 1),
    ),
    "PatchTSTForClassification": (
        "PatchTSTConfig",
        {**SERIES, "d_model": 32, "num_attention_heads": 2, "ffn_dim": 64, "num_hidden_layers": 2, "num_targets": 3},
        series,
        (1, 1),
    ),
    "PatchTSMixerForPrediction": ("PatchTSMixerConfig", {**SERIES, "d_model": 16, "num_layers": 2}, series, (1, 1)),
    "PatchTSMixerForTimeSeriesClassification": (
        "PatchTSMixerConfig",
        {**SERIES, "d_model": 16, "num_layers": 2, "num_targets": 3},
        series,
        (1, 1),
    ),
}

CASES = {
    name: Case(partial(make, name, configuration, given), inputs, lengths)
    for name, (configuration, given, inputs, lengths) in MODELS.items()
}
