"""report: a run as one self-contained HTML page, and a model card beside it."""

import base64
import csv
import html
import json
import math
import re
import shlex
import tempfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from string import Template
from typing import Any, NamedTuple

import yaml

from vision_zoo import __version__
from vision_zoo.classifier import Classifier
from vision_zoo.errors import ConfigError
from vision_zoo.files import expanded, write_file
from vision_zoo.formatting import duration, metric_text
from vision_zoo.plots import plot_curves
from vision_zoo.trust import foreign_packages, trusting

MARK = re.compile(r"<!-- written by vision_zoo report(?:, ([0-9a-f]{8}))? -->")  # with the text's checksum
PNG = b"\x89PNG\r\n\x1a\n"
LABELS = {
    "accuracy": "accuracy",
    "top5_accuracy": "top-5 accuracy",
    "f1": "F1, mean of the classes",
    "loss": "loss",
    "nll": "negative log-likelihood",
    "calibration_error": "calibration error",
}
SPLITS = {"train": "training", "val": "validation", "test": "test"}
REPEATING = (
    "config.yaml holds network, data, training and seed. On another machine, say where the data lies with "
    "--data.root. With the same versions, on the same kind of processor, the same seed gives the same result."
)
NOT_TESTED = "This run was never tested, so there are no metrics of the test images."


@dataclass
class Facts:
    """What a run folder and a checkpoint say, as far as they say it.

    Attributes:
        name: of the configuration.
        place: the run folder as a command line may name it.
        weights: the checkpoint, likewise.
        network: name of the backbone.
        dataset: name of the data set's class.
        model: the checkpoint's classifier.
        results: results.json.
        metrics: by name, fractions.
        per_class: rows of per_class.csv.
        epochs: by epoch, the last value of each metric.
        pictures: name to content of the PNG files.
        config: the configuration as YAML, without what is left at null.
        foreign: packages of one's own that a command on the checkpoint must trust.
        test_source: folder or file of the test images, where the run was tested by itself.
        views: which the test averaged over; none, flip, shift or flip+shift.
        missing: what could not be read, a sentence each.
    """

    name: str
    place: str
    weights: str
    network: str
    dataset: str
    model: Classifier
    results: dict[str, Any] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)
    per_class: list[dict[str, str]] = field(default_factory=list)
    epochs: list[dict[str, str]] = field(default_factory=list)
    pictures: dict[str, bytes] = field(default_factory=dict)
    config: str = ""
    foreign: Sequence[str] = ()
    test_source: str = ""
    views: str = "none"
    missing: list[str] = field(default_factory=list)

    @property
    def test_images(self) -> int:
        """How many images the test metrics are of; 0 if not known."""
        return sum(int(row["images"]) for row in self.per_class)


def write_report(model: Classifier, checkpoint: Path, step: int, output: str | None = None) -> tuple[Path, Path]:
    """Write report.html and README.md.

    Args:
        model: the checkpoint's classifier.
        checkpoint: file in a run folder, or anywhere else.
        step: the training step that the checkpoint is of.
        output: folder, or name of the HTML file; by default the run folder.

    Returns:
        The two files.

    Raises:
        ConfigError: if a README.md or report.html is in the way that somebody else wrote, or a README.md was edited.
    """
    checkpoint = checkpoint.resolve()
    run = checkpoint.parent.parent if checkpoint.parent.name == "checkpoints" else None
    target = expanded(output) if output is not None else run or Path.cwd()
    page = target if target.suffix in (".html", ".htm") else target / "report.html"
    card = page.with_name("README.md")
    _refuse_to_replace(card, page if page != target else None)
    facts = collect(model, checkpoint, step, run)
    try:
        page.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"--output {output}: {page.parent.resolve()} cannot be made: {error.strerror}") from error
    # Names of folders may be any bytes.
    write_file(page, html_page(facts).encode(errors="replace"))
    write_file(card, model_card(facts).encode(errors="replace"))
    return page.resolve(), card.resolve()


