"""Visual priors: pictures of what stands where, which a T2I-Adapter or a ControlNet draws an image after.

Each is a drawing uint8 H x W x 3 of a picture uint8 H x W x 3, RGB, of the same size. Of a mask it is drawn of its
colour map, as in SGA. Nothing here knows sources, or what is done with a prior; importing it imports no torch.
"""

from collections.abc import Callable
from dataclasses import dataclass

from segdatagen.colours import encode
from segdatagen.errors import UsageError
from segdatagen.images import Image, Mask
from segdatagen.labels import LabelSet
from segdatagen.outlines import encode_panoptic
from segdatagen.priors.blend import SGA_BLEND, BlendWeights, blend
from segdatagen.priors.depth import check_depth, load_depth
from segdatagen.priors.edges import boundaries, canny
from segdatagen.priors.networks import HED, LINE_ART, SKETCH, Architecture
from segdatagen.priors.options import PriorOptions

__all__ = ["PRIORS", "SGA_BLEND", "BlendWeights", "Prior", "PriorOptions", "blend", "check_prior"]

Drawer = Callable[[Image], Image]


@dataclass(frozen=True)
class PriorKind:
    """How a prior is made ready to draw, on a device, and what of `PriorOptions` is its own.

    `check_weights` raises UsageError where the weights do not fit; None: it needs none.
    """

    load: Callable[[PriorOptions, str], Drawer]
    check_weights: Callable[[PriorOptions], None] | None = None
    published: str = ""
    """What `weights` of it are."""
    own_options: tuple[str, ...] = ()
    draws_images: bool = True


def _load_canny(options: PriorOptions, _: str) -> Drawer:
    return lambda picture: canny(picture, options.canny_low, options.canny_high)


def _of_network(network: Architecture, *own_options: str) -> PriorKind:
    published = f"the public annotators' {network.file_name}, or a folder that holds it"
    return PriorKind(network.load, network.check, published, own_options)


PRIORS = {
    "canny": PriorKind(_load_canny, own_options=("canny_low", "canny_high")),
    "colour_map": PriorKind(lambda _, __: lambda colour_map: colour_map, own_options=("outlines",), draws_images=False),
    "boundaries": PriorKind(lambda _, __: boundaries, draws_images=False),
    "line_art": _of_network(LINE_ART, "resolution"),
    "hed": _of_network(HED, "resolution"),
    "sketch": _of_network(SKETCH, "resolution", "sketch_threshold"),
    "depth": PriorKind(load_depth, check_depth, "the folder of a depth model of transformers", ("resolution",)),
}
"""Every prior by its name."""


class Prior:
    """A prior that is ready to draw."""

    def __init__(self, options: PriorOptions, label_set: LabelSet, device: str = "cpu") -> None:
        """Load. Raises UsageError as `check_prior` does, and where weights turn out not to be whole."""
        check_prior(options)
        self._label_set = label_set
        self.outlines = options.outlines and "outlines" in PRIORS[options.name].own_options
        """Whether `of_mask` looks at segments."""
        self._draw = PRIORS[options.name].load(options, device)

    def of_image(self, image: Image) -> Image:
        """The prior of an image, uint8 `[H, W, 3]` for uint8 `[H, W, 3]`."""
        return self._draw(image)

    def of_mask(self, mask: Mask, segment_map: Mask | None = None) -> Image:
        """The prior of a mask `[H, W]`, drawn of its colour map: uint8 `[H, W, 3]`.

        `segment_map` `[H, W]`: ids of its segments, outlined where the prior is a colour map (SegGen, appendix A.2).
        Raises UsageError for an id that the label set does not know.
        """
        if segment_map is not None and self.outlines:
            return self._draw(encode_panoptic(mask, segment_map, self._label_set))
        return self._draw(encode(mask, self._label_set))


def check_prior(options: PriorOptions) -> None:
    """Raise UsageError, in one line, where a prior with these options could not be drawn, or one would do nothing."""
    kind = PRIORS.get(options.name)
    if kind is None:
        raise UsageError(f"there is no prior {options.name}: those are {', '.join(PRIORS)}")
    if options.of != "mask" and not kind.draws_images:
        raise UsageError(f"the prior {options.name} is drawn of masks alone: say of: mask, not of: {options.of}")
    used = {"name", "of", *kind.own_options, *(("w1", "w2") if options.of == "both" else ())}
    used |= {"weights"} if kind.check_weights else set()
    for field, described in PriorOptions.model_fields.items():
        if field not in used and getattr(options, field) != described.default:
            raise UsageError(f"{field} does nothing to the prior {options.name} of: {options.of}: leave it out")
    if kind.check_weights:
        if options.weights is None:
            raise UsageError(f"the prior {options.name} needs weights: {kind.published}")
        kind.check_weights(options)
