"""report: a run as one self-contained HTML page, and a model card beside it."""

import base64
import html
import re
import shlex
import zlib
from collections.abc import Sequence
from pathlib import Path

from vision_zoo.checkpoints import Checkpoint, open_checkpoint, run_folder
from vision_zoo.classifier import Classifier
from vision_zoo.errors import ConfigError, refuse
from vision_zoo.files import expanded
from vision_zoo.formatting import duration, metric_text
from vision_zoo.hub import WEIGHTS
from vision_zoo.trust import trusting
from vision_zoo.verbs.output import output_file, templates
from vision_zoo.verbs.report.facts import Facts, collect, interval
from vision_zoo.verbs.report.looks import draw_looks
from vision_zoo.version import __version__

MARK = "<!-- written by vision_zoo report, {:08x} -->\n"  # with the checksum of the text above it


def report(
    ckpt_path: str, output: str | None = None, explain: bool = True, trusted_packages: Sequence[str] = ()
) -> None:
    """Write an HTML report and a model card of a run.

    Args:
        ckpt_path: a run folder, a checkpoint in it, or best or last of the newest run.
        output: folder, or name of the HTML file, by default the run folder.
        explain: show where the network looked in some of the test images, if they are here.
        trusted_packages: packages whose classes the checkpoint may name.
    """
    checkpoint = open_checkpoint(ckpt_path, trusted_packages)
    for path in write_report(Classifier.from_checkpoint(checkpoint.content), checkpoint, output, explain):
        print(path)


def write_report(
    model: Classifier, checkpoint: Checkpoint, output: str | None = None, explain: bool = False
) -> tuple[Path, Path]:
    """Write report.html and README.md, and give the two files.

    Raises:
        ConfigError: if a README.md or report.html of another origin is in the way, or the README.md was edited.
    """
    target = expanded(output) if output is not None else run_folder(checkpoint.path) or Path.cwd()
    page = target if target.suffix in (".html", ".htm") else target / "report.html"
    card = page.with_name("README.md")
    own_page = page == target or not page.is_file() or b'content="vision_zoo ' in page.read_bytes()[:4096]
    foreign, way_out = "is there and was not written by report", "move it away, or set --output to another folder"
    of_hub = card.exists() and checkpoint.path == card.with_name(WEIGHTS).absolute()
    refuse(
        ConfigError,
        (card.exists() and not is_own(card), f"{card.resolve()} {foreign}, or was edited since: {way_out}"),
        (not own_page, f"{page.resolve()} {foreign}: {way_out}"),
        (of_hub, f"{card.resolve()} is the card of a hub folder, with results that are known there alone: {way_out}"),
    )
    facts = collect(model, checkpoint)
    if explain:
        found = draw_looks(model, checkpoint)
        if isinstance(found, bytes):
            facts.images["looks"] = base64.b64encode(found).decode()
        else:
            facts.missing.append(found)
    for path, content in ((page, _render("page.html", facts)), (card, model_card(facts))):
        with output_file(path) as file:
            file.write_bytes(content.encode(errors="replace"))  # names of folders and classes may be any bytes
    return page.resolve(), card.resolve()


def model_card(facts: Facts) -> str:
    """The model card of a run, in Markdown, with a mark that `is_own` knows."""
    return _marked(f"{_render('card.md', facts).strip()}\n\n")


def is_own(card: Path) -> bool:
    """Whether there is such a card that nobody has edited since."""
    kept = card.read_text(encoding="utf-8", errors="replace") if card.exists() else ""
    return kept == _marked(kept[: -len(MARK.format(0))])


def _render(template: str, run: Facts) -> str:
    """Fill in a template of this folder: every value is escaped in HTML, and by the filter md in Markdown."""
    environment = templates(Path(__file__).parent)
    environment.filters |= {"md": _markdown, "fenced": _fenced, "quote": shlex.quote, "duration": duration}
    environment.globals |= {"metric": metric_text, "interval": interval, "trusting": trusting}
    return environment.get_template(template).render(run=run, model=run.model, version=__version__)


def _markdown(value: object) -> str:
    """A value as text that Markdown shows as it is, on one line."""
    escaped = re.sub(r"([\\`*_{}\[\]()#+!|~$])", r"\\\1", " ".join(str(value).split()))
    return html.escape(escaped, quote=False).replace("://", ":&#47;/")  # addresses do not become links


def _fenced(text: str, language: str) -> str:
    """Text as a block of code in Markdown, whatever it holds."""
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", text)), default=0))
    return f"{fence}{language}\n{text}\n{fence}"


def _marked(text: str) -> str:
    return text + MARK.format(zlib.crc32(text.encode(errors="replace")))