def _refuse_to_replace(card: Path, page: Path | None) -> None:
    """Refuse to replace a card, or a page of a name that nobody gave, that is not as report wrote it."""
    way_out = "move it away, or set --output to another folder"
    if card.exists():
        said = card.read_text(encoding="utf-8", errors="replace")
        mark = MARK.search(said)
        if mark is None:
            raise ConfigError(f"{card.resolve()} is there and was not written by report: {way_out}")
        if mark[1] not in (None, _checksum(said[: mark.start()])):
            raise ConfigError(f"{card.resolve()} was edited after report wrote it: {way_out}")
    if page is not None and page.is_file() and b'content="vision_zoo ' not in page.read_bytes()[:4096]:
        raise ConfigError(f"{page.resolve()} is there and was not written by report: {way_out}")


def _checksum(text: str) -> str:
    return f"{zlib.crc32(text.encode(errors='replace')):08x}"


# --------------------------------------------------------------------------------------------------- reading the run


def collect(model: Classifier, checkpoint: Path, step: int, run: Path | None) -> Facts:
    """Gather what there is; what is missing or broken is said in words, never made up."""
    folder = run or checkpoint
    config = _read_config(folder / "config.yaml")
    # Below a folder runs, the way there from where the run was started.
    below = run is not None and run.parent.parent.name == "runs"
    if below and Path(config.root).is_absolute() and Path(config.root).resolve() != folder.parents[2]:
        below = False  # moved since
    place = str(Path(config.root, *folder.parts[-3:]) if below else folder)
    weights = f"{place}/checkpoints/{checkpoint.name}" if run else place
    name = run.parent.name if run else checkpoint.stem
    facts = Facts(name, place, weights, model.network_name, config.dataset or "data of your own", model)
    if run is None:
        facts.missing.append(
            "The checkpoint lies outside a run folder, so nothing is known about its training and its results."
        )
        return facts
    facts.results = _read_json(run / "results.json", facts)
    if not facts.results:
        facts.missing.append("The run has no results: it was stopped before its end, or is still training.")
    facts.name = str(facts.results.get("config") or facts.name)
    facts.config, facts.foreign = config.text, config.foreign
    facts.views = str(facts.results.get("test_time_augmentation", "none"))
    # Tested at the end of fit, or by a later test of the same weights, images and all.
    tested = next((f for f in (run, run / "test") if (f / "per_class.csv").is_file()), None)
    metrics = facts.results.get("metrics") or {}
    if tested is not None and "test/accuracy" not in metrics:
        later = _read_json(tested / "test.json", facts)
        ours = {"checkpoint": checkpoint.name, "step": step, "data": facts.dataset}
        if later.get("images") in (config.data.get("root"), config.data.get("path")):
            # Cut otherwise, the part holds images that the network was trained with.
            ours |= {n: config.data[n] for n in ("test_split", "seed") if n in config.data and n in later}
        averaged = later.get("test_time_augmentation", "none")
        if averaged == config.views and all(later.get(name, value) == value for name, value in ours.items()):
            metrics = {**metrics, **later}
            facts.views = config.views
            facts.test_source = str(later.get("images", ""))
        else:
            tested = None
    facts.metrics = {n: float(v) for n, v in metrics.items() if isinstance(v, int | float) and not n.endswith("_step")}
    if "test/accuracy" not in facts.metrics:
        words = f"--ckpt_path {shlex.quote(place)}{trusting(facts.foreign)}"
        facts.missing.append(f"{NOT_TESTED} Test it: vision_zoo test {words}")
    elif tested is not None:
        facts.per_class = _read_csv(tested / "per_class.csv", facts, {"class", "precision", "recall", "f1", "images"})
    stored = facts.results.get("metrics") or {}
    of_best = [SPLITS[split] for split in ("val", "test") if any(name.startswith(f"{split}/") for name in stored)]
    best = checkpoint.with_name("best.ckpt")
    if of_best and not (best.is_file() and best.samefile(checkpoint)):
        facts.missing.append(f"The {' and '.join(of_best)} metrics are of best.ckpt, not of {checkpoint.name}.")
    facts.epochs = by_epoch(_read_csv(run / "metrics.csv", facts, {"epoch", "step"}))
    for name in ("curves", "confusion_matrix", "mistakes"):
        source = run if name == "curves" else tested
        content = _read_bytes(source / f"{name}.png") if source else b""
        if name == "curves" and not content and facts.epochs:  # a stopped run has none yet
            with tempfile.TemporaryDirectory() as scratch:
                plot_curves(run / "metrics.csv", Path(scratch, "curves.png"), f"{facts.name}: {facts.network}")
                content = Path(scratch, "curves.png").read_bytes()
        if content.startswith(PNG):
            facts.pictures[name] = content
    return facts


