"""Says in one sentence what can be seen in a scene.

Reads only the segments, so that nothing hidden is named. Every thing class that is there is named with its count; stuff
is named from a share of the image on.
"""

from collections import Counter
from collections.abc import Sequence

from segdatagen.datasets.scenes.layout import BUILDING, CLASS_NAMES, FIRST_THING, GRASS, SKY, TREE
from segdatagen.datasets.scenes.segments import Segment

COUNT_WORDS = {1: "a", 2: "two", 3: "three", 4: "four"}
MANY = "several"
"""What five and more of a kind are called."""
TIME_PHRASES = {"day": "by day", "dusk": "at dusk", "night": "at night"}
PLURALS = {"person": "people"}
SMALLEST_SHARE = 0.02
OPEN_SKY_SHARE = 0.3


def write_caption(time: str, segments: Sequence[Segment]) -> str:
    """Return the caption of a scene, such as "a street at dusk with two cars and trees in front of buildings"."""
    num_pixels = sum(segment.area for segment in segments)
    shares = {segment.class_id: segment.area / num_pixels for segment in segments if segment.class_id < FIRST_THING}
    counts = Counter(segment.class_id for segment in segments if segment.class_id >= FIRST_THING)
    parts = [_counted(CLASS_NAMES[class_id], counts[class_id]) for class_id in sorted(counts)]
    parts += [
        word for class_id, word in ((TREE, "trees"), (GRASS, "grass")) if shares.get(class_id, 0) >= SMALLEST_SHARE
    ]
    sentence = f"a street {TIME_PHRASES[time]}"
    if parts:
        sentence += f" with {_listed(parts)}"
    else:
        sentence = f"an empty street {TIME_PHRASES[time]}"
    if shares.get(BUILDING, 0.0) >= SMALLEST_SHARE:
        sentence += " in front of buildings"
    if shares.get(SKY, 0.0) >= OPEN_SKY_SHARE:
        sentence += " under an open sky"
    return sentence


def _counted(name: str, count: int) -> str:
    if count == 1:
        return f"a {name}"
    return f"{COUNT_WORDS.get(count, MANY)} {PLURALS.get(name, name + 's')}"


def _listed(parts: list[str]) -> str:
    if len(parts) == 1:
        return parts[0]
    return f"{', '.join(parts[:-1])} and {parts[-1]}"
