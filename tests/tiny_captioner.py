"""Small captioners of the production classes that nobody trained, in the layout of `from_pretrained`.

Their tokenizers know single bytes. Their answers are noise, but they depend on the image.
"""

from pathlib import Path
from typing import Any, Literal

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    Blip2Config,
    Blip2ForConditionalGeneration,
    Blip2Processor,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    OPTConfig,
    PreTrainedTokenizerFast,
    T5Config,
)
from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

PAD, START, END, PICTURE = "<pad>", "<s>", "</s>", "<image>"
SIDE = 16
PATCH = 8
QUERIES = 4
CHAT = (
    "{% for message in messages %}USER: {% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<image>{% else %} {{ part['text'] }}{% endif %}{% endfor %}{% endfor %} ASSISTANT:"
)
"""LLaVA 1.5's way to ask."""


def make_tokenizer(has_image_token: bool) -> PreTrainedTokenizerFast:
    """Every byte a token, no merges."""
    tokens = [PAD, START, END, PICTURE, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    inner = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(tokens)}, merges=[]))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=inner,
        pad_token=PAD,
        bos_token=START,
        eos_token=END,
        # BLIP-2's processor brings its own, and does not expect one that is named.
        extra_special_tokens={"image_token": PICTURE} if has_image_token else {},
    )


def text_config(kind: Literal["opt", "t5"], size: int, ids: dict[str, int]) -> Any:
    if kind == "opt":
        return OPTConfig(
            vocab_size=size,
            hidden_size=32,
            num_hidden_layers=2,
            ffn_dim=64,
            num_attention_heads=4,
            word_embed_proj_dim=32,
            **ids,
        )
    return T5Config(
        vocab_size=size,
        d_model=32,
        d_kv=8,
        d_ff=64,
        num_layers=2,
        num_heads=4,
        decoder_start_token_id=ids["pad_token_id"],
        **ids,
    )


def vision(width: int) -> dict[str, int]:
    return {
        "hidden_size": width,
        "intermediate_size": 2 * width,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "image_size": SIDE,
        "patch_size": PATCH,
    }


def save_blip2(folder: Path, kind: Literal["opt", "t5"] = "opt", silent: bool = False) -> Path:
    """BLIP-2 with a decoder or an encoder-decoder; a `silent` one ends every answer before its first word."""
    tokenizer = make_tokenizer(has_image_token=False)
    config = Blip2Config(
        vision_config=vision(32),
        qformer_config={
            "vocab_size": 10,
            "hidden_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "intermediate_size": 64,
            "encoder_hidden_size": 32,
        },
        text_config=text_config(kind, len(tokenizer), ids_of(tokenizer)).to_dict(),
        num_query_tokens=QUERIES,
        image_token_index=tokenizer.convert_tokens_to_ids(PICTURE),
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = Blip2ForConditionalGeneration(config).eval()
        scatter(model)
    if silent:
        with torch.no_grad():
            head = model.get_output_embeddings().weight
            norm = model.language_model.model.decoder.final_layer_norm
            norm.weight.zero_()
            norm.bias.copy_(100 * head[tokenizer.eos_token_id])
    model.save_pretrained(folder)
    images = BlipImageProcessorPil(size={"height": SIDE, "width": SIDE})
    Blip2Processor(images, tokenizer, num_query_tokens=QUERIES).save_pretrained(folder)
    return folder


def save_llava(folder: Path, chat: bool = True) -> Path:
    tokenizer = make_tokenizer(has_image_token=True)
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(**vision(32), projection_dim=32),
        text_config=LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            **ids_of(tokenizer),
        ),
        image_token_index=tokenizer.convert_tokens_to_ids(PICTURE),
        image_seq_length=(SIDE // PATCH) ** 2,
        vision_feature_layer=-1,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = LlavaForConditionalGeneration(config).eval()
        scatter(model)
    model.save_pretrained(folder)
    images = CLIPImageProcessorPil(size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE})
    LlavaProcessor(
        images,
        tokenizer,
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=CHAT if chat else None,
    ).save_pretrained(folder)
    return folder


def ids_of(tokenizer: PreTrainedTokenizerFast) -> dict[str, int]:
    return {
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
    }


def scatter(model: Any) -> None:
    """Weights ten times as large as at the start of a training: an answer is not one letter, and not every image's."""
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.ndim > 1 and "norm" not in name:
                weight.normal_(std=weight.shape[-1] ** -0.5)