def _read_bytes(path: Path) -> bytes:
    return path.read_bytes() if path.is_file() else b""


def _read_json(path: Path, facts: Facts) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        facts.missing.append(f"{path.name} is broken: {error}")
        return {}
    return content if isinstance(content, dict) else {}


def _read_csv(path: Path, facts: Facts, columns: set[str]) -> list[dict[str, str]]:
    """Rows of a table in which everything but the class is a number."""
    if not path.is_file():
        return []
    try:
        with path.open(newline="", encoding="utf-8", errors="replace") as file:
            rows = list(csv.DictReader(file))
        for row in rows:
            if not columns <= row.keys():
                raise ValueError(f"it lacks columns: {', '.join(sorted(columns - row.keys()))}")
            for name, text in row.items():
                if name != "class" and text:
                    float(text)
    except (ValueError, TypeError, csv.Error) as error:
        facts.missing.append(f"{path.name} is broken: {error}")
        return []
    return rows


class _Config(NamedTuple):
    """What config.yaml says, each part empty where it does not."""

    text: str = ""  # without nulls
    dataset: str = ""
    root: str = ""  # the folder that holds runs
    data: Mapping[str, Any] = {}  # its options
    views: str = "none"  # that a test averages over
    foreign: Sequence[str] = ()  # packages that its classes are of, of one's own


def _read_config(path: Path) -> _Config:
    if not path.is_file():
        return _Config()
    text = path.read_text(encoding="utf-8", errors="replace")
    try:
        config = yaml.safe_load(text)
        dataset = config["data"]["class_path"].rpartition(".")[2]
        root = (config.get("trainer") or {}).get("default_root_dir")
        root = str(expanded(root)) if root else ""
        options = dict(config["data"].get("init_args") or {})
        views = str(config.get("tta") or "none")
    except (yaml.YAMLError, KeyError, TypeError, AttributeError, ValueError):
        return _Config(text)
    text = yaml.safe_dump(_without_nulls(config), sort_keys=False, allow_unicode=True)
    return _Config(text, dataset, root, options, views, foreign_packages(config))


def _without_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nulls(item) for key, item in value.items() if item is not None}
    return value


def by_epoch(rows: Sequence[dict[str, str]]) -> list[dict[str, str]]:
    """One row for each epoch with the last value of each metric; values of single steps are left out."""
    epochs: dict[str, dict[str, str]] = {}
    for row in rows:
        known = epochs.setdefault(row.get("epoch") or "", {})
        known.update({n: v for n, v in row.items() if v and n is not None and not n.endswith("_step")})
    # An epoch that was cut short has no metrics yet.
    return [row for row in epochs.values() if any("/" in name for name in row)]


# ------------------------------------------------------------------------------------------------------------ figures


def interval(share: float, count: int) -> tuple[float, float]:
    """The 95 % interval of a share of `count` images (Wilson 1927)."""
    z = 1.959964
    centre = (share + z * z / (2 * count)) / (1 + z * z / count)
    half = z * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count)) / (1 + z * z / count)
    return centre - half, centre + half


def results_rows(facts: Facts) -> tuple[list[str], list[list[str]]]:
    """Header and rows of the metrics by split."""
    splits = [split for split in SPLITS if any(n.startswith(f"{split}/") for n in facts.metrics)]
    names = [n for n in LABELS if any(f"{split}/{n}" in facts.metrics for split in splits)]
    rows = []
    for name in names:
        values = [facts.metrics.get(f"{split}/{name}") for split in splits]
        rows.append([LABELS[name], *("" if value is None else metric_text(name, value) for value in values)])
    return ["", *(SPLITS[split] for split in splits)], rows


