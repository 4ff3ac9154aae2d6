"""The data module that a checkpoint or a configuration describes."""

from collections.abc import Mapping
from typing import Any

from vision_zoo.data.base import ImageDataModule
from vision_zoo.errors import InputError, refuse
from vision_zoo.files import is_address
from vision_zoo.specs import import_path


def described_data(spec: Mapping[str, Any], *, ask: bool = False) -> ImageDataModule | None:
    """The data module of a vetted class_path and init_args, without augmentation; None if none can be made here.

    Its files are not looked at; a server is asked only with `ask`, which refuses an address that cannot be read.
    """
    options = spec.get("init_args") or {}
    there = is_address(str(options.get("path")))
    try:
        if there and not ask:  # as of a file that is not here
            options = {**options, "path": options["path"].replace("://", "/")}
        module = import_path(spec["class_path"])(**{name: options[name] for name in options if name != "augmentation"})
    except (InputError, KeyError, TypeError) as error:
        refuse(type(error), (there and ask, str(error)))
        return None
    return module if isinstance(module, ImageDataModule) else None
