"""WebDataset: your own images in tar shards (https://github.com/webdataset/webdataset)."""

import json
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

from vision_zoo.data.decode import image_extensions
from vision_zoo.data.discovery import LeftOut, as_word
from vision_zoo.data.members import LABELS, InFiles, Member
from vision_zoo.errors import refuse

_MOST = 2**20  # bytes of a label


class WebDataset(InFiles):
    """Your own images in tar shards: KEY.jpg beside its label, KEY.cls, KEY.json or KEY.txt.

    A label is a number or a word; of JSON it is the value of label, class, cls or the like. Names such as train-000.tar
    and val-000.tar tell the split. `vision_zoo pack` makes one file of them, which is faster to read.

    Args:
        path: the shards: a file, a folder of them, or a pattern in quotation marks: 'shards/*.tar'. They must not be
            compressed.
    """

    _ending, _errors = ".tar", (tarfile.TarError,)

    def _members(self, file: Path, left: LeftOut) -> Iterator[Member]:
        with cast(Any, tarfile.open(file, "r:")) as tar:
            found: dict[str, dict[str, tarfile.TarInfo]] = {}
            for info in tar:
                folder, _, name = info.name.rpartition("/")
                key, _, ending = name.partition(".")
                if key and info.isreg():
                    parts = found.setdefault(f"{folder}/{key}".strip("./"), {})
                    left["names that come twice, of which the last counts"] += [info.name] * (ending in parts)
                    parts[ending] = info
            tar.fileobj.seek(tar.offset)  # of a shard that is cut off or damaged, tarfile gives what is before
            refuse(tarfile.ReadError, (tar.fileobj.read(512) != bytes(512), "it is cut off, or a header is damaged"))
            for key, parts in found.items():
                images = [x for x in parts if f".{x.rpartition('.')[2].lower()}" in image_extensions()]
                image = min(images, key=lambda x: x.count("."), default=None)  # of 7.png and 7.mask.png the former
                left["further images of a key"] += [f"{key}.{x}" for x in images if x != image]
                label = next((_label(tar, parts[x]) for x in ("cls", "json", "txt") if x in parts), "")
                if image is None or not label:
                    left["keys without a label" if image else "keys without an image"].append(key)
                else:
                    yield f"{key}.{image}", label, (parts[image].offset_data, parts[image].size, 0)


def _label(tar: tarfile.TarFile, info: tarfile.TarInfo) -> str:
    file: Any = tar.extractfile(info)
    refuse(ValueError, (info.size > _MOST, f"the label {info.name} has {info.size:,} bytes"))
    value = file.read().decode()
    if info.name.endswith(".json"):
        record = json.loads(value)
        named = [record[x] for x in LABELS if record.get(x) is not None] if isinstance(record, dict) else [record]
        value = named[0] if named else ""
    return as_word(value)
