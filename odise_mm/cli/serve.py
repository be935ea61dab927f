"""Serve a model over HTTP: a web page, or an API.

The page segments uploaded images with typed class names; docs/web.md describes it. With --api:
images and class names in, COCO JSON or PNG out. http://HOST:PORT/docs describes the requests;
docs/serving.md has examples. Nobody is asked for a password, so listen on other
addresses than this machine's own only behind a server that does.

Examples:
    odise-mm serve --config odise_coco_label
    odise-mm serve --api --config odise_coco_label --port 8000
    curl -F image=@street.jpg --form-string "texts=van; cyclist" localhost:8000/segment
"""

from __future__ import annotations

import argparse
import os
from contextlib import suppress
from typing import TYPE_CHECKING

from odise_mm.cli.arguments import (
    NO_CONFIG,
    SETTINGS,
    add_model,
    add_names,
    build_inferencer,
    given,
)
from odise_mm.utils.command_line import (
    Parser,
    ended_by_signals,
    one_line_errors,
    positive_int,
    positive_number,
    whole_number,
)

if TYPE_CHECKING:
    from odise_mm.serving.label_studio import ImageStore
    from odise_mm.serving.uploads import Limits

MAX_PIXELS = 4096 * 4096
PAGE_TIMEOUT = 3.0
"""Seconds in which the page ends."""
KEY = "LABEL_STUDIO_API_KEY"


def parse_args(argv: list[str] | None = None, prog: str | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = Parser(__doc__, prog=prog)
    parser.add_argument("--api", action="store_true", help="serve the HTTP API")
    server = parser.add_argument_group("server")
    server.add_argument(
        "--host",
        default="127.0.0.1",
        help="address to listen on (default: %(default)s, only programs of this machine)",
    )
    server.add_argument(
        "--port",
        type=port,
        default=8000,
        metavar="N",
        help="port to listen on; 0 chooses a free one (default: %(default)s)",
    )
    server.add_argument(
        "--max-megabytes",
        type=positive_number,
        default=32.0,
        metavar="N",
        help="reject image files with more megabytes, 2^20 bytes each (default: %(default)g)",
    )
    server.add_argument(
        "--queue",
        type=whole_number,
        default=16,
        metavar="N",
        help="reject requests while N others wait (default: %(default)s)",
    )
    server.add_argument(
        "--timeout",
        type=positive_number,
        default=60.0,
        metavar="S",
        help="API: give up a request after S seconds (default: %(default)g)",
    )
    server.add_argument(
        "--workers",
        type=positive_int,
        default=1,
        metavar="N",
        help="API: threads that read, draw and encode images; the model itself processes one image "
        "at a time (default: %(default)s)",
    )
    studio = parser.add_argument_group("Label Studio")
    studio.add_argument(
        "--label-studio",
        metavar="URL",
        help="also be an ML backend of the Label Studio at this address, from which images are "
        f"fetched; the environment variable {KEY} has the access token of a user",
    )
    studio.add_argument(
        "--label-studio-root",
        metavar="DIR",
        help="document root of Label Studio's local files, to read them without fetching",
    )
    add_names(parser)
    add_model(parser, MAX_PIXELS)
    args = parser.parse_args(argv)
    if not args.api and (args.label_studio, args.label_studio_root) != (None, None):
        parser.error("--label-studio and --label-studio-root need --api")
    if args.config is None:
        parser.error(NO_CONFIG)
    return args


def port(text: str) -> int:
    """Parse a port, as the ``type`` of an argument."""
    value = int(text)
    if not 0 <= value <= 65535:
        raise argparse.ArgumentTypeError(f"must be from 0 to 65535, not {value}")
    return value


def main(argv: list[str] | None = None, prog: str | None = None) -> int:
    """Run the command until a signal ends it, and return 0; errors exit with status 2."""
    args = parse_args(argv, prog)
    with one_line_errors(), ended_by_signals():
        return run(args)


def run(args: argparse.Namespace) -> int:
    """Serve until a signal asks to end."""
    from odise_mm.serving.server import check_packages, listen, serve

    check_packages(args.api)
    # Before the model is built, which takes minutes.
    with listen(args.host, args.port) as socket:
        from odise_mm.serving.uploads import Limits

        limits = Limits(int(args.max_megabytes * (1 << 20)), args.max_pixels)
        images = _label_studio(args, limits)
        inferencer = build_inferencer(args)
        typed = (args.texts, args.stuff_texts, args.vocabulary)
        without = inferencer.default_vocabulary is None and not any(typed)
        options = dict(
            names=None if without else inferencer.make_vocabulary(*typed),
            settings=given(args, SETTINGS),
            limits=limits,
            queue=args.queue,
        )
        if args.api:
            from odise_mm.serving.api import make_app
            from odise_mm.serving.service import Service

            times = dict(timeout=args.timeout, workers=args.workers)
            app = make_app(Service(inferencer, **options, **times), images)
        else:
            from odise_mm.serving.page import make_page

            app = make_page(inferencer, host=args.host, **options)
        with suppress(KeyboardInterrupt):  # of a signal, after all requests were answered
            # Open pages keep a connection.
            serve(app, socket, args.timeout if args.api else PAGE_TIMEOUT)
    return 0


def _label_studio(args: argparse.Namespace, limits: Limits) -> ImageStore | None:
    if args.label_studio is None and args.label_studio_root is None:
        return None
    from odise_mm.serving.label_studio import ImageStore

    key = os.environ.get(KEY)
    return ImageStore(args.label_studio, key, args.label_studio_root, limits)
