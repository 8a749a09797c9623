"""What the small suite of `scenes` can do: every model by the measure of its paper, on scenes that none has seen.

The judge is a segmenter that was trained on real scenes. What it finds in generated images is divided by what it finds
in real ones, so that 1 means as good as real. Methods draw through the chains of a run, without Ray.
"""

import tempfile
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from segdatagen.benchmark.mask_ddpm import Judge
from segdatagen.benchmark.measure import Benchmark, Figures, no_progress, torch_threads
from segdatagen.captioners import Captioner, CaptionerOptions
from segdatagen.clip_scores import ClipOptions, ClipScorer
from segdatagen.cluster import connect
from segdatagen.colours import ColourDecoder
from segdatagen.datasets import Options, open_reader
from segdatagen.driver import SilentEvents
from segdatagen.geometry import Geometry
from segdatagen.images import decode_image, decode_mask
from segdatagen.ingest import IngestRequest, ingest
from segdatagen.job import Job
from segdatagen.labels import LabelSet
from segdatagen.method_context import method_contexts
from segdatagen.methods import build_chain
from segdatagen.metrics.class_mentions import class_mentions
from segdatagen.metrics.first_of import groups_of, share_first
from segdatagen.metrics.segmentation import confusion, mean_iou
from segdatagen.prompts import ClassFinder, named_classes
from segdatagen.records import PLAN_SCHEMA, derive_seed
from segdatagen.regions import regions_of
from segdatagen.scenes_suite import SHIPPED, SIZE, SMALLEST_REGION, SuiteWeights, suite_methods, trained_in
from segdatagen.segmenters import Segmenter
from segdatagen.sources import SourceStore, open_store, read_arrays
from segdatagen.training.latent_parts import vae_of
from segdatagen.training.latent_weights import load_vae
from segdatagen.training.pictures import colour_masks
from segdatagen.training.text2mask import MIN_PIXELS
from segdatagen.training.vae import reconstruct
from segdatagen.weights import local_weights

GROUP = 8
"""Images that the matching one stands among."""
MICROBATCH = 16
GUIDED: dict[str, dict[str, Any]] = {
    "guided": {},
    "guided_without_blending": {"of": "image"},
    "guided_without_classes": {"kind": "caption"},
    "guided_without_both": {"of": "image", "kind": "caption"},
}
"""SGA, Table 3: with Visual Prior Blending and Class-Prompt Appending, and without one or both of them."""
SAVINGS: dict[str, dict[str, Any]] = {
    "10_steps": {"sampler": {"steps": 10}},
    "step_cache": {"sampler": {"step_cache": {"every": 3}}},
    "float8_weights": {"numerics": {"float8_weights": True}},
}
"""Options that draw other images in another time."""


@dataclass(frozen=True)
class Held:
    """Held-out scenes: their store, pixels, channels, captions and judge, and how methods draw, as in a job file."""

    store: SourceStore
    images: np.ndarray
    channels: np.ndarray
    captions: list[str]
    judge: Judge
    methods: dict[str, Any]

    @property
    def label_set(self) -> LabelSet:
        """That of `scenes`."""
        return self.store.label_set

    def job(self, method: str, options: dict[str, Any]) -> Job:
        """A job with this one method."""
        return Job.model_validate(
            {
                "name": "suite",
                "version": "v1",
                "sources": self.store.folder.uri,
                "geometry": {"size": [SIZE, SIZE], "fit": "resize"},
                "methods": {method: options},
                "plan": [{"method": method, "strategy": "uniform", "per_source": 1}],
                "output": {"root": f"{self.store.folder.uri}/none", "image_format": "png"},
                "execution": {"actors": 1, "torch_threads": 1, "microbatch": MICROBATCH},
            }
        )

    def drawn(self, method: str, options: dict[str, Any]) -> list[dict[str, Any]]:
        """A sample of every scene, as rows of SAMPLE_SCHEMA in the order of the scenes."""
        return self.timed(method, options)[0]

    def timed(self, method: str, options: dict[str, Any]) -> tuple[list[dict[str, Any]], float]:
        """The rows of `drawn`, and the seconds that the image model took for them."""
        job = self.job(method, options)
        chain = build_chain(method, method_contexts(job, self.label_set)[method])
        rows: list[dict[str, Any]] = chain.run(one_of_each(self.store, method), 1).to_pylist()
        return rows, chain.seconds["mask2img"]


def one_of_each(store: SourceStore, method: str) -> pa.Table:
    """Plan rows: one sample of every source."""
    index = store.index
    count = index.num_rows
    return pa.table(
        {
            "sample_id": np.arange(count),
            "round": np.zeros(count, np.int32),
            "method": [method] * count,
            "source_id": index["source_id"],
            "source_file": index["source_file"],
            "source_row": index["source_row"],
            "variant": np.zeros(count, np.int32),
            "seed": [derive_seed(0, method, number) for number in range(count)],
            "target_class": pa.nulls(count, pa.string()),
        },
        schema=PLAN_SCHEMA,
    )


