"""The page of audit: pictures with tick boxes, all in one file."""

import base64
import io
import zlib
from collections import Counter
from collections.abc import Sequence
from itertools import groupby
from operator import attrgetter
from pathlib import Path
from typing import Any

from vision_zoo.data.base import ImageDataModule
from vision_zoo.verbs.audit.findings import UNREADABLE, WRONG, Audited, Issue, balance, has_class_folders
from vision_zoo.verbs.audit.pictures import Looks, picture
from vision_zoo.verbs.output import output_file, templates
from vision_zoo.version import __version__

SIDE = 128  # longest, of a picture in the page
MOST = {WRONG: 300}  # images of a kind that the page shows; issues.csv has all
_MOST = 120
_QUALITY = 75  # of a JPEG


def write_page(
    file: Path,
    datamodule: ImageDataModule,
    audited: Audited,
    looks: Looks,
    issues: Sequence[Issue],
    notes: Sequence[str],
) -> None:
    """Write audit.html, a few KB for each image that it shows."""
    sizes = dict(zip(looks.places.tolist(), map(tuple, looks.sizes.tolist()), strict=True))
    sections = list[dict[str, Any]]()
    for kind, same in groupby(issues, attrgetter("kind")):
        of_kind, shown, room = list(same), list[dict[str, Any]](), MOST.get(kind, _MOST)
        for issue in of_kind:
            room -= len(issue.places)
            if room < 0 and shown:
                break
            images = [_image(audited, sizes, place, kind) for place in issue.places[:_MOST]]
            shown.append({"issue": issue, "images": images})
        sections.append({"kind": kind, "count": len(of_kind), "shown": shown})
    commonest = Counter(" x ".join(map(str, size)) for size in sizes.values()).most_common()
    moves = has_class_folders(datamodule)
    facts = {
        "title": datamodule.root.name if moves else datamodule.hparams.get("path") or type(datamodule).__name__,
        "folder": str(datamodule.root) if moves else "",
        "id": f"{zlib.crc32(repr((str(datamodule.root), audited.names)).encode(errors='replace')):08x}",
        "images": len(audited.names),
        "sections": sections,
        "notes": notes,
        "balance": balance(audited),
        "sizes": commonest,
        "is_text": lambda name: name == name.encode(errors="replace").decode(),  # not so names that are not UTF-8
    }
    page = templates(Path(__file__).parent).get_template("page.html")
    with output_file(file) as place:
        place.write_bytes(page.render(version=__version__, **facts).encode(errors="replace"))  # names: any bytes


def _image(audited: Audited, sizes: dict[int, Any], place: int, kind: str) -> dict[str, str]:
    """What the page says of an image, and a small JPEG of it."""
    content = io.BytesIO()
    if kind != UNREADABLE:
        picture(audited.source, place, sizes[place], SIDE).save(content, "JPEG", quality=_QUALITY)
    facts = {"path": audited.names[place], "label": audited.class_of(place), "split": audited.splits[place]}
    return {**facts, "jpeg": base64.b64encode(content.getvalue()).decode()}
