"""What a job file says of each method: all of it is content. Imports no torch.

Which parts go together is checked here, before anything is looked at on disk.
"""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from segdatagen.captioners import CaptionerOptions
from segdatagen.clip_scores import ClipOptions
from segdatagen.diffusion.latent_options import (
    ControlOptions,
    LatentSamplerOptions,
    Mask2ImgSampler,
    Numerics,
    Text2MaskSampler,
    require_whole_steps,
)
from segdatagen.diffusion.sampler_options import SamplerOptions
from segdatagen.labels import LabelSet
from segdatagen.layouts import LayoutOptions
from segdatagen.priors.options import PriorOptions
from segdatagen.prompts import PromptOptions
from segdatagen.weights import OptionalWeightsUri, WeightsUri

DType = Literal["float32", "bfloat16", "float16"]


class BestOf(BaseModel):
    """Several images are drawn for each row, and that with the highest score is taken.

    The score is that of the filter `adherence` by a segmenter, or that of `clip_rank` by a CLIP model.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    candidates: int = Field(ge=1, le=100, strict=True, description="images that are drawn for each row")
    segmenter: OptionalWeightsUri = None
    clip: ClipOptions | None = None

    @model_validator(mode="after")
    def _one_judge(self) -> "BestOf":
        if (self.segmenter is None) == (self.clip is None):
            raise ValueError("give one judge: segmenter, or clip")
        return self


class WithBestOf(BaseModel):
    """What every method that draws images may be asked for."""

    best_of: BestOf | None = Field(default=None, exclude_if=lambda value: value is None)

    def content(self) -> dict[str, Any]:
        """These options as JSON, as the recipe holds them: one candidate is as good as none, and leaves no trace."""
        said = self.model_dump(mode="json")
        if self.chosen is None:
            said.pop("best_of", None)
        return said

    @property
    def chosen(self) -> BestOf | None:
        """How one of several images is taken; None where one is drawn."""
        return None if self.best_of is None or self.best_of.candidates == 1 else self.best_of


class MaskDDPMOptions(SamplerOptions, WithBestOf):
    """The mask-guided DDPM of paper 001."""

    weights: WeightsUri
    dtype: DType = "float32"

    @property
    def needs_mask(self) -> bool:
        """Always: it draws after one."""
        return True


class Control(ControlOptions):
    """A network that draws after a visual prior, and the prior."""

    prior: PriorOptions


class LatentOptions(WithBestOf):
    """A latent diffusion model, what it is told of each source, and how it draws."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    base: WeightsUri
    base_config: OptionalWeightsUri = Field(default=None, exclude_if=lambda value: value is None)
    """Where `base` is one file: the folder of a diffusers model of its kind, for configurations and tokenizers."""
    controls: tuple[Control, ...] = Field(default=(), validate_default=True)
    caption: CaptionerOptions = CaptionerOptions()
    prompt: PromptOptions = PromptOptions()
    sampler: LatentSamplerOptions = LatentSamplerOptions()
    numerics: Numerics = Numerics()

    @model_validator(mode="after")
    def _numerics_fit(self) -> "LatentOptions":
        require_whole_steps(self.sampler, self.numerics)
        return self

    @model_validator(mode="after")
    def _controls_work(self) -> "LatentOptions":
        steps = self.sampler.steps
        for number, control in enumerate(self.controls):
            if not control.works(steps):
                raise ValueError(
                    f"controls.{number}: it works from {control.start:g} to {control.end:g} of the steps, and none of "
                    f"{steps} lies within: lower start, or raise end or sampler.steps"
                )
            if control.guided and not self.sampler.guides:
                raise ValueError(
                    f"controls.{number}: guided needs guidance, and sampler.guidance is {self.sampler.guidance:g}: "
                    "raise it above 1, or leave guided out"
                )
        return self

    @property
    def needs_image(self) -> bool:
        """Whether anything is drawn or told of the source's image, not of its mask alone."""
        of_image = any(control.prior.of != "mask" for control in self.controls)
        return of_image or self.caption.kind in ("blip2", "model")

    @property
    def needs_mask(self) -> bool:
        """Whether it starts from the mask of a source; otherwise a caption is enough."""
        return True


class ImgSynOptions(LatentOptions):
    """ImgSyn of SegGen (section 3): an image for the real mask, by a ControlNet that sees its colour map.

    What its sampler leaves out is SegGen's (A.4).
    """

    sampler: Mask2ImgSampler = LatentSamplerOptions(preset="seggen_mask2img")

    @field_validator("controls")
    @classmethod
    def _fit(cls, controls: tuple[Control, ...]) -> tuple[Control, ...]:
        seen = [(control.kind, control.prior.name) for control in controls]
        return _require(controls, seen == [("controlnet", "colour_map")], "imgsyn")


