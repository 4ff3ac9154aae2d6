"""The page to try a network on, from one template: of serve, which asks its server, and of export --format html."""

import base64
import gzip
import json
import re
from collections.abc import Mapping
from pathlib import Path

from vision_zoo.classifier import Classifier
from vision_zoo.verbs.output import templates
from vision_zoo.version import __version__

FOLDER = Path(__file__).parent


def rendered(
    model: Classifier, mean: float | None, onnx: bytes = b"", facts: Mapping[str, object] | None = None
) -> bytes:
    """The page as HTML, in UTF-8.

    Args:
        model: the network.
        mean: brightness of its training images in [0, 1]: where they are dark, strokes are light.
        onnx: the network as an ONNX file, which the page then runs itself; else it asks the server that sent it.
        facts: what the page's program needs to run it; and whether its server explains.
    """
    shown: dict[str, object] = {"network": model.network_name, "classes": list(model.class_names)}
    shown |= {"image_shape": list(model.image_shape), "draws": model.image_shape[0] == 1, "explains": False}
    shown |= {"dark": mean is None or mean < 0.5, **(facts or {})}
    parts = {path.stem: path.read_bytes() for path in (FOLDER / "runtime").glob("*.gz")}
    parts |= {"model": gzip.compress(onnx, mtime=0)}
    text = {name: base64.b64encode(content).decode() for name, content in parts.items()} if onnx else {}
    data = json.dumps(shown).replace("<", "\\u003c")  # which no name can end
    page = templates(FOLDER).get_template("page.html").render(facts=shown, data=data, version=__version__, parts=text)
    return page.encode("utf-8", "replace")  # names of classes may be any bytes


def onnx_of(page: bytes) -> bytes:
    """The ONNX file inside a page."""
    found = re.search(rb'id="model">([^<]*)<', page)
    assert found is not None
    return gzip.decompress(base64.b64decode(found[1]))
