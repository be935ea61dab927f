"""What one visitor of the web page taught: examples that no other visitor sees."""

from __future__ import annotations

import os
from pathlib import Path

from odise_mm.errors import ConfigError
from odise_mm.models import Region, RegionMemory
from odise_mm.serving.scene import Scene
from odise_mm.serving.uploads import parse_names
from odise_mm.utils.display import printable

MAX_EXAMPLES = 500
"""Number of examples that a visitor can teach."""
FILE = "taught.safetensors"
"""Name of the file with the examples of a visitor."""


class Lessons:
    """The examples of one visitor, beside those that the page was started with.

    Args:
        start: the memory that the page was started with; it is not changed.

    Attributes:
        memory: the examples of both.
    """

    def __init__(self, start: RegionMemory) -> None:
        self.memory = start.copy()
        self._taught: list[int] = []

    def __len__(self) -> int:
        return len(self._taught)

    @property
    def taught(self) -> RegionMemory:
        """The examples of this visitor alone."""
        return self.memory.select(self._taught)

    def teach(self, scene: Scene, number: int | None, name: str, is_thing: bool) -> Region:
        """Remember a region of a scene.

        Args:
            scene: the scene.
            number: id of the region in the panoptic view.
            name: class name, as a visitor typed it.
            is_thing: whether the class is a thing.

        Raises:
            ConfigError, VocabularyError: there is no such region or no name, the region is taught
                already, or there are too many examples. The messages are for visitors.
        """
        if number is None:
            raise ConfigError("Click a region first, or choose it in the list.")
        name = _one_name(name)
        if len(self) >= MAX_EXAMPLES:
            raise ConfigError(f"You have taught {MAX_EXAMPLES} examples, which is the limit.")
        for same in scene.examples_like(self.memory, number):
            own = " Undo takes the last example back." if same.id in self._taught else ""
            raise ConfigError(
                f"This region is an example of '{printable(same.name)}' already.{own}"
            )
        region = scene.teach(self.memory, number, name, is_thing)
        self._taught.append(region.id)
        return region

    def undo(self) -> Region:
        """Take the last example back, and return it.

        Raises:
            ConfigError: there is none.
        """
        if not self._taught:
            raise ConfigError("There is nothing to undo: you have taught nothing yet.")
        region = self.memory.get(self._taught.pop())
        assert region is not None, "nobody else changes this memory"
        self.memory.remove(ids=[region.id])
        return region

    def compared(self, scene: Scene) -> Scene:
        """Return a scene whose masks are compared with the examples, without running the model."""
        return scene.compared(self.memory, self.taught.vocabulary)

    def save(self, folder: str | os.PathLike, pictures: bool = True) -> Path:
        """Write this visitor's examples to a file, and return its path.

        Args:
            folder: empty folder for the file.
            pictures: whether the file has the pictures of the regions.

        Raises:
            ConfigError: there are none.
        """
        if not self._taught:
            raise ConfigError("There is nothing to download: you have taught nothing yet.")
        path = Path(folder) / FILE
        taught = self.taught
        if not pictures:
            taught.drop_pictures()
        taught.save(path)
        return path


def _one_name(text: str) -> str:
    vocabulary = parse_names(text).vocabulary
    if vocabulary is None:
        raise ConfigError("Type a name for the region first.")
    if len(vocabulary.flat[0]) != 1:
        raise ConfigError("Type one name for the region, without ; and , and not that of a list.")
    return vocabulary.names[0]