class Text2MaskOptions(BaseModel):
    """A text-to-image model that was fine-tuned to draw colour maps. What its sampler leaves out is SegGen's (A.4)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    weights: WeightsUri
    base_config: OptionalWeightsUri = Field(default=None, exclude_if=lambda value: value is None)
    """As of `base`."""
    sampler: Text2MaskSampler = LatentSamplerOptions(preset="seggen_text2mask")
    numerics: Numerics = Numerics()

    @model_validator(mode="after")
    def _numerics_fit(self) -> "Text2MaskOptions":
        require_whole_steps(self.sampler, self.numerics)
        return self


class MaskSynOptions(LatentOptions):
    """MaskSyn of SegGen (section 3): a mask for a caption, by Text2Mask, and an image for that mask as in ImgSyn."""

    sampler: Mask2ImgSampler = LatentSamplerOptions(preset="seggen_mask2img")
    caption: CaptionerOptions = CaptionerOptions(kind="data_set")
    text2mask: Text2MaskOptions
    layout: LayoutOptions = LayoutOptions()
    images_per_mask: int = Field(default=1, ge=1, le=1000, strict=True, description="variants that share a mask")

    @field_validator("controls")
    @classmethod
    def _fit(cls, controls: tuple[Control, ...]) -> tuple[Control, ...]:
        seen = [(control.kind, control.prior.name) for control in controls]
        return _require(controls, seen == [("controlnet", "colour_map")], "masksyn")

    @property
    def needs_mask(self) -> bool:
        """Never: it makes one."""
        return False


class GuidedOptions(LatentOptions):
    """SGA: an image for the real mask, by T2I-Adapters or ControlNets that see blended visual priors."""

    @field_validator("controls")
    @classmethod
    def _fit(cls, controls: tuple[Control, ...]) -> tuple[Control, ...]:
        return _require(controls, bool(controls), "guided")


class InpaintOptions(LatentOptions):
    """What the mask labels is drawn anew; every other pixel stays as it is in the real image."""

    classes: tuple[str, ...] | None = Field(
        default=None,
        min_length=1,
        description="names of the classes that are drawn anew; unset: all but background",
        exclude_if=lambda value: value is None,
    )

    @field_validator("controls")
    @classmethod
    def _fit(cls, controls: tuple[Control, ...]) -> tuple[Control, ...]:
        return _require(controls, all(control.kind == "controlnet" for control in controls), "inpaint")

    def redrawn(self, label_set: LabelSet) -> tuple[int, ...]:
        """Ids of the classes that are drawn anew, ascending. Raises UsageError for a name that `label_set` lacks."""
        if self.classes is None:
            return tuple(id_ for id_ in sorted(label_set.ids.tolist()) if id_ not in label_set.background_ids)
        return tuple(sorted({int(label_set.ids[label_set.channel_of(name)]) for name in self.classes}))

    @property
    def needs_image(self) -> bool:
        """Always: its other pixels stay."""
        return True


COMBINATIONS = {
    "mask_ddpm": "none (its network sees the mask itself)",
    "imgsyn": "one controlnet with the prior colour_map",
    "masksyn": "one controlnet with the prior colour_map, of the mask that it makes",
    "guided": "one or more of controlnet and t2i_adapter, with any prior",
    "inpaint": "none, or controlnet with any prior (there is no inpainting with a t2i_adapter)",
}
"""What the controls of each method may be."""

MethodOptions = MaskDDPMOptions | MaskSynOptions | ImgSynOptions | GuidedOptions | InpaintOptions


class Methods(BaseModel):
    """The methods of a job and their options, by name."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    mask_ddpm: MaskDDPMOptions | None = None
    masksyn: MaskSynOptions | None = None
    imgsyn: ImgSynOptions | None = None
    guided: GuidedOptions | None = None
    inpaint: InpaintOptions | None = None

    def named(self) -> dict[str, MethodOptions]:
        """The methods that the job asks for."""
        return {name: value for name in type(self).model_fields if (value := getattr(self, name)) is not None}


def _require(controls: tuple[Control, ...], fits: bool, method: str) -> tuple[Control, ...]:
    if not fits:
        table = "; ".join(f"{name}: {allowed}" for name, allowed in COMBINATIONS.items())
        raise ValueError(f"{method} takes {COMBINATIONS[method]} ({table})")
    return controls
