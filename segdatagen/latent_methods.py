"""The methods of latent diffusion as lists of stages: masksyn and imgsyn (SegGen), guided (SGA), inpaint.

Source, caption, priors, prompt, image, and of masksyn a mask between prompt and priors: each stage does what is the
same for all variants of a source once. Knows stages and their options, not how rows are distributed or stored.
"""

import functools

import numpy as np

from segdatagen.best_of import best_of
from segdatagen.captioners import MODEL_KINDS, check_captioner
from segdatagen.diffusion.latent_options import Numerics
from segdatagen.errors import UsageError, placed
from segdatagen.latent_folders import Shape, check_adapter, check_base, check_controlnet, check_vae
from segdatagen.layouts import LAYOUT_SCORES, require_colours
from segdatagen.load_source import LoadSource
from segdatagen.method_context import MethodContext
from segdatagen.method_options import Control, InpaintOptions, LatentOptions, MaskSynOptions
from segdatagen.priors import check_prior
from segdatagen.priors.options import PriorOptions, prior_columns
from segdatagen.prompts import PromptWriter, TokenBudget
from segdatagen.source_hashes import LAYOUTS_NAME, read_index
from segdatagen.sources import has_any, open_store
from segdatagen.stages.prompt import PromptStage, budget_of
from segdatagen.stages.redraw import DRAWN_SCORES
from segdatagen.stages.stage import Stage, StageSpec
from segdatagen.storage import Folder
from segdatagen.training_record import require_colours_of

LARGE_PRIORS = ("depth",)
"""Drawn by networks that are worth actors of their own."""
COMPILED = "work/compiled"
"""Folder of a run that holds what torch.compile made."""


def stages_of(context: MethodContext) -> list[StageSpec]:
    """The stages of a latent method."""
    options = _options(context)
    columns = prior_columns(len(options.controls))
    load = StageSpec("load", functools.partial(_load, context))
    caption = StageSpec("caption", functools.partial(_caption, context), is_large=options.caption.kind in MODEL_KINDS)
    drawn = [
        StageSpec(
            "prior", functools.partial(_prior, context, control.prior, column), control.prior.name in LARGE_PRIORS
        )
        for control, column in zip(options.controls, columns, strict=True)
    ]
    mask2img = StageSpec("mask2img", functools.partial(_mask2img, context), is_large=True, scores=DRAWN_SCORES)
    if isinstance(options, MaskSynOptions):
        return [load, caption, *_mask_stages(context, options), *drawn, mask2img]
    prompt = StageSpec("prompt", lambda: PromptStage(options.prompt, context.label_set, _budget(options)))
    return [load, caption, *drawn, prompt, mask2img]


def _mask_stages(context: MethodContext, options: MaskSynOptions) -> list[StageSpec]:
    """From a caption to a mask. Its prompt is that of the image too, so it is drawn per layout, not per variant."""

    def layout() -> Stage:
        from segdatagen.stages.text2mask import LayoutSeedStage

        return LayoutSeedStage(context.seed, options.images_per_mask)

    def prompt() -> Stage:
        from segdatagen.stages.text2mask import SEED_COLUMN

        return PromptStage(options.prompt, context.label_set, _budget(options), SEED_COLUMN)

    return [
        StageSpec("layout", layout),
        StageSpec("prompt", prompt),
        StageSpec("text2mask", functools.partial(_text2mask, context, options), is_large=True, scores=LAYOUT_SCORES),
    ]


def _text2mask(context: MethodContext, options: MaskSynOptions) -> Stage:
    from segdatagen.stages.text2mask import Text2MaskStage, Text2MaskStageOptions

    execution, real = context.execution, np.empty(0, np.uint64)
    if options.layout.compares:
        _, real = read_index(Folder(context.filtering.run), LAYOUTS_NAME)
    return Text2MaskStage(
        Text2MaskStageOptions(
            base=options.text2mask.weights,
            base_config=options.text2mask.base_config,
            size=context.geometry.size,
            sampler=options.text2mask.sampler,
            numerics=options.text2mask.numerics,
            label_set=context.label_set,
            layout=options.layout,
            microbatch=context.layout_microbatch or execution.microbatch,
            torch_threads=execution.torch_threads,
            device=execution.device,
            compiled_code=_compiled_code(context),
        ),
        real,
    )


def _load(context: MethodContext) -> Stage:
    options = _options(context)
    return LoadSource(
        open_store(context.sources),
        context.geometry,
        with_image=options.needs_image,
        caption_is_enough=not options.needs_mask,
    )


def _caption(context: MethodContext) -> Stage:
    from segdatagen.stages.captioner import CaptionerStage

    return CaptionerStage(_options(context).caption, context.label_set, context.execution.device)


def _prior(context: MethodContext, prior: PriorOptions, column: str) -> Stage:
    from segdatagen.stages.prior import PriorStage, PriorStageOptions

    return PriorStage(
        PriorStageOptions(
            prior=prior,
            label_set=context.label_set,
            column=column,
            torch_threads=context.execution.torch_threads,
            device=context.execution.device,
        )
    )


def _mask2img(context: MethodContext) -> Stage:
    from segdatagen.stages.latent import LatentStage, LatentStageOptions

    options, execution = _options(context), context.execution
    return LatentStage(
        LatentStageOptions(
            base=options.base,
            base_config=options.base_config,
            size=context.geometry.size,
            sampler=options.sampler,
            numerics=options.numerics,
            controls=options.controls,
            inpaint=options.redrawn(context.label_set) if isinstance(options, InpaintOptions) else None,
            image_format=context.image_format,
            redraws=context.redraws,
            microbatch=context.image_microbatch or execution.microbatch,
            torch_threads=execution.torch_threads,
            device=execution.device,
            compiled_code=_compiled_code(context),
        ),
        best_of(context),
    )


