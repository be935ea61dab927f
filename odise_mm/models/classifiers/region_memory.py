"""A memory of named regions: embeddings, names, and where each region is from."""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
import torch
from mmengine.logging import print_log
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from odise_mm.errors import CheckpointError, ConfigError, OutputError, VocabularyError
from odise_mm.utils.display import printable, some
from odise_mm.utils.files import regular_file, replacing
from odise_mm.utils.precision import full_precision
from odise_mm.utils.settings import check_choice
from odise_mm.utils.thumbnails import MAX_BYTES, checked
from odise_mm.vocabulary import Vocabulary
from odise_mm.vocabulary.files import key_of

FORMAT = 1
"""Version of the file format."""
INDEXES = ("auto", "exact", "usearch")
"""Ways to search."""
MANY = 100_000
"""Number of regions above which ``auto`` uses usearch if it is installed."""
_SAME = 1 - 1e-5  # cosine of embeddings of the same region
_SAMPLE, _PER_NAME = 500, 16  # regions that the likeness is computed from, in all and of each name
_USUAL, _ASSUMED = 0.8, 4  # likeness that is assumed at first, and its weight in regions
_LEAST = 0.1  # smallest likeness
_WHAT = "memory of regions"
_NOTE = "odise_mm_memory"


@dataclass(frozen=True)
class Region:
    """A named region.

    Attributes:
        id: number of the region in its memory, never used again.
        name: class name.
        image: name of the image that it is from.
        box: left, top, right, bottom in pixels, the latter exclusive; None: the whole image.
        is_thing: whether the class is a thing.
    """

    id: int
    name: str
    image: str = ""
    box: tuple[int, int, int, int] | None = None
    is_thing: bool = True


@dataclass(frozen=True)
class Embedder:
    """What made the embeddings of a memory. Two models with equal embedders can share a memory.

    Attributes:
        sources: what was embedded by, such as ``MaskCLIPClassifier``; several are joined.
        dims: width of each of them.
        weights: one weight from each of up to 256 tensors. They are compared with a tolerance, so
            that the precision of a model does not matter.
    """

    sources: tuple[str, ...]
    dims: tuple[int, ...]
    weights: tuple[float, ...]

    def difference(self, other: Embedder) -> str | None:
        """Return what is different in another embedder; None if they are equal."""
        if self.sources != other.sources:
            return f"it embeds by {' + '.join(self.sources)}, not by {' + '.join(other.sources)}"
        if self.dims != other.dims:
            return f"its embeddings are {self.dims} wide, not {other.dims}"
        if len(self.weights) != len(other.weights):
            return "its networks are others"
        mine, theirs = np.array(self.weights), np.array(other.weights)
        if not np.allclose(mine, theirs, rtol=0.02, atol=1e-4):
            return "its weights are others"
        return None


@dataclass(frozen=True)
class _State:
    """Content of a memory at one time; it is replaced, never changed."""

    embeddings: Tensor  # (N, C) float32, normalized, on the CPU
    backgrounds: np.ndarray  # (N,) float32, NaN: unknown
    regions: tuple[Region, ...] = ()
    pictures: tuple[bytes | None, ...] = ()
    total: Tensor | None = None  # (C,), sum of the surroundings of ``count`` regions
    count: int = 0
    cache: dict[Any, Any] = field(default_factory=dict, compare=False)


