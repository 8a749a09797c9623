"""What every stage needs to know that draws with a text-to-image model: content first, then where it is executed.

It loads the model, once per process whatever methods draw with it; it does not know what is drawn.
"""

import functools
from typing import Any, ClassVar

import torch
from pydantic import BaseModel, ConfigDict

from segdatagen.diffusion.compiled_code import CompiledCode, ready_code
from segdatagen.diffusion.latent_models import LatentModels, load_adapter, load_base, load_controlnet
from segdatagen.diffusion.latent_options import ControlOptions, LatentSamplerOptions, Numerics
from segdatagen.weights import Stamps, stamps_of


class ModelStageOptions(BaseModel):
    """The model, its sampler, and the machine."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    compiled_of: ClassVar[frozenset[str]] = frozenset({"base", "size", "sampler", "numerics", "microbatch"})
    """Fields that compiled networks follow from."""

    base: str
    base_config: str | None = None
    size: tuple[int, int]
    """Width and height."""
    sampler: LatentSamplerOptions
    numerics: Numerics = Numerics()
    microbatch: int = 8
    torch_threads: int = 1
    device: str = "cpu"
    compiled_code: str | None = None
    """A folder that keeps what `numerics.compile` made; None: it is made anew."""

    @property
    def content(self) -> dict[str, Any]:
        """What compiled networks follow from."""
        return self.model_dump(mode="json", include=set(self.compiled_of))

    def load(self) -> tuple[LatentModels, CompiledCode | None]:
        """The model, and where its code is kept if it is compiled. Raises UsageError where one cannot be used."""
        torch.set_num_threads(self.torch_threads)
        compiled = ready_code(self.compiled_code, self.content, self.device) if self.numerics.compile else None
        uris = [uri for uri in (self.base, self.base_config, self.numerics.vae) if uri is not None]
        return _load_base(self.base, self.base_config, self.numerics, self.device, stamps_of(*uris)), compiled

    def load_control(self, control: ControlOptions) -> Any:
        """A ControlNet, taken apart, or a T2I-Adapter. Raises UsageError where it cannot be used."""
        return _load_control(control.kind, control.weights, self.numerics, self.device, stamps_of(control.weights))


@functools.lru_cache(maxsize=2)
def _load_base(uri: str, config_uri: str | None, numerics: Numerics, device: str, stamps: Stamps) -> LatentModels:
    """The base of masksyn's masks, and that of all images."""
    return load_base(uri, numerics, device, config_uri)


@functools.lru_cache(maxsize=4)
def _load_control(kind: str, uri: str, numerics: Numerics, device: str, stamps: Stamps) -> Any:
    return (load_controlnet if kind == "controlnet" else load_adapter)(uri, numerics, device)
