"""The arithmetic of `segdatagen balance STATS.json`: what a quota would generate, from class statistics alone.

It knows the shape of a statistics file and checks it. It opens no file and prints nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np

from segdatagen.balance import MAX_QUOTA, ClassOrders, IntArray, Presence, balance, cir, class_orders, entropy
from segdatagen.balance_auto import auto_n_balance
from segdatagen.config_files import load_json
from segdatagen.errors import UsageError

MAX_RATIO = 1e9
"""Generated images for each real one: what quotas come of is still a number of images."""


class StatisticsError(UsageError):
    """The file of statistics is not as it should be; whoever read it knows its name."""


def parse_stats(data: bytes) -> object:
    """The content of a statistics file. Raises StatisticsError when it is not JSON."""
    try:
        return load_json(data)
    except ValueError as error:
        raise StatisticsError(f"the statistics are not JSON ({error}); write them as UTF-8 JSON") from error


def parse_n_balance(text: str) -> int | Literal["auto"]:
    """A quota as it is typed: a whole number from 0 on, or `auto`. Raises UsageError for anything else."""
    if text == "auto":
        return "auto"
    try:
        return _checked_quota(int(text))
    except ValueError as error:
        raise UsageError(f"n_balance is {text!r}; give a whole number or auto.") from error


def balance_report(
    stats: object,
    n_balance: Sequence[int | Literal["auto"]],
    seed: int = 0,
    min_pixels: int = 1,
    ratio: float = 1.0,
) -> dict[str, Any]:
    """Balance of the real images, and of real plus generated ones for every quota of `n_balance`.

    `stats` is `{"classes": [name], "images": {source id: {"pixels": {class name: pixels}}}}`; other keys of an image
    are left alone. A class stands in an image from `min_pixels` pixels on. `auto` aims at `ratio` generated images for
    each real one.
    Returns `{"real": {images, entropy, cir, counts}, "plans": [{n_balance, generated, entropy, cir, counts}]}`; a plan
    has the key `unreachable` (class names) where a class cannot reach the quota.
    Raises StatisticsError for statistics of another shape, UsageError for a negative quota, ratio or number of pixels.
    """
    if min_pixels < 1:
        raise UsageError(f"min_pixels is {min_pixels}; give 1 or more.")
    if not 0 <= ratio <= MAX_RATIO:
        raise UsageError(f"ratio is {ratio}; give a number from 0 to {MAX_RATIO:,.0f}.")
    quotas = [quota if quota == "auto" else _checked_quota(quota) for quota in n_balance]
    presence = presence_of_stats(stats, min_pixels)
    orders = class_orders(presence, seed)
    plans = []
    for quota in quotas:
        value = auto_n_balance(presence, ratio, seed, orders=orders) if quota == "auto" else quota
        plans.append(_plan(presence, orders, value, seed))
    return {"real": {"images": presence.num_sources, **_figures(presence, presence.counts)}, "plans": plans}


def presence_of_stats(stats: object, min_pixels: int) -> Presence:
    """Which class stands in which image, sources in the order of their ids.

    Raises StatisticsError, naming image and class, when `stats` has not the shape that `balance_report` describes.
    """
    if not isinstance(stats, Mapping):
        raise StatisticsError(f"the statistics are a {_kind(stats)}; give a JSON object with classes and images.")
    for key in ("classes", "images"):
        if key not in stats:
            raise StatisticsError(f"the statistics have no {key!r}; give a JSON object with classes and images.")
    channels = _checked_channels(stats["classes"])
    images = stats["images"]
    if not isinstance(images, Mapping):
        raise StatisticsError(f"'images' is a {_kind(images)}; give an object from image name to its pixels per class.")
    source_ids = sorted(images)
    present = [_checked_channels_of_image(name, images[name], channels, min_pixels) for name in source_ids]
    return Presence.from_lists(source_ids, list(channels), present)


def _checked_channels(classes: object) -> dict[str, int]:
    """Class name -> channel."""
    if not isinstance(classes, list) or not classes or not all(isinstance(name, str) for name in classes):
        raise StatisticsError("'classes' is not a list of class names; give at least one name.")
    channels = {name: channel for channel, name in enumerate(classes)}
    if len(channels) != len(classes):
        twice = next(name for channel, name in enumerate(classes) if channels[name] != channel)
        raise StatisticsError(f"'classes' names {twice!r} twice; give every class one place.")
    return channels


def _checked_channels_of_image(name: str, image: object, channels: Mapping[str, int], min_pixels: int) -> list[int]:
    """Channels of the classes that have `min_pixels` pixels in the image."""
    pixels = image.get("pixels") if isinstance(image, Mapping) else None
    if not isinstance(pixels, Mapping):
        raise StatisticsError(f"image {name!r} has no 'pixels'; give an object from class name to number of pixels.")
    present = []
    for class_name, num_pixels in pixels.items():
        if class_name not in channels:
            raise StatisticsError(
                f"image {name!r} has pixels of {class_name!r}, which 'classes' does not name; add it there."
            )
        if not isinstance(num_pixels, int) or isinstance(num_pixels, bool) or num_pixels < 0:
            raise StatisticsError(
                f"image {name!r} has {num_pixels!r} pixels of {class_name!r}; give a whole number from 0 on."
            )
        if num_pixels >= min_pixels:
            present.append(channels[class_name])
    return present


def _checked_quota(quota: object) -> int:
    if not isinstance(quota, int) or isinstance(quota, bool):
        raise UsageError(f"n_balance is {quota!r}; give a whole number or auto.")
    if not 0 <= quota <= MAX_QUOTA:
        raise UsageError(f"n_balance is {quota}; give a whole number from 0 to {MAX_QUOTA}, or auto.")
    return quota


def _plan(presence: Presence, orders: ClassOrders, n_balance: int, seed: int) -> dict[str, Any]:
    copies = balance(presence, n_balance, seed, orders=orders)
    plan = {"n_balance": n_balance, "generated": copies.num_generated, **_figures(presence, copies.counts)}
    if copies.unreachable:
        plan["unreachable"] = [presence.class_names[channel] for channel in copies.unreachable]
    return plan


def _figures(presence: Presence, counts: IntArray) -> dict[str, Any]:
    """Entropy, CIR and counts as JSON values."""
    by_name = dict(zip(presence.class_names, np.asarray(counts).tolist(), strict=True))
    return {"entropy": entropy(counts), "cir": cir(counts), "counts": by_name}


def _kind(value: object) -> str:
    """The JSON word for the type of `value`."""
    words = {list: "list", str: "string", bool: "boolean", int: "number", float: "number", type(None): "null"}
    return words.get(type(value), type(value).__name__)