def key_figures(facts: Facts) -> list[tuple[str, str]]:
    """The few figures at the top, each with what it is."""
    figures: list[tuple[str, str]] = []
    for name in ("test/accuracy", "test/top5_accuracy", "test/f1", "val/accuracy"):
        if name in facts.metrics and len(figures) < 3:
            split, _, metric = name.partition("/")
            figures.append((metric_text(name, facts.metrics[name]), f"{SPLITS[split]} {LABELS[metric].split(',')[0]}"))
    figures.append((f"{sum(p.numel() for p in facts.model.parameters()):,}", "parameters"))
    if isinstance(facts.results.get("epochs"), int):
        figures.append((str(facts.results["epochs"]), "epoch" if facts.results["epochs"] == 1 else "epochs"))
    if isinstance(facts.results.get("fit_seconds"), int | float):
        figures.append((duration(facts.results["fit_seconds"]), "training time"))
    return figures


def certainty(facts: Facts) -> str:
    """How far the test accuracy can be trusted, a sentence, or nothing."""
    count, accuracy = facts.test_images, facts.metrics.get("test/accuracy")
    if not count or accuracy is None:
        return ""
    low, high = interval(accuracy, count)
    source = f" of {facts.test_source}" if facts.test_source else ""
    return (
        f"Measured on {count:,} test images{source}: the 95 % interval of the test accuracy is {100 * low:.2f} to "
        f"{100 * high:.2f} %. It does not include how much training with another seed would change."
    )


def circumstances(facts: Facts) -> list[list[str]]:
    """What the results depend on, name and value."""
    results, shape = facts.results, facts.model.image_shape
    rows = [
        ["network", facts.network],
        ["data set", facts.dataset],
        ["images", f"{shape[1]} x {shape[2]} pixels, {shape[0]} channel{'s' if shape[0] > 1 else ''}"],
        ["classes", str(facts.model.num_classes)],
    ]
    for name, label in (("seed", "seed"), ("device", "device"), ("devices", "processes"), ("precision", "precision")):
        if results.get(name) is not None:
            rows.append([label, str(results[name])])
    if isinstance(results.get("train_images_per_second"), int | float):
        rows.append(["speed", f"{results['train_images_per_second']:,.0f} training images/s"])
    if facts.views != "none":
        rows.append(["test-time augmentation", f"{facts.views}: predictions averaged over views of each test image"])
    if isinstance(results.get("best_epoch"), int):
        rows.append(["best.ckpt", f"of epoch {results['best_epoch'] + 1}, by the lowest validation loss"])
    elif results:
        rows.append(["best.ckpt", "of the last epoch, since there was no validation"])
    versions = results.get("versions")
    if isinstance(versions, dict):
        rows.append(["versions", ", ".join(f"{name} {version}" for name, version in versions.items())])
    return rows


def commands(facts: Facts) -> str:
    """Command lines that repeat and use the run."""
    place = shlex.quote(facts.place) + trusting(facts.foreign)
    lines = [f"vision_zoo test --ckpt_path {place}", f"vision_zoo predict --ckpt_path {place} --images FILE_OR_FOLDER"]
    if facts.config:
        lines.insert(0, f"vision_zoo fit --config {shlex.quote(f'{facts.place}/config.yaml')}")
    return "\n".join(lines)


# --------------------------------------------------------------------------------------------------------------- HTML

