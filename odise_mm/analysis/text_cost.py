"""Cost of embedding class names with CLIP's text tower."""

from __future__ import annotations

import itertools
import time
from collections.abc import Sequence
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from odise_mm.analysis.meta import load_model_config
from odise_mm.analysis.parts import process_memory, release_freed_memory, reset_process_peak
from odise_mm.benchmarks.tables import Table
from odise_mm.models import FrozenCLIP, TextEncoder
from odise_mm.vocabulary import Vocabulary

_BATCH = 256
_ADJECTIVES = ("red", "large", "wooden", "old", "painted", "small", "broken", "striped")


def many_names(names: Sequence[str], count: int) -> list[str]:
    """Return ``count`` different names: the given ones, then the same with adjectives."""
    unique = list(dict.fromkeys(names))
    more = (f"{adjective} {name}" for adjective in _ADJECTIVES for name in unique)
    return list(itertools.islice(itertools.chain(unique, more), count))


def measure_texts(config: str, vocabulary: str, template: str, names: int, whole: int) -> dict:
    """Embed names with all positions of the text tower, and only up to the end token.

    The two ways alternate, 256 texts at a time.

    Args:
        config: config, whose CLIP is built with random weights.
        vocabulary: name or file of the vocabulary, which is extended with adjectives if it has
            fewer names.
        template: prompt template.
        names: number of names; 0: one for each class of the vocabulary.
        whole: number of texts that are embedded in both ways; 0: all.

    Returns:
        Counted FLOPs and measured CPU seconds of both ways for ``whole`` texts, the largest
        difference of the embeddings, and the cost of a whole vocabulary through the caches.
    """
    classes = Vocabulary.load(vocabulary)
    first = [synonyms[0] for synonyms in classes.synonyms]
    chosen = many_names(classes.flat[0], names) if names else first
    cfg = load_model_config(config).model.clip
    settings = {key: value for key, value in cfg.items() if key != "type"}
    clip = FrozenCLIP(**settings)
    texts = [template.replace("{}", name) for name in chosen]
    result: dict[str, Any] = {"names": len(texts), "template": template}
    result |= _both_ways(clip, texts[: whole or len(texts)])
    with torch.device("meta"):
        shapes = FrozenCLIP(**settings)
    compared = texts[: result["compared"]]
    with FlopCounterMode(display=False) as counter:
        shapes.encode_text(compared)
    result["cut"]["flops"] = counter.get_total_flops()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        for start in range(0, len(compared), _BATCH):
            tokens = clip.tokenizer(compared[start : start + _BATCH])
            shapes.model.encode_text(tokens.to("meta"))
    result["whole"]["flops"] = counter.get_total_flops()
    return result | _through_the_caches(clip, chosen, template)


def _both_ways(clip: FrozenCLIP, texts: list[str]) -> dict[str, Any]:
    seconds = {"whole": 0.0, "cut": 0.0}
    difference = largest = 0.0
    tokens_of = clip.tokenizer
    clip.encode_text(texts[:4])
    for start in range(0, len(texts), _BATCH):
        some = texts[start : start + _BATCH]
        begin = time.process_time()
        with torch.no_grad():
            wanted = clip.model.encode_text(tokens_of(some))
        middle = time.process_time()
        found = clip.encode_text(some)
        seconds["cut"] += time.process_time() - middle
        seconds["whole"] += middle - begin
        difference = max(difference, float((found - wanted).abs().max()))
        largest = max(largest, float(wanted.abs().max()))
    ways = {way: {"cpu_seconds": value} for way, value in seconds.items()}
    return {"compared": len(texts), "difference": difference, "largest": largest} | ways


def _through_the_caches(clip: FrozenCLIP, names: list[str], template: str) -> dict[str, Any]:
    """Cost of a vocabulary for the first image and for the next one."""
    encoder = TextEncoder(clip)
    unique = Vocabulary(tuple((name,) for name in names), (True,) * len(names))
    release_freed_memory()
    before, resets = process_memory("VmRSS"), reset_process_peak()
    times = []
    for _ in range(2):
        begin = time.process_time()
        encoder.of_vocabulary(unique, template)
        times.append(time.process_time() - begin)
    peak = process_memory("VmHWM") - before if resets else None
    release_freed_memory()
    kept = process_memory("VmRSS") - before
    return {"first_image": times[0], "next_image": times[1], "peak_bytes": peak, "kept_bytes": kept}


def text_table(result: dict[str, Any]) -> Table:
    """Make the table of a result of :func:`measure_texts`."""
    table = Table(
        f"Text embeddings of {result['compared']:,} names in {result['template']!r}",
        ("text tower", "GFLOP", "CPU seconds"),
    )
    for way, name in (("whole", "all positions"), ("cut", "up to the end token")):
        cost = result[way]
        row = f"{cost['flops'] / 1e9:,.0f}", f"{cost['cpu_seconds']:.1f}"
        table.rows.append((name, *row))
    both = [result["cut"][key] / result["whole"][key] for key in ("flops", "cpu_seconds")]
    table.rows.append(("ratio", *(f"{ratio:.3f}" for ratio in both)))
    peak = "unknown" if result["peak_bytes"] is None else f"{result['peak_bytes'] / 1e6:.0f} MB"
    table.notes = [
        f"Largest difference {result['difference']:.1e}, largest value {result['largest']:.2f}.",
        f"{result['names']:,} names in a vocabulary: {result['first_image']:.1f} s of CPU time for "
        f"the first image, {1e3 * result['next_image']:.2f} ms for the next; the process grew by "
        f"{peak} at its peak and {result['kept_bytes'] / 1e6:.0f} MB afterwards.",
    ]
    return table