def _compiled_code(context: MethodContext) -> str | None:
    return f"{context.filtering.run}/{COMPILED}" if context.keeps_code else None


def _budget(options: LatentOptions) -> TokenBudget:
    """Tokens that every text encoder sees which is told the prompt."""
    budget = budget_of(options.base_config or options.base)
    if not isinstance(options, MaskSynOptions):
        return budget
    other = budget_of(options.text2mask.base_config or options.text2mask.weights)
    return TokenBudget([*budget.tokenizers, *other.tokenizers], min(budget.limit, other.limit))


def check_latent(context: MethodContext) -> None:
    """Raise UsageError, in one line, where networks, priors, prompts or sizes do not fit; loads tokenizers alone."""
    options, place = _options(context), f"methods.{context.method}"
    with placed(f"{place}.base"):
        shape = check_base(options.base, options.base_config)
        if shape.inpaints and not isinstance(options, InpaintOptions):
            raise UsageError(f"{options.base} was trained to inpaint: it can only be the base of the method inpaint")
    _check_size(context, options.base, shape)
    _check_numerics(context, place, options.numerics, shape)
    for number, control in enumerate(options.controls):
        _check_control(context, f"{place}.controls.{number}", control, shape)
        if control.kind == "controlnet" and control.prior.name == "colour_map":
            _check_colour_maps(context, f"{place}.controls.{number}", control)
    if options.caption.weights is not None:
        with placed(f"{place}.caption"):
            check_captioner(options.caption.weights, options.caption.kind)
    if isinstance(options, MaskSynOptions):
        _check_text2mask(context, options)
    if isinstance(options, InpaintOptions):
        with placed(f"{place}.classes"):
            options.redrawn(context.label_set)
    with placed(f"{place}.prompt"):
        PromptWriter(options.prompt, context.label_set, _budget(options))
    if options.needs_image:
        _require_images(context)


def _check_numerics(context: MethodContext, place: str, numerics: Numerics, shape: Shape) -> None:
    """Raise UsageError where the devices of the run cannot compute so, or another VAE does not fit."""
    with placed(place):
        numerics.require_usable(context.execution.device)
    if numerics.vae:
        with placed(f"{place}.numerics.vae"):
            check_vae(numerics.vae, shape)


def _check_control(context: MethodContext, place: str, control: Control, shape: Shape) -> None:
    """Raise UsageError where a control is for another base or another size, or its prior cannot be drawn."""
    with placed(f"{place}.weights"):
        if control.kind == "controlnet":
            check_controlnet(control.weights, shape)
        else:
            factor = check_adapter(control.weights, shape)
    if control.kind == "t2i_adapter":
        _require_multiples(context, f"the T2I-Adapter {control.weights} takes", factor)
    with placed(f"{place}.prior"):
        check_prior(control.prior)


def _check_colour_maps(context: MethodContext, place: str, control: Control) -> None:
    """Raise UsageError where a ControlNet that was trained here has seen other colour maps than it would be shown."""
    with placed(f"{place}.weights"):
        record = require_colours_of(control.weights, context.label_set)
    if record is None or record.outlines in (None, control.prior.outlines) or context.method == "masksyn":
        return
    if has_any(open_store(context.sources), "segments"):
        seen, wanted = ("with", "true") if record.outlines else ("without", "false")
        raise UsageError(
            f"{place}.prior: the sources have segments, and {control.weights} was trained on colour maps {seen} "
            f"outlines: say outlines: {wanted}"
        )


def _check_text2mask(context: MethodContext, options: MaskSynOptions) -> None:
    """Raise UsageError where the model cannot draw masks of these classes and of this size."""
    own, place = options.text2mask, "methods.masksyn.text2mask"
    with placed(place):
        shape = check_base(own.weights, own.base_config)
        _check_size(context, own.weights, shape)
        if shape.inpaints:
            raise UsageError(f"{own.weights} was trained to inpaint, and masks are drawn of text alone")
        require_colours_of(own.weights, context.label_set)
    _check_numerics(context, place, own.numerics, shape)
    with placed("methods.masksyn.layout"):
        require_colours(context.label_set, options.layout)


def _options(context: MethodContext) -> LatentOptions:
    assert isinstance(context.options, LatentOptions)
    return context.options


def _check_size(context: MethodContext, base: str, shape: Shape) -> None:
    _require_multiples(context, f"a latent of {base} stands for", shape.vae_factor)


def _require_multiples(context: MethodContext, what: str, factor: int) -> None:
    """Raise UsageError unless both sides of the samples are multiples of `factor`."""
    width, height = context.geometry.size
    if width % factor or height % factor:
        raise UsageError(
            f"geometry.size is {width} x {height}: {what} {factor} x {factor} pixels, give multiples of it"
        )


def _require_images(context: MethodContext) -> None:
    """Raise UsageError where the first sources have no image: such stores hold masks alone."""
    if not has_any(open_store(context.sources), "image"):
        raise UsageError(
            f"{context.sources}: its sources have no images, and this method looks at them: use priors with "
            "of: mask, and captions from data_set or classes"
        )