def bench_scenes_suite(trained: str | None = None) -> Figures:
    """Judge every model of the suite, as shipped or as trained in a folder, on 300 test scenes.

    Raises UsageError where one is not there.
    """
    return judge_suite(300, SHIPPED if trained is None else trained_in(trained))


def judge_suite(
    num_images: int, weights: SuiteWeights, threads: int = 1, image_steps: int = 20, mask_steps: int = 20
) -> Figures:
    """Judge every model of a suite on the first test scenes. Raises UsageError where one is not there."""
    for uri in asdict(weights).values():
        local_weights(uri)
    with torch_threads(threads), tempfile.TemporaryDirectory() as folder:
        root, uri = f"{num_images}@{SIZE}x{SIZE}", f"{folder}/sources"
        with connect():
            reader = open_reader("scenes", root, "test", Options())
            ingest(IngestRequest("scenes", root, "test", uri), reader, no_progress, SilentEvents().waiting)
        images, channels, label_set, captions = read_arrays(uri, Geometry(size=(SIZE, SIZE), fit="resize"))
        judge = Judge(Segmenter(weights.segmenter, label_set.names), images, channels)
        methods = suite_methods(weights, image_steps, mask_steps)
        held = Held(open_store(uri), images, channels, [caption or "" for caption in captions], judge, methods)
        figures: Figures = {"images": num_images, "size": f"{SIZE}x{SIZE}", "threads": threads}
        figures["judge_miou_real"] = round(judge.real_mean_iou(num_images), 4)
        for measured in (of_vae, of_captioner, of_clip, of_images, of_guided, of_masks):
            figures |= {name: round(value, 4) for name, value in measured(held, weights).items()}
    return figures


SCENES_SUITE = Benchmark(
    "scenes_suite",
    bench_scenes_suite,
    measures="each model of the small suite on test scenes, with a judge of what they draw",
    reference="the judge's mIoU on the real images of the same masks",
    figure="adherence of ImgSyn {imgsyn_adherence:.2f}, MaskSyn {masksyn_adherence:.2f}, guided "
    "{guided_adherence:.2f}, mask-DDPM {mask_ddpm_adherence:.2f}",
    ratio="{imgsyn_adherence:.2f} of the real images ({imgsyn_adherence_shuffled:.2f} beside other masks)",
    minutes=25,
)


def of_vae(held: Held, weights: SuiteWeights) -> dict[str, float]:
    """SegGen, A.7: pixels whose class survives in a colour map; what the judge finds in images there and back."""
    vae, labels = load_vae(vae_of(weights.base)).eval(), held.label_set
    decoder, table = ColourDecoder(labels), labels.channel_table()
    maps = reconstruct(vae, colour_masks(held.channels, labels))
    found = table[np.stack([decoder.decode(one) for one in maps])]
    labelled = held.channels >= 0
    return {
        "vae_colour_map_accuracy": float((found == held.channels)[labelled].mean()),
        "vae_adherence": held.judge.adherence(reconstruct(vae, held.images)),
    }


def of_captioner(held: Held, weights: SuiteWeights) -> dict[str, float]:
    """Classes named that are there; classes there, and named by the true caption, that are named."""
    captioner = Captioner(CaptionerOptions(kind="blip2", weights=weights.captioner, batch_size=MICROBATCH))
    said = captioner.captions(list(held.images))
    found = class_mentions(said, held.channels, held.captions, held.label_set)
    return {
        "captioner_named_are_there": found.named_are_there,
        "captioner_told_are_named": found.told_are_named,
        "captioner_there_are_named": found.there_are_named,
    }


def of_clip(held: Held, weights: SuiteWeights) -> dict[str, float]:
    """How often the matching image comes first of 8: for a true caption, and a region for the text of its class."""
    labels, options = held.label_set, ClipOptions(weights=weights.clip, min_pixels=SMALLEST_REGION)
    scorer = ClipScorer(options, labels)
    classes = named_classes(labels)
    crops, own = [], []
    for image, channels in zip(held.images, held.channels, strict=True):
        for place, label in enumerate(classes):
            for region in regions_of(channels, labels.channel_of(label.name), SMALLEST_REGION, 1):
                crops.append(region.crop(image))
                own.append(place)
    texts = scorer.text_vectors([options.text_of(label.prompt) for label in classes]).numpy()[own]
    seen, said = scorer.image_vectors(list(held.images)).numpy(), scorer.text_vectors(held.captions).numpy()
    return {
        "clip_caption_first_of_8": share_first(said, seen, groups_of(held.captions, GROUP, 0)),
        "clip_class_first_of_8": share_first(texts, scorer.image_vectors(crops).numpy(), groups_of(own, GROUP, 0)),
    }