PAGE = Template("""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="generator" content="vision_zoo $version">
<title>$title</title>
<style>
:root { color-scheme: light dark; --ink: #1c2430; --quiet: #5d6878; --line: #dfe4ea; --paper: #ffffff; --soft: #f5f7fa;
  --accent: #3b6ea8; --bar: #cfe0f3; }
@media (prefers-color-scheme: dark) { :root { --ink: #e3e8ef; --quiet: #98a4b5; --line: #333d4b; --paper: #151a21;
  --soft: #1d242e; --accent: #8ab8ec; --bar: #2b4568; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; }
main { max-width: 880px; margin: 0 auto; padding: 48px 24px 72px; }
h1 { font-size: 30px; line-height: 1.2; margin: 0 0 4px; letter-spacing: -.01em; overflow-wrap: anywhere; }
h2 { font-size: 19px; margin: 44px 0 12px; padding-bottom: 6px; border-bottom: 1px solid var(--line); }
p { margin: 8px 0; } .quiet { color: var(--quiet); } .remark { color: var(--quiet); font-size: 14.5px; }
.figures { display: grid; grid-template-columns: repeat(auto-fit, minmax(240px, 1fr)); gap: 12px; margin: 28px 0 8px; }
.figures div { background: var(--soft); border-radius: 10px; padding: 14px 16px; }
.figures b { display: block; font-size: 22px; line-height: 1.25; font-weight: 650; font-variant-numeric: tabular-nums;
  white-space: nowrap; }
.figures div:first-child b { color: var(--accent); }
.figures span { display: block; margin-top: 2px; color: var(--quiet); font-size: 13px; line-height: 1.3; }
.note { border-left: 4px solid #d99a2b; background: var(--soft); padding: 10px 16px; border-radius: 0 8px 8px 0; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: 14.5px; font-variant-numeric: tabular-nums; }
th, td { padding: 6px 12px; text-align: right; border-bottom: 1px solid var(--line); white-space: nowrap; }
th { font-weight: 600; color: var(--quiet); font-size: 13px; vertical-align: bottom; }
th:first-child, td:first-child { text-align: left; padding-left: 0; }
th:last-child, td:last-child { padding-right: 0; }
td:first-child { white-space: normal; overflow-wrap: anywhere; min-width: 64px; }
.facts td { text-align: left; white-space: normal; overflow-wrap: anywhere; }
.facts td:first-child { color: var(--quiet); width: 130px; overflow-wrap: normal; }
.wide th { white-space: normal; } th.bars { padding-right: 112px; }
.bar { display: inline-block; width: 90px; margin-left: 10px; border-radius: 4px; background: var(--soft); }
.bar i { display: block; height: 8px; border-radius: 4px; background: var(--accent); opacity: .75; }
figure { margin: 12px 0; } figcaption { color: var(--quiet); font-size: 14px; margin-top: 6px; }
img { display: block; max-width: 100%; height: auto; margin: 0 auto; background: #fff; border: 1px solid var(--line);
  border-radius: 10px; padding: 10px; }
.medium { max-width: 640px; margin-inline: auto; }
pre { background: var(--soft); border-radius: 10px; padding: 14px 16px; overflow-x: auto; font: 13.5px/1.5 ui-monospace,
  Menlo, Consolas, "DejaVu Sans Mono", monospace; margin: 10px 0; }
summary { cursor: pointer; color: var(--accent); margin: 8px 0; }
footer { margin-top: 56px; color: var(--quiet); font-size: 13px; }
@media print { main { max-width: none; padding: 0; } figure, tr { break-inside: avoid; } }
</style>
</head>
<body>
<main>
<h1>$title</h1>
<p class="quiet">$subtitle</p>
$notes
<div class="figures">$figures</div>
$sections
<footer>Written by vision_zoo $version. All of this page is in this one file: it loads nothing from elsewhere.</footer>
</main>
</body>
</html>
""")


