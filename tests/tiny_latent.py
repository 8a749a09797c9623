"""Small latent diffusion models of the production classes that nobody trained, in the layout of `from_pretrained`.

The UNet has SDXL's form (two text encoders, size conditioning) with 0.3 M parameters; the tokenizers know single bytes.
"""

from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    ControlNetModel,
    EulerDiscreteScheduler,
    StableDiffusionXLPipeline,
    T2IAdapter,
    UNet2DConditionModel,
)
from tokenizers.pre_tokenizers import ByteLevel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

WIDTH = 32
"""Hidden size of each text encoder."""
VAE_FACTOR = 2
START, END = "<|startoftext|>", "<|endoftext|>"


def make_tokenizer() -> CLIPTokenizer:
    """CLIP's tokenizer with every byte as a token, and no merges."""
    letters = sorted(ByteLevel.alphabet())
    tokens = [*letters, *(f"{letter}</w>" for letter in letters), START, END]
    return CLIPTokenizer(vocab={token: i for i, token in enumerate(tokens)}, merges=[], model_max_length=77)


def make_text_encoder(tokenizer: CLIPTokenizer, projection: bool, width: int = WIDTH) -> Any:
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=37,
        num_attention_heads=4,
        num_hidden_layers=3,
        projection_dim=WIDTH,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    return (CLIPTextModelWithProjection if projection else CLIPTextModel)(config).eval()


def make_unet(in_channels: int = 4, text_channels: int = 2 * WIDTH) -> UNet2DConditionModel:
    return UNet2DConditionModel(
        sample_size=16,
        in_channels=in_channels,
        block_out_channels=(32, 64),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        transformer_layers_per_block=(1, 2),
        attention_head_dim=(2, 4),
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=6 * 8 + WIDTH,
        cross_attention_dim=text_channels,
        norm_num_groups=8,
    ).eval()


def make_vae(levels: int = 2) -> AutoencoderKL:
    """A VAE whose latents stand for 2^(levels - 1) pixels along each side."""
    return AutoencoderKL(
        block_out_channels=(16,) * (levels - 1) + (32,),
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        norm_num_groups=8,
        sample_size=32,
        scaling_factor=0.13025,
    ).eval()


def make_controlnet(unet: UNet2DConditionModel) -> ControlNetModel:
    """A ControlNet of a UNet whose last layers are not zero, so that it changes something."""
    network = ControlNetModel.from_unet(unet, conditioning_channels=3)
    # The picture is brought to the size of the latents: one halving, as in the VAE.
    network = ControlNetModel.from_config(network.config | {"conditioning_embedding_out_channels": (8, 16)})
    network.load_state_dict(unet.state_dict(), strict=False)
    with torch.no_grad():
        for layer in (*network.controlnet_down_blocks, network.controlnet_mid_block):
            layer.weight.normal_(std=0.1)
        network.controlnet_cond_embedding.conv_out.weight.normal_(std=0.1)
    return network.eval()


def make_adapter(**more: Any) -> T2IAdapter:
    options = {"channels": [32, 64], "downscale_factor": 2 * VAE_FACTOR, "adapter_type": "full_adapter_xl"}
    return T2IAdapter(num_res_blocks=1, **options | more).eval()


def make_pipeline(in_channels: int = 4, second_width: int = WIDTH) -> StableDiffusionXLPipeline:
    """All parts together, as diffusers has them; the same weights every time.

    `second_width` is that of the second text encoder: in published models it is not that of the first.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        tokenizer = make_tokenizer()
        return StableDiffusionXLPipeline(
            vae=make_vae(),
            text_encoder=make_text_encoder(tokenizer, projection=False),
            text_encoder_2=make_text_encoder(tokenizer, projection=True, width=second_width),
            tokenizer=tokenizer,
            tokenizer_2=make_tokenizer(),
            unet=make_unet(in_channels, WIDTH + second_width),
            scheduler=EulerDiscreteScheduler(
                beta_start=0.00085,
                beta_end=0.012,
                beta_schedule="scaled_linear",
                timestep_spacing="leading",
                steps_offset=1,
            ),
            add_watermarker=False,
        )


def save_models(folder: Path) -> Path:
    """A base, one that was made to inpaint, a ControlNet and a T2I-Adapter; nobody trained them."""
    save_pipeline(folder / "base")
    save_pipeline(folder / "inpainter", in_channels=9)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        make_controlnet(make_pipeline().unet).save_pretrained(folder / "controlnet")
        make_adapter().save_pretrained(folder / "adapter")
    return folder


def save_pipeline(folder: Path, in_channels: int = 4) -> Path:
    make_pipeline(in_channels).save_pretrained(folder, safe_serialization=True)
    return folder


def save_coarse(folder: Path, levels: int = 5) -> Path:
    """A base whose latents stand for 16 x 16 pixels, or others: see `make_vae`."""
    pipeline = make_pipeline()
    pipeline.vae = make_vae(levels)
    pipeline.save_pretrained(folder, safe_serialization=True)
    return folder