class RegionMemory:
    """Embeddings of named regions, which a :class:`~odise_mm.models.MemoryClassifier` searches.

    Regions may have small pictures, by which people recognize them; nothing else uses these.

    Several threads may use a memory. A search sees the regions that were there when it began.

    The search is exact. Above 100,000 regions, ``auto`` uses an approximate index of usearch (HNSW)
    if that is installed (``pip install 'odise_mm[memory]'``).

    Args:
        embedder: what makes the embeddings; None: that of the first model that uses the memory.
        index: ``auto``, ``exact``, or ``usearch`` for any number of regions.

    Attributes:
        embedder: see the arguments.
        file: the file that the memory was read from; None if there is none.
    """

    def __init__(self, embedder: Embedder | None = None, index: str = "auto") -> None:
        check_choice("index", index, INDEXES)
        if index == "usearch":
            _usearch()
        self.embedder = embedder
        self.index = index
        self.file: str | None = None
        self._next = 0
        self._lock = threading.Lock()
        self._state = _State(torch.zeros(0, 0), np.zeros(0, np.float32))

    def __len__(self) -> int:
        return len(self._state.regions)

    def __repr__(self) -> str:
        names = self.names
        listed = ", ".join(
            f"{printable(name)} ({count})" for name, count in list(names.items())[:8]
        )
        more = f", and {len(names) - 8} more" if len(names) > 8 else ""
        return f"RegionMemory({len(self)} regions of {len(names)} names: {listed}{more})"

    @property
    def regions(self) -> tuple[Region, ...]:
        """All regions, in the order in which they were added."""
        return self._state.regions

    @property
    def names(self) -> dict[str, int]:
        """Names and the number of regions of each, in the order in which they were added."""
        state = self._state
        if "names" not in state.cache:
            state.cache["names"] = Counter(region.name for region in state.regions)
        return dict(state.cache["names"])

    @property
    def digest(self) -> str:
        """Short hash of the content, to compare runs."""
        state = self._state
        if "digest" not in state.cache:
            made = hashlib.sha256(state.embeddings.numpy().tobytes())
            made.update(repr([(region.id, region.name) for region in state.regions]).encode())
            if state.total is not None:
                made.update((state.total / state.count).numpy().tobytes())
            state.cache["digest"] = made.hexdigest()[:16]
        return state.cache["digest"]

    @property
    def vocabulary(self) -> Vocabulary | None:
        """The names as a vocabulary; None if there are none."""
        kinds = {region.name: region.is_thing for region in reversed(self.regions)}
        if not kinds:
            return None
        names = list(self.names)
        return Vocabulary(
            tuple((name,) for name in names), tuple(kinds[name] for name in names), "memory"
        )

    @property
    def center(self) -> Tensor | None:
        """Mean embedding of what surrounded the regions, (C,) float32; None if it is unknown.

        It is subtracted from all embeddings before they are compared, because the masks of any
        model have much in common. Regions that were removed still count.
        """
        state = self._state
        return None if state.total is None else state.total / state.count

    @property
    def baseline(self) -> float:
        """Cosine of unrelated regions, from which similarities are measured.

        It is 0 if there is a :attr:`center`. Otherwise, as in old files, it is the mean over all
        regions of their mean similarity to other masks in their images; without such numbers, the
        mean similarity of regions with different names; and 0 if there are none of these either.
        """
        state = self._state
        if "baseline" not in state.cache:
            state.cache["baseline"] = _baseline(state)
        return state.cache["baseline"]

    def likeness(self, temperature: float) -> float:
        """Return the usual similarity of a region to the others with its name.

        Each region is left out and compared with up to 15 others of its name by the density of
        :class:`~odise_mm.models.MemoryClassifier`; the result is the mean. As long as there are few
        such regions, it is drawn to a default, as if four more regions had a similarity of 0.8
        relative to the :attr:`baseline`.

        Args:
            temperature: of the density.
        """
        state = self._state
        key = ("likeness", temperature)
        if key not in state.cache:
            state.cache[key] = _likeness(state, self.baseline, temperature)
        return state.cache[key]

    # --- changes ----------------------------------------------------------------------------------

    def add(
        self,
        embeddings: Tensor,
        names: Sequence[str],
        images: Sequence[str] | None = None,
        boxes: Sequence[tuple[int, int, int, int] | None] | None = None,
        is_thing: Sequence[bool] | None = None,
        backgrounds: Sequence[float] | None = None,
        pictures: Sequence[bytes | None] | None = None,
        surroundings: Tensor | None = None,
    ) -> list[Region | None]:
        """Add regions. One that is there already with the same name is left out.

        A region that is there with another name is added, with a warning.

        Args:
            embeddings: (N, C), of any length.
            names: N class names.
            images: names of their images.
            boxes: see :class:`Region`.
            is_thing: see :class:`Region`; all are things by default.
            backgrounds: mean cosine to other masks in their images, NaN if unknown.
            pictures: small JPEG images of the regions, as those of
                :func:`odise_mm.utils.thumbnails.thumbnail`; None: no picture.
            surroundings: mean embedding of these masks, (N, C), NaN if unknown; see
                :attr:`center`.

        Returns:
            The new regions; None for those that were left out.

        Raises:
            VocabularyError: a name is empty.
            ValueError: the embeddings have another width than those in the memory, or are not
                finite; or a picture has more than 16 KiB.
        """
        count = len(names)
        for name in names:
            if not isinstance(name, str) or not name.strip():
                raise VocabularyError(f"the name of a region is empty: {name!r}")
        added = torch.nn.functional.normalize(embeddings.detach().float().cpu(), dim=-1)
        if added.ndim != 2 or len(added) != count or not torch.isfinite(added).all():
            raise ValueError(
                f"embeddings of shape {tuple(added.shape)} must be {count} rows of finite numbers"
            )
        images = [""] * count if images is None else images
        boxes = [None] * count if boxes is None else boxes
        is_thing = [True] * count if is_thing is None else is_thing
        grounds = np.full(count, np.nan) if backgrounds is None else np.asarray(backgrounds)
        pictures = [None] * count if pictures is None else pictures
        for picture in pictures:
            if picture is not None and len(picture) > MAX_BYTES:
                raise ValueError(f"a picture has {len(picture):,} bytes, more than {MAX_BYTES:,}")
        with self._lock:
            state = self._state
            if state.regions and state.embeddings.shape[1] != added.shape[1]:
                raise ValueError(
                    f"embeddings of width {added.shape[1]} do not fit a memory of width "
                    f"{state.embeddings.shape[1]}"
                )
            twins = _twins(state, added)
            made: list[Region | None] = []
            kept: list[int] = []
            for place, (name, image, box, thing) in enumerate(
                zip(names, images, boxes, is_thing, strict=True)
            ):
                # Regions of this call are compared, too.
                earlier = [made[p].name for p in kept if added[p] @ added[place] >= _SAME]  # type: ignore[union-attr]
                same = [*twins[place], *earlier]
                if key_of(name) in map(key_of, same):
                    made.append(None)
                    continue
                if same:
                    print_log(
                        f"a region of {printable(image) or 'an image'} is taught as "
                        f"{printable(name)!r}, and already as {some(map(repr, same))}",
                        logger="current",
                        level=logging.WARNING,
                    )
                made.append(Region(self._next, " ".join(name.split()), image, box, bool(thing)))
                self._next += 1
                kept.append(place)
            new = tuple(region for region in made if region is not None)
            old = state.embeddings if state.regions else added[:0]
            total, known = state.total, state.count
            if surroundings is not None:
                seen = surroundings.detach().float().cpu()[kept]
                seen = seen[seen.isfinite().all(1)]
                total, known = _summed(total, known, seen.sum(0), len(seen))
            self._state = _State(
                torch.cat([old, added[kept]]),
                np.concatenate([state.backgrounds, grounds[kept].astype(np.float32)]),
                state.regions + new,
                state.pictures + tuple(pictures[place] for place in kept),
                total,
                known,
            )
        return made

    def remove(self, name: str | None = None, ids: Iterable[int] = ()) -> int:
        """Remove the regions of a name, or those with some ids; return how many were removed.

        Raises:
            VocabularyError: there is no such name or id.
        """
        chosen = set(ids)
        with self._lock:
            state = self._state
            known = {region.id for region in state.regions}
            if name is not None:
                chosen |= {r.id for r in state.regions if key_of(r.name) == key_of(name)}
                if not chosen:
                    raise VocabularyError(self._unknown(name))
            if chosen - known:
                raise VocabularyError(f"the memory has no region {min(chosen - known)}")
            self._state = _chosen(state, lambda region: region.id not in chosen)
        return len(chosen)

    def rename(self, old: str, new: str) -> int:
        """Give the regions of a name another one, which may exist; return their number.

        Raises:
            VocabularyError: there is no such name, or the new one is empty.
        """
        if not new.strip():
            raise VocabularyError("the new name is empty")
        with self._lock:
            state = self._state
            hit = [key_of(region.name) == key_of(old) for region in state.regions]
            if not any(hit):
                raise VocabularyError(self._unknown(old))
            name = " ".join(new.split())
            regions = tuple(
                replace(region, name=name) if found else region
                for region, found in zip(state.regions, hit, strict=True)
            )
            self._state = replace(state, regions=regions, cache={})
        return sum(hit)

    def same(self, embedding: Tensor) -> list[Region]:
        """Return the regions with the embedding of a mask, (C,), whatever their name."""
        state = self._state
        if not state.regions:
            return []
        near = state.embeddings @ torch.nn.functional.normalize(embedding.float().cpu(), dim=0)
        return [state.regions[place] for place in (near >= _SAME).nonzero()[:, 0].tolist()]

    def copy(self) -> RegionMemory:
        """Return a memory with the same regions and ids, which can be changed on its own."""
        made = RegionMemory(self.embedder, self.index)
        with self._lock:
            made._state, made._next = self._state, self._next
        return made

    def select(self, ids: Iterable[int]) -> RegionMemory:
        """Return a memory of some of the regions, which keep their ids.

        Args:
            ids: ids of these regions, in any order. Unknown ones are left out.
        """
        made, chosen = self.copy(), set(ids)
        made._state = _chosen(made._state, lambda region: region.id in chosen)
        return made

    def merge(self, other: RegionMemory) -> int:
        """Add the regions of another memory; return how many were new.

        Raises:
            CheckpointError: the other memory is from another embedder.
        """
        state = other._state
        if not state.regions:
            return 0
        if other.embedder is not None:
            self.require(other.embedder, other._shown())
        made = self.add(
            state.embeddings,
            [region.name for region in state.regions],
            [region.image for region in state.regions],
            [region.box for region in state.regions],
            [region.is_thing for region in state.regions],
            state.backgrounds.tolist(),
            state.pictures,
        )
        if state.total is not None and any(region is not None for region in made):
            with self._lock:
                total, count = _summed(
                    self._state.total, self._state.count, state.total, state.count
                )
                self._state = replace(self._state, total=total, count=count, cache={})
        return sum(region is not None for region in made)

    def _unknown(self, name: str) -> str:
        known = some(map(repr, self.names)) or "none"
        return f"the memory has no regions of {printable(name)!r}; names: {known}"

    def require(self, embedder: Embedder, user: str = "this model") -> None:
        """Check that the regions were embedded by a model's embedder; an empty memory adopts it.

        Args:
            embedder: that of the model, or of another memory.
            user: for the message.

        Raises:
            CheckpointError: the embeddings cannot be compared.
        """
        if self.embedder is None or not len(self):
            self.embedder = embedder
            return
        different = self.embedder.difference(embedder)
        if different is not None:
            raise CheckpointError(
                f"{self._shown()} was not made by {user}: {different}; teach the regions again "
                "with this model and its weights"
            )

    def _shown(self) -> str:
        return printable(self.file) if self.file else "the memory"

    # --- search -----------------------------------------------------------------------------------

    def search(self, queries: Tensor, count: int) -> Neighbors:
        """Find the most similar regions.

        Args:
            queries: normalized embeddings, (Q, C), on any device.
            count: number of neighbors of each.

        Returns:
            The neighbors, best first; fewer if the memory is smaller.

        Raises:
            ValueError: the queries have another width than the regions.
        """
        state = self._state
        total = len(state.regions)
        if total and queries.shape[-1] != state.embeddings.shape[1]:
            raise ValueError(
                f"queries are {queries.shape[-1]} wide, and the memory {state.embeddings.shape[1]}"
            )
        count = min(count, total)
        if not count or not len(queries):
            empty = queries.new_zeros(len(queries), count)
            return Neighbors(empty.long(), empty.long(), empty.float(), state.regions)
        queries = _centered(state, queries.float())
        if self._is_indexed(total):
            places, values = _search_index(state, queries, count)
        else:
            with full_precision(queries):
                similarity = queries @ _on(state, queries.device).T
            values, places = similarity.topk(count, dim=-1)
        if "ids" not in state.cache:
            state.cache["ids"] = torch.tensor([region.id for region in state.regions])
        ids = state.cache["ids"][places.cpu()].to(places.device)
        return Neighbors(places, ids, values, state.regions)

    def _is_indexed(self, total: int) -> bool:
        if self.index != "auto" or total <= MANY:
            return self.index == "usearch"
        try:
            _usearch()
        except ConfigError as error:
            if "told" not in self._state.cache:
                self._state.cache["told"] = True
                print_log(f"{total:,} regions are searched one by one: {error}", logger="current")
            return False
        return True

    def get(self, id_: int) -> Region | None:
        """Return the region with an id; None if it was removed."""
        state = self._state
        if "by_id" not in state.cache:
            state.cache["by_id"] = {region.id: region for region in state.regions}
        return state.cache["by_id"].get(id_)

    def picture(self, id_: int) -> bytes | None:
        """Return the picture of a region, a small JPEG image; None if there is none.

        A picture from a damaged or hostile file is left out: it is decoded safely, with limits, and
        encoded again.
        """
        state = self._state
        if "pictures" not in state.cache:
            pairs = zip(state.regions, state.pictures, strict=True)
            state.cache["pictures"] = {r.id: picture for r, picture in pairs if picture is not None}
        picture = state.cache["pictures"].get(id_)
        return None if picture is None else checked(picture)

    def drop_pictures(self) -> int:
        """Remove the pictures of all regions, and return their number."""
        with self._lock:
            state = self._state
            self._state = replace(state, pictures=(None,) * len(state.regions), cache={})
        return sum(picture is not None for picture in state.pictures)

    # --- files ------------------------------------------------------------------------------------

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the memory to a safetensors file; an existing file is replaced.

        Embeddings are float32. Names, images and boxes are JSON, and so is the embedder in the
        file's metadata. Pictures, if there are any, are the JPEG images one after the other, and
        their sizes.

        Args:
            path: the file.

        Raises:
            OutputError: the file cannot be written.
        """
        state = self._state
        rows = [{k: v for k, v in asdict(r).items() if k != "id"} for r in state.regions]
        text = json.dumps(rows, ensure_ascii=False).encode()
        embedder = None if self.embedder is None else asdict(self.embedder)
        note = {"format": FORMAT, "embedder": embedder, "surroundings": state.count}
        tensors = {
            "embeddings": state.embeddings.contiguous(),
            "backgrounds": torch.from_numpy(state.backgrounds.copy()),
            "regions": torch.frombuffer(bytearray(text), dtype=torch.uint8),
        }
        if any(picture is not None for picture in state.pictures):
            pictures = [picture or b"" for picture in state.pictures]
            tensors["pictures"] = torch.frombuffer(bytearray(b"".join(pictures)), dtype=torch.uint8)
            tensors["picture_sizes"] = torch.tensor([len(picture) for picture in pictures])
        if state.total is not None:
            tensors["surroundings"] = state.total.contiguous()
        try:
            with replacing(path) as temporary:
                save_file(tensors, temporary, {_NOTE: json.dumps(note)})
        except OSError as error:
            raise OutputError(
                f"{printable(os.fspath(path))}: cannot be written ({error.strerror or error})"
            ) from error

    @classmethod
    def load(cls, path: str | os.PathLike[str], index: str = "auto") -> RegionMemory:
        """Read a memory that :meth:`save` wrote. The file may come from anybody.

        Args:
            path: the file.
            index: see the class.

        Raises:
            CheckpointError: the file is missing, damaged, or not a memory.
        """
        file = regular_file(path, CheckpointError, _WHAT)
        shown = printable(os.fspath(path))
        try:
            with safe_open(os.fspath(file), "pt") as content:
                note = json.loads((content.metadata() or {})[_NOTE])
                embeddings = content.get_tensor("embeddings")
                backgrounds = content.get_tensor("backgrounds").float().numpy()
                rows = json.loads(content.get_tensor("regions").numpy().tobytes().decode())
                pictures = _pictures(content, len(rows))
                count = note.get("surroundings", 0)  # older files have none
                total = content.get_tensor("surroundings").float() if count else None
            version = note["format"]
            regions = tuple(_region(i, row) for i, row in enumerate(rows))
            embedder = None if note["embedder"] is None else _embedder(note["embedder"])
        except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
            raise CheckpointError(f"{shown}: not a {_WHAT}, or damaged ({error})") from error
        shapes = (tuple(embeddings.shape[:1]), backgrounds.shape)
        finite = embeddings.is_floating_point() and bool(torch.isfinite(embeddings).all())
        if total is not None:
            finite &= total.shape == embeddings.shape[1:] and bool(torch.isfinite(total).all())
            finite &= type(count) is int and count > 0
        if version != FORMAT or shapes != ((len(rows),),) * 2 or embeddings.ndim != 2 or not finite:
            raise CheckpointError(f"{shown}: damaged, or a {_WHAT} of another version")
        memory = cls(embedder, index)
        memory.file = os.fspath(path)
        memory._state = _State(embeddings.float(), backgrounds, regions, pictures, total, count)
        memory._next = len(regions)
        return memory


@dataclass(frozen=True)
class Neighbors:
    """Result of a search of Q embeddings.

    Attributes:
        places: indices in ``regions``, (Q, n), best first.
        ids: their ids, (Q, n).
        similarities: cosines, (Q, n) float32; of centered embeddings if the memory has a
            ``center``.
        regions: the regions that were searched.
    """

    places: Tensor
    ids: Tensor
    similarities: Tensor
    regions: tuple[Region, ...]


def _chosen(state: _State, is_kept: Callable[[Region], bool]) -> _State:
    """Return the state with some of the regions."""
    keep = [place for place, region in enumerate(state.regions) if is_kept(region)]
    regions = tuple(state.regions[place] for place in keep)
    pictures = tuple(state.pictures[place] for place in keep)
    # An empty memory may get embeddings of another width.
    total, count = (state.total, state.count) if keep else (None, 0)
    return _State(state.embeddings[keep], state.backgrounds[keep], regions, pictures, total, count)


def _twins(state: _State, added: Tensor) -> list[list[str]]:
    """Return the names of the regions that equal each new one."""
    if not state.regions:
        return [[] for _ in added]
    found = []
    for part in added.split(256):
        rows = (part @ state.embeddings.T >= _SAME).numpy()
        found += [[state.regions[i].name for i in np.flatnonzero(row)] for row in rows]
    return found


def _summed(
    total: Tensor | None, count: int, other: Tensor, more: int
) -> tuple[Tensor | None, int]:
    """Add ``more`` surroundings, whose sum is ``other``."""
    if not more:
        return total, count
    return (other if total is None else total + other), count + more


def _centered(state: _State, embeddings: Tensor) -> Tensor:
    """Subtract the center of a memory, if it has one, and normalize again."""
    if state.total is None:
        return embeddings
    center = (state.total / state.count).to(embeddings.device)
    return torch.nn.functional.normalize(embeddings - center, dim=-1)


def _stored(state: _State) -> Tensor:
    """Return the embeddings of the regions, centered."""
    if "stored" not in state.cache:
        with torch.inference_mode(False):
            state.cache["stored"] = _centered(state, state.embeddings)
    return state.cache["stored"]


def _likeness(state: _State, baseline: float, temperature: float) -> float:
    groups: dict[str, list[int]] = {}
    for place, region in enumerate(state.regions):
        groups.setdefault(key_of(region.name), []).append(place)
    values: list[float] = []
    for group in groups.values():
        if len(group) > 1 and len(values) < _SAMPLE:
            chosen = group[:: -(-len(group) // _PER_NAME)]
            embeddings = _stored(state)[chosen]
            near = (embeddings @ embeddings.T / temperature).fill_diagonal_(-torch.inf)
            density = near.logsumexp(1) - math.log(len(chosen) - 1)
            values += (temperature * density).tolist()
    usual = baseline + _USUAL * (1 - baseline)
    found = (sum(values) + _ASSUMED * usual) / (len(values) + _ASSUMED)
    return max(found, baseline + _LEAST * (1 - baseline))


def _baseline(state: _State) -> float:
    if state.total is not None:
        return 0.0
    known = state.backgrounds[np.isfinite(state.backgrounds)]
    if len(known):
        return float(min(known.mean(), 0.99))
    keys = np.array([key_of(region.name) for region in state.regions])
    if len(set(keys)) < 2:
        return 0.0
    chosen = np.linspace(0, len(keys) - 1, min(len(keys), 500)).astype(int)
    some_of = state.embeddings[chosen].numpy()
    different = keys[chosen][:, None] != keys[chosen][None]
    if not different.any():
        return 0.0
    return float(np.clip((some_of @ some_of.T)[different].mean(), -0.99, 0.99))


def _on(state: _State, device: torch.device) -> Tensor:
    """Return the embeddings on a device; copies are kept."""
    key = ("device", str(device))
    if key not in state.cache:
        with torch.inference_mode(False):
            state.cache[key] = _stored(state).to(device)
    return state.cache[key]


def _usearch() -> Any:
    try:
        import usearch.index
    except ImportError as error:
        raise ConfigError(
            "the index of large memories needs usearch: pip install 'odise_mm[memory]'"
        ) from error
    return usearch.index


def _search_index(state: _State, queries: Tensor, count: int) -> tuple[Tensor, Tensor]:
    if "index" not in state.cache:
        index = _usearch().Index(ndim=state.embeddings.shape[1], metric="ip", dtype="f32")
        index.add(np.arange(len(state.regions)), _stored(state).numpy())
        state.cache["index"] = index
    found = state.cache["index"].search(queries.float().cpu().numpy(), count)
    places = np.atleast_2d(found.keys).astype(np.int64)
    tensors = torch.from_numpy(places), torch.from_numpy(1 - np.atleast_2d(found.distances))
    return tensors[0].to(queries.device), tensors[1].float().to(queries.device)


def _region(id_: int, row: Mapping[str, Any]) -> Region:
    name, image, box, thing = (row[key] for key in ("name", "image", "box", "is_thing"))
    if not (isinstance(name, str) and name.strip() and isinstance(image, str)):
        raise ValueError(f"region {id_} has no name")
    if type(thing) is not bool:
        raise ValueError(f"region {id_}: is_thing is not true or false")
    if box is not None:
        if len(box) != 4 or not all(type(value) is int for value in box):
            raise ValueError(f"region {id_} has a wrong box")
        box = tuple(box)
    return Region(id_, name, image, box, thing)


def _pictures(content: Any, count: int) -> tuple[bytes | None, ...]:
    """Read the pictures of a file, which are not decoded; older files have none."""
    if "picture_sizes" not in content.keys():  # noqa: SIM118  # no dictionary
        return (None,) * count
    sizes, joined = content.get_tensor("picture_sizes"), content.get_tensor("pictures")
    if (
        sizes.dtype != torch.int64
        or joined.dtype != torch.uint8
        or tuple(sizes.shape) != (count,)
        or joined.ndim != 1
        or not bool(((sizes >= 0) & (sizes <= MAX_BYTES)).all())
        or int(sizes.sum()) != len(joined)
    ):
        raise ValueError("its pictures are damaged")
    ends = sizes.cumsum(0).tolist()
    data = joined.numpy().tobytes()
    return tuple(
        data[end - size : end] or None for end, size in zip(ends, sizes.tolist(), strict=True)
    )


def _embedder(content: Mapping[str, Any]) -> Embedder:
    weights = tuple(float(value) for value in content["weights"])
    if not all(map(math.isfinite, weights)):
        raise ValueError("weights of the embedder are not finite")
    return Embedder(
        tuple(str(name) for name in content["sources"]),
        tuple(int(dim) for dim in content["dims"]),
        weights,
    )