def html_page(facts: Facts) -> str:
    """The whole page; every text of the run is escaped."""
    sections: list[str] = []

    def section(title: str, *parts: str) -> None:
        if any(parts):
            sections.append(f"<h2>{html.escape(title)}</h2>\n" + "\n".join(part for part in parts if part))

    header, rows = results_rows(facts)
    when = "Training metrics are of the last epoch, taken while the weights changed"
    when += "; the others are of best.ckpt." if Path(facts.weights).name == "best.ckpt" else "."
    section(
        "Results",
        _table(header, rows) if rows else "",
        _paragraph(certainty(facts)),
        _paragraph(when) if "training" in header else "",
    )
    section(
        "Training",
        _picture(
            facts,
            "curves",
            "Loss and accuracy against iterations; the best values are in the legend, that of validation is ringed.",
        ),
    )
    section(
        "Classes",
        _per_class_table(facts.per_class),
        _picture(
            facts,
            "confusion_matrix",
            "Rows are the true classes, columns the predicted ones; the diagonal is right.",
            "medium",
        ),
        _picture(facts, "mistakes", "Wrong answers that the network was most sure of.", "medium"),
    )
    names = list(dict.fromkeys(name for row in facts.epochs for name in row if "/" in name or name == "lr"))
    order = [n for split in SPLITS for n in names if n.startswith(f"{split}/")] + [n for n in names if n == "lr"]
    epochs = _table(
        ["epoch", *(n.replace("/", " ").replace("_", " ") for n in order)],
        [[_epoch(row), *(metric_text(n, float(row[n])) if n in row else "" for n in order)] for row in facts.epochs],
        "wide",
    )
    section(
        "Epochs", _folded(f"{len(facts.epochs)} epochs", epochs, folded=len(facts.epochs) > 20) if facts.epochs else ""
    )
    section("Circumstances", _table([], circumstances(facts), "facts"))
    section(
        "How to repeat and use it",
        _pre(commands(facts)),
        _paragraph(REPEATING),
        _folded("The configuration, without options that are left at null", _pre(facts.config)) if facts.config else "",
    )
    subtitle = f"{facts.network} on {facts.dataset}, {facts.model.num_classes} classes"
    return PAGE.substitute(
        version=html.escape(__version__),
        title=html.escape(facts.name),
        subtitle=html.escape(f"{subtitle} · {facts.place}"),
        notes="\n".join(f'<p class="note">{html.escape(note)}</p>' for note in facts.missing),
        figures="".join(
            f"<div><b>{html.escape(v)}</b><span>{html.escape(n)}</span></div>" for v, n in key_figures(facts)
        ),
        sections="\n".join(sections),
    )


def _epoch(row: dict[str, str]) -> str:
    number = row.get("epoch", "")
    return str(int(number) + 1) if number.isdecimal() else number


def _table(header: Sequence[str], rows: Sequence[Sequence[str]], kind: str = "") -> str:
    head = (
        "<thead><tr>" + "".join(f"<th>{html.escape(cell)}</th>" for cell in header) + "</tr></thead>" if header else ""
    )
    body = "".join("<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>\n" for row in rows)
    return f'<div class="scroll"><table class="{kind}">{head}<tbody>\n{body}</tbody></table></div>'


def _per_class_table(rows: Sequence[dict[str, str]]) -> str:
    if not rows:
        return ""
    lines = []
    for row in rows:
        f1 = float(row["f1"])
        bar = f'<span class="bar"><i style="width:{100 * f1:.0f}%"></i></span>'
        cells = [html.escape(row["class"]), *(metric_text(n, float(row[n])) for n in ("precision", "recall"))]
        cells += [f"{metric_text('f1', f1)}{bar}", f"{int(row['images']):,}"]
        lines.append("<tr>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>")
    head = '<th>class</th><th>precision</th><th>recall</th><th class="bars">F1</th><th>images</th>'
    body = "\n".join(lines)
    table = f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>\n{body}\n</tbody></table></div>'
    return _folded(f"{len(rows)} classes", table, folded=len(rows) > 40)


def _picture(facts: Facts, name: str, caption: str, kind: str = "") -> str:
    if name not in facts.pictures:
        if name != "curves" and "test/accuracy" not in facts.metrics:
            return (
                _paragraph(f"No {name.replace('_', ' ')}: the run was never tested.")
                if name == "confusion_matrix"
                else ""
            )
        return _paragraph(f"There is no picture {name}.png in this run.")
    data = base64.b64encode(facts.pictures[name]).decode()
    alt = html.escape(f"{name.replace('_', ' ')}: {caption}")
    return (
        f'<figure class="{kind}"><img alt="{alt}" src="data:image/png;base64,{data}">'
        f"<figcaption>{html.escape(caption)}</figcaption></figure>"
    )