def of_images(held: Held, _: SuiteWeights) -> dict[str, float]:
    """What draws an image for a real mask: what the judge finds in it, beside other masks, and what saves time."""
    found = {}
    for method in ("imgsyn", "mask_ddpm"):
        rows, seconds = held.timed(method, held.methods[method])
        images = images_of(rows)
        found[f"{method}_adherence"] = held.judge.adherence(images)
        shuffled = held.judge.mean_iou(images, np.roll(held.channels, 1, axis=0))
        found[f"{method}_adherence_shuffled"] = shuffled / held.judge.real_mean_iou(len(held.images))
        if method == "imgsyn":
            found |= of_savings(held, seconds)
    return found


def of_savings(held: Held, usual: float) -> dict[str, float]:
    """ImgSyn with each of the options that trade adherence for time; its image model took `usual` seconds without."""
    options = held.methods["imgsyn"]
    found = {}
    for name, changes in SAVINGS.items():
        changed = {key: options.get(key, {}) | values for key, values in changes.items()}
        rows, seconds = held.timed("imgsyn", options | changed)
        found[f"imgsyn_{name}_adherence"] = held.judge.adherence(images_of(rows))
        found[f"imgsyn_{name}_times_as_fast"] = usual / seconds
    return found


def of_guided(held: Held, _: SuiteWeights) -> dict[str, float]:
    """SGA, and what each of its two guidances adds (Table 3)."""
    found = {}
    for name, change in GUIDED.items():
        options = held.methods["guided"]
        (control,) = options["controls"]
        prior = {**control["prior"], **({"of": change["of"]} if "of" in change else {})}
        options = options | {
            "controls": [control | {"prior": prior}],
            "prompt": options["prompt"] | ({"kind": change["kind"]} if "kind" in change else {}),
        }
        found[f"{name}_adherence"] = held.judge.adherence(images_of(held.drawn("guided", options)))
    return found


def of_masks(held: Held, _: SuiteWeights) -> dict[str, float]:
    """Text2Mask before anything is refused; MaskSyn from caption to image, with what is refused drawn again.

    By chance: classes of the prompt that are in the real mask of another scene. Most scenes show most classes. A class
    is present from one pixel on, and shown from MIN_PIXELS on, of which a blurred edge of two others has fewer.
    """
    options = held.methods["masksyn"]
    finder, labels = ClassFinder(held.label_set), held.label_set
    open_limits = {"max_off_palette": 1.0, "max_speckle": 1.0, "min_classes_found": 0.0, "min_distance": 0}
    rows = held.drawn("masksyn", options | {"layout": open_limits, "caption": {"kind": "data_set"}})
    asked = [set(finder.find(row["prompt"])) for row in rows]
    present = [set(row["class_ids"]) for row in rows]
    shown = [shown_ids(row["class_ids"], row["class_pixels"]) for row in rows]
    counts = [np.bincount(mask[mask >= 0], minlength=labels.num_classes) for mask in np.roll(held.channels, 1, axis=0)]
    others = [shown_ids(labels.ids, pixels, least=1) for pixels in counts]
    others_shown = [shown_ids(labels.ids, pixels) for pixels in counts]
    drawn = held.drawn("masksyn", options | {"layout": options["layout"] | {"min_distance": 0}})
    kept = [row for row in drawn if row["status"] == "ok"]
    found = 0.0
    if kept:
        channels = labels.channel_table()[np.stack([decode_mask(row["mask"]) for row in kept])]
        matrix = confusion(channels, held.judge.segmenter.predict(images_of(kept)), labels.num_classes)
        found = mean_iou(matrix)
    return {
        "text2mask_within_palette": 1 - float(np.mean([row["score_off_palette"] for row in rows])),
        "text2mask_classes_present": share_present(asked, present),
        "text2mask_classes_present_by_chance": share_present(asked, others),
        "text2mask_classes_shown": share_present(asked, shown),
        "text2mask_classes_shown_by_chance": share_present(asked, others_shown),
        "masksyn_accepted": len(kept) / len(drawn),
        "masksyn_adherence": found / held.judge.real_mean_iou(len(held.images)),
    }


def shown_ids(ids: Iterable[int], pixels: Iterable[int], least: int = MIN_PIXELS) -> set[int]:
    """Ids of classes with at least so many pixels."""
    return {int(id_) for id_, count in zip(ids, pixels, strict=True) if count >= least}


def share_present(asked: list[set[int]], present: list[set[int]]) -> float:
    """Of the classes that are asked for, image by image, the share that is there."""
    there = sum(len(wanted & found) for wanted, found in zip(asked, present, strict=True))
    return there / max(sum(map(len, asked)), 1)


def images_of(rows: list[dict[str, Any]]) -> np.ndarray:
    """The images of sample rows, uint8 `[N, H, W, 3]`."""
    return np.stack([decode_image(row["image"]) for row in rows])
