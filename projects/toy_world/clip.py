#!/usr/bin/env python
"""Write a video of a toy scene whose things move, to try the segmentation of videos.

Example:
    python projects/toy_world/clip.py clip.mp4 --seconds 4 --seed 3
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np

from odise_mm.utils.command_line import Parser, one_line_errors, positive_number
from odise_mm.utils.display import printable
from odise_mm.utils.outputs import check_outputs
from odise_mm.video.writing import VideoFile
from projects.toy_world import drawing
from projects.toy_world.drawing import SIZE
from projects.toy_world.plan import Plan, compose
from projects.toy_world.world import draw_ids, render

_SPEED = 2.0  # pixels per frame, at most


def moving_scene(seed: int, count: int) -> Iterator[tuple[np.ndarray, np.ndarray, Plan]]:
    """Draw the frames of a scene whose things move in straight lines and bounce off the borders.

    Args:
        seed: from 0.
        count: number of frames.

    Yields:
        The image, (SIZE, SIZE, 3) uint8 RGB; the visible region or thing of every pixel,
        (SIZE, SIZE), numbered from 0 with the things after the regions; and the plan.
    """
    rng = np.random.default_rng([7, seed])
    plan = compose(rng)
    speeds = rng.uniform(-_SPEED, _SPEED, (len(plan.things), 2))
    places = np.array([(thing.x, thing.y) for thing in plan.things])
    angles = rng.uniform(-0.6, 0.6, len(plan.things))
    radii = np.array([thing.radius for thing in plan.things])[:, None]
    for _ in range(count):
        things = tuple(
            replace(
                thing,
                x=x,
                y=y,
                stamp=drawing.stamp(
                    thing.name.shape, thing.name.pattern, (x, y), thing.radius, angle
                ),
            )
            for thing, (x, y), angle in zip(plan.things, places.tolist(), angles, strict=True)
        )
        now = replace(plan, things=things)
        yield render(now, np.random.default_rng([8, seed])), draw_ids(now), now
        places = places + speeds
        outside = (places < radii) | (places > SIZE - radii)
        toward = np.where(places < SIZE / 2, 1, -1) * np.abs(speeds)
        speeds = np.where(outside, toward, speeds)


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = Parser(__doc__)
    parser.add_argument("out", type=Path, help="video to write, .mp4, .mkv or .mov")
    parser.add_argument(
        "--seconds", type=positive_number, default=4.0, help="length (default: %(default)s)"
    )
    parser.add_argument(
        "--rate",
        type=positive_number,
        default=12.0,
        help="frames per second (default: %(default)s)",
    )
    parser.add_argument("--seed", type=int, default=0, help="number of the scene, from 0")
    args = parser.parse_args(argv)
    if args.seed < 0:
        parser.error(f"--seed must be at least 0, not {args.seed}")
    return args


def main(argv: list[str] | None = None) -> int:
    """Write the video."""
    args = parse_args(argv)
    with one_line_errors():
        check_outputs([args.out])
        count = max(1, round(args.seconds * args.rate))
        frames = (image[..., ::-1] for image, _, _ in moving_scene(args.seed, count))
        with VideoFile(args.out) as file:
            for index, frame in enumerate(frames):
                file.add(index / args.rate, frame)
    print(f"wrote {printable(args.out)}: {count} frames")
    return 0


if __name__ == "__main__":
    sys.exit(main())