def _paragraph(text: str) -> str:
    return f'<p class="remark">{html.escape(text)}</p>' if text else ""


def _pre(text: str) -> str:
    return f"<pre>{html.escape(text)}</pre>"


def _folded(title: str, content: str, *, folded: bool = True) -> str:
    return f"<details><summary>{html.escape(title)}</summary>{content}</details>" if folded else content


# --------------------------------------------------------------------------------------------------------- model card


def model_card(facts: Facts) -> str:
    """The README.md of a run; every text of the run is escaped."""
    model, shape = facts.model, facts.model.image_shape
    colour = {1: "gray", 3: "RGB"}.get(shape[0], f"{shape[0]}-channel")
    names = ", ".join(_md(name) for name in model.class_names[:100])
    rest = f" and {model.num_classes - 100} more" if model.num_classes > 100 else ""
    header, rows = results_rows(facts)
    admitted = f", trusted_packages={list(facts.foreign)!r}" if facts.foreign else ""
    parts = [
        "---\npipeline_tag: image-classification\ntags: [image-classification, pytorch, vision_zoo]\n---",
        f"# {_md(facts.name)}",
        f"{_md(facts.network)} ({sum(p.numel() for p in model.parameters()):,} parameters), trained to classify images "
        f"of the data set {_md(facts.dataset)} with vision_zoo {_md(__version__)}.",
        *(f"> {_md(note)}" for note in facts.missing),
        "## Classes",
        f"{model.num_classes} classes: {names}{rest}.",
        "## Results",
        _md_table(header, rows) if rows else "None are known.",
        _md(certainty(facts)),
        "## Training",
        _md_table(["", ""], circumstances(facts)),
        "## Use",
        "From the command line:",
        _fenced(commands(facts), "sh"),
        "From Python:",
        _fenced(
            "import torch\n"
            "from vision_zoo.classifier import Classifier\n\n"
            f"model = Classifier.load_from_checkpoint({json.dumps(facts.weights)}{admitted})\n"
            f"images = torch.zeros(1, {shape[0]}, {shape[1]}, {shape[2]}, dtype=torch.uint8)  "
            "# (B, C, H, W), raw values of 0 to 255\n"
            "with torch.inference_mode():\n"
            "    probabilities = model(images).softmax(1)  # (B, classes)\n"
            "print(model.class_names[int(probabilities[0].argmax())])",
            "python",
        ),
        f"The model takes raw {colour} images of {shape[1]} x {shape[2]} pixels; the normalisation is part of it.",
        "## Limits",
        f"- It knows these {model.num_classes} classes only and gives one of them to any picture, whatever it shows.\n"
        "- The metrics hold for images that are made, framed and scaled like those of the data set. On others expect "
        "worse ones, and measure before relying on it.\n"
        "- Probabilities are as good as the calibration error says, and only on such images.\n"
        "- It was examined neither for bias nor for pictures made to deceive it, and is not meant for decisions about "
        "people.",
        "## Licence",
        "The licence of the data binds what may be done with these weights. Look it up where the data comes from, and "
        "state here the licence under which you pass on the model.",
    ]
    text = "\n\n".join(part for part in parts if part) + "\n\n"
    return f"{text}<!-- written by vision_zoo report, {_checksum(text)} -->\n"


def _md(text: str) -> str:
    """Text that Markdown shows as it is, on one line."""
    escaped = re.sub(r"([\\`*_{}\[\]()#+!|~$])", r"\\\1", " ".join(text.split()))
    escaped = escaped.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"://", ":&#47;/", escaped)  # no link that nobody meant to set


def _md_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [
        header,
        ["---", *("---:" if any(header) else "---" for _ in header[1:])],
        *([_md(c) for c in row] for row in rows),
    ]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _fenced(text: str, language: str) -> str:
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", text)), default=0))
    return f"{fence}{language}\n{text}\n{fence}"
