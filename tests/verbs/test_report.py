"""report: the page and the model card of a run."""

import base64
import csv
import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch

from tests import tiny
from tests.conftest import QUICK
from vision_zoo.__main__ import main
from vision_zoo.backbones import LeNet5
from vision_zoo.checkpoints import Checkpoint
from vision_zoo.classifier import Classifier
from vision_zoo.formatting import duration
from vision_zoo.plots import plot_confusion_matrix, plot_curves, plot_images
from vision_zoo.verbs.report import write_report
from vision_zoo.verbs.report.facts import by_epoch, interval

EVIL = [
    "<script>alert(1)</script>",
    "a | b",
    "x\n# heading",
    "$\\frac",
    "&amp;",
    '"quoted"',
    "[link](http://evil)",
    "__",
    "`",
    "ok",
]


@pytest.fixture
def run(trained_run, here) -> Path:
    """A copy of a run, to be changed."""
    folder = here / "runs" / "default" / "version_0"
    shutil.copytree(trained_run, folder)
    return folder


@pytest.fixture
def hostile() -> Classifier:
    return Classifier(LeNet5, (1, 28, 28), EVIL).eval()


def report(*words: str) -> None:
    assert main(["report", *words, "--explain", "false"]) == 0


class Page(HTMLParser):
    """Tags, attributes and text of a page; complains of tags that are not closed."""

    VOID = ("meta", "img", "br", "link", "input", "hr")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.open: list[str] = []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" not in self.open:
            self.text += f"{data}\n"

    def images(self) -> list[bytes]:
        sources = [a["src"] or "" for tag, a in self.tags if tag == "img"]
        return [base64.b64decode(source.removeprefix("data:image/png;base64,"), validate=True) for source in sources]


def test_a_run_becomes_one_page_with_its_figures_and_images(run, capsys):
    report("--ckpt_path", str(run))
    assert capsys.readouterr().out.splitlines() == [str(run / "report.html"), str(run / "README.md")]
    page = Page((run / "report.html").read_text())
    metrics = json.loads((run / "results.json").read_text())["metrics"]
    for name in ("test/accuracy", "val/accuracy", "test/f1", "test/top5_accuracy"):
        assert f"{100 * metrics[name]:.2f} %" in page.text
    assert page.images() == [(run / f"{n}.png").read_bytes() for n in ("curves", "confusion_matrix", "mistakes")]
    for text in ("default", "LeNet5 on MNIST5k, 10 classes", "61,706", "seed", "torch 2.", "precision", "recall"):
        assert text in page.text
    assert "vision_zoo fit --config runs/default/version_0/config.yaml" in page.text
    assert "class_path: vision_zoo.backbones.LeNet5" in page.text
    assert "null" not in page.text.split("class_path: vision_zoo.backbones.LeNet5")[1].split("</pre>")[0]


def test_the_page_loads_nothing_from_elsewhere(run):
    report("--ckpt_path", "best")
    text = (run / "report.html").read_text()
    page = Page(text)
    assert {tag for tag, _ in page.tags}.isdisjoint({"script", "link", "iframe", "object", "embed", "base"})
    for tag, attributes in page.tags:
        for name in ("src", "href", "srcset", "data", "action"):
            assert (attributes.get(name) or "data:").startswith("data:"), tag
    assert not re.search(r"url\(|@import|https?://", text)


def test_the_same_run_gives_the_same_files_again(run):
    report("--ckpt_path", str(run))
    first = (run / "report.html").read_bytes(), (run / "README.md").read_bytes()
    report("--ckpt_path", str(run / "checkpoints" / "best.ckpt"))
    assert first == ((run / "report.html").read_bytes(), (run / "README.md").read_bytes())


@pytest.mark.parametrize(("output", "page"), [("there", "there/report.html"), ("there/mine.html", "there/mine.html")])
def test_output_is_a_folder_or_the_page(output, page, run, here):
    report("--ckpt_path", str(run), "--output", output)
    assert (here / page).is_file()
    assert (here / "there" / "README.md").is_file()
    assert not (run / "report.html").exists()


def test_the_commands_of_a_report_name_the_run_from_the_working_directory(run, here, monkeypatch):
    report("--ckpt_path", str(run))
    page = Page((run / "report.html").read_text())
    assert "vision_zoo test --ckpt_path runs/default/version_0" in page.text
    (here / "elsewhere").mkdir()
    monkeypatch.chdir(here / "elsewhere")
    report("--ckpt_path", str(run))
    assert f"vision_zoo test --ckpt_path {run}" in Page((run / "report.html").read_text()).text


def test_a_card_that_was_edited_is_not_replaced(run, capsys):
    report("--ckpt_path", str(run))
    report("--ckpt_path", str(run))
    card = run / "README.md"
    card.write_text(card.read_text().replace("## Licence", "## Licence\n\nCC BY 4.0"))
    edited = card.read_text()
    assert main(["report", "--ckpt_path", str(run)]) == 2
    assert "README.md is there and was not written by report, or was edited since" in capsys.readouterr().err
    assert card.read_text() == edited


def test_a_page_of_another_origin_is_not_replaced_unless_it_is_named(run, here, capsys):
    (here / "report.html").write_text("coverage")
    assert main(["report", "--ckpt_path", str(run), "--output", "."]) == 2
    assert "report.html is there and was not written by report" in capsys.readouterr().err
    assert (here / "report.html").read_text() == "coverage"
    report("--ckpt_path", str(run), "--output", "report.html")


def test_a_readme_of_another_origin_is_never_replaced(run, here, capsys):
    (here / "README.md").write_text("my project")
    assert main(["report", "--ckpt_path", str(run), "--output", "."]) == 2
    assert "README.md is there and was not written by report" in capsys.readouterr().err
    assert (here / "README.md").read_text() == "my project"
    assert not (here / "report.html").exists()


def test_a_report_needs_a_checkpoint(here, capsys):
    assert main(["report"]) == 2
    assert "report needs a trained network: --ckpt_path" in capsys.readouterr().err


# ------------------------------------------------------------------------------------------------ what is not there


def test_a_run_that_was_never_tested_says_so(run):
    results = json.loads((run / "results.json").read_text())
    results["metrics"] = {name: value for name, value in results["metrics"].items() if not name.startswith("test/")}
    (run / "results.json").write_text(json.dumps(results))
    for name in ("per_class.csv", "confusion_matrix.png", "mistakes.png"):
        (run / name).unlink()
    report("--ckpt_path", str(run))
    page, card = Page((run / "report.html").read_text()), (run / "README.md").read_text()
    assert "never tested" in page.text
    assert "test accuracy" not in page.text
    assert len(page.images()) == 1
    assert "never tested" in card


def test_a_later_test_fills_in_the_figures(run):
    results = json.loads((run / "results.json").read_text())
    accuracy = results["metrics"].pop("test/accuracy")
    (run / "results.json").write_text(json.dumps(results))
    (run / "test").mkdir()
    for name in ("per_class.csv", "confusion_matrix.png", "mistakes.png", "test.json"):
        (run / name).rename(run / "test" / name)
    report("--ckpt_path", str(run))
    page = Page((run / "report.html").read_text())
    assert f"{100 * accuracy:.2f} %" in page.text
    assert len(page.images()) == 3
    assert "never tested" not in page.text


def test_a_run_that_was_stopped_shows_its_epochs(run):
    for name in ("results.json", "curves.png", "per_class.csv", "confusion_matrix.png", "mistakes.png"):
        (run / name).unlink()
    report("--ckpt_path", str(run))
    page = Page((run / "report.html").read_text())
    assert "The run has no results" in page.text
    assert "Epochs" in page.text
    assert "There is no image curves.png in this run" in page.text
    assert page.images() == []


@pytest.mark.parametrize("name", ["results.json", "per_class.csv", "metrics.csv", "curves.png"])
def test_a_broken_file_is_named_and_the_rest_is_shown(name, run):
    (run / name).write_text("class,precision\n{broken: [")
    report("--ckpt_path", str(run))
    text = Page((run / "report.html").read_text()).text
    assert name in text
    assert "LeNet5" in text


def test_a_checkpoint_outside_a_run_is_described_by_itself(run, here):
    shutil.copy(run / "checkpoints" / "best.ckpt", here / "digits.ckpt")
    report("--ckpt_path", "digits.ckpt", "--output", "card")
    card = (here / "card" / "README.md").read_text()
    assert "outside a run folder" in card
    assert f'load_from_checkpoint("{here / "digits.ckpt"}")' in card
    assert "61,706 parameters" in card


# ------------------------------------------------------------------------------------------------- texts of the run


def test_hostile_names_are_shown_and_do_nothing(hostile, here):
    run = here / "runs" / "<b>bold" / "version_0"
    (run / "checkpoints").mkdir(parents=True)
    results = {
        "config": "<b>bold",
        "metrics": {"test/accuracy": 0.5},
        "device": "<img src=x>",
        "versions": {"<i>": "<u>"},
    }
    (run / "results.json").write_text(json.dumps(results))
    with (run / "per_class.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["class", "precision", "recall", "f1", "images"])
        table.writerows([name, 0.5, 0.5, 0.5, 10] for name in EVIL)
    page_file, card_file = write_report(hostile, Checkpoint(run / "checkpoints" / "best.ckpt", {}))
    page = Page(page_file.read_text())
    assert {tag for tag, _ in page.tags}.isdisjoint({"script", "b>bold", "u", "img"})
    for name in EVIL:
        assert name in page.text
    card = re.sub(r"```.*?```", "", card_file.read_text(), flags=re.DOTALL)  # code shows such words as they are
    assert not re.search(r"^# heading", card, re.MULTILINE)
    for raw in ("<script>", "](http", "<b>", "<img"):
        assert raw not in card


@pytest.mark.draws
def test_hostile_names_can_be_drawn(tmp_path, recwarn):
    matrix = torch.eye(len(EVIL), dtype=torch.int64)
    plot_confusion_matrix(matrix, EVIL, tmp_path / "matrix.png", EVIL[3])
    plot_images(torch.zeros(3, 1, 8, 8, dtype=torch.uint8), EVIL[3:6], tmp_path / "images.png", EVIL[3])
    assert {path.name for path in tmp_path.iterdir() if path.stat().st_size} == {"matrix.png", "images.png"}


def test_the_cards_python_example_runs(run, here, capsys):
    report("--ckpt_path", str(run))
    code = re.search(r"```python\n(.*?)```", (run / "README.md").read_text(), re.DOTALL)
    assert code is not None
    capsys.readouterr()
    exec(code[1], {})  # as a reader would, in the folder that holds runs
    assert capsys.readouterr().out.strip() in set("0123456789")


def test_the_card_names_classes_limits_and_licence(run):
    report("--ckpt_path", str(run))
    card = (run / "README.md").read_text()
    for text in (
        "10 classes: 0, 1, 2, 3, 4, 5, 6, 7, 8, 9.",
        "## Limits",
        "## Licence",
        "28 x 28 pixels",
        "95 % interval",
    ):
        assert text in card


def test_a_thousand_classes_do_not_fill_the_card(here):
    model = Classifier(LeNet5, (1, 28, 28), [f"class {k}" for k in range(1000)])
    _, card = write_report(model, Checkpoint(here / "alone.ckpt", {}), "out")
    assert "and 900 more" in card.read_text()


# ---------------------------------------------------------------------------------------------------------- figures


def test_the_last_value_of_an_epoch_counts():
    rows = [
        {"epoch": 0.0, "step": 5.0, "val/loss": 2.0},
        {"epoch": 0.0, "step": 10.0, "val/loss": 1.0, "train/loss": 1.5, "train/loss_step": 9.0},
        {"epoch": 1.0, "step": 15.0, "train/loss_step": 8.0},
    ]
    assert by_epoch(rows) == [{"epoch": 0.0, "step": 10.0, "val/loss": 1.0, "train/loss": 1.5}]


def test_the_interval_is_wilsons():
    low, high = interval(0.9, 100)  # 0.8256 to 0.9448, as statsmodels gives it
    assert (round(low, 4), round(high, 4)) == (0.8256, 0.9448)
    assert interval(1.0, 1000)[1] == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("seconds", "text"), [(1.84, "1.8 s"), (59.9, "59.9 s"), (75, "1 min 15 s"), (7260, "2 h 1 min")]
)
def test_durations_are_written_as_people_say_them(seconds, text):
    assert duration(seconds) == text


@pytest.mark.draws
@pytest.mark.parametrize(
    "rows",
    [
        "epoch,step\n",
        "epoch,step,train/loss,train/accuracy\n0,1,0.5,0.5\n",
        "epoch,step,train/loss,val/loss,val/accuracy\n0,1,0.5,nan,0.1\n1,2,0,0.1,0.2\n",
        "epoch,step,train/loss_step\n0,1,100\n0,2,1\n0,3,0.001\n",
    ],
)
def test_curves_are_drawn_of_whatever_there_is(rows, tmp_path):
    (tmp_path / "metrics.csv").write_text(rows)
    plot_curves(tmp_path / "metrics.csv", tmp_path / "curves.png", "$a_b$")
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow  # 3 s
def test_figures_of_other_images_or_averaged_ones_are_not_taken_for_the_runs_own(here):
    assert main([*QUICK, "--trainer.max_epochs", "1", "--test_after_fit", "false"]) == 0
    run = here / "runs" / "default" / "version_0"
    for words in (["--tta", "flip"], ["--ckpt_path", str(run / "checkpoints" / "last.ckpt")]):
        assert main(["test", "--ckpt_path", "best", *words]) == 0
        report("--ckpt_path", "best")
        assert "This run was never tested" in (run / "README.md").read_text()
    assert main(["test", "--ckpt_path", "best"]) == 0
    report("--ckpt_path", "best")
    assert "This run was never tested" not in (run / "README.md").read_text()


@pytest.mark.slow  # 3 s
def test_a_run_whose_own_test_averages_views_is_reported_with_a_later_one(here):
    assert main([*QUICK, "--trainer.max_epochs", "1", "--tta", "flip", "--test_after_fit", "false"]) == 0
    run = here / "runs" / "default" / "version_0"
    for words, reported in ((["--tta", "none"], False), ([], True)):
        assert main(["test", "--ckpt_path", "best", *words]) == 0
        report("--ckpt_path", "best")
        card = (run / "README.md").read_text()
        assert ("This run was never tested" in card) is not reported
        assert ("flip: predictions averaged over views" in card) is reported


def test_figures_of_a_test_part_that_was_cut_otherwise_are_not_taken_for_the_runs_own(here):
    tiny.write_image_folder(here / "images", count=20)
    words = ["--data", "ImageFolder", "--data.root", "images", "--data.image_size", "28"]
    words += ["--trainer.max_epochs", "1", "--test_after_fit", "false"]
    assert main([*QUICK, *words]) == 0
    for change, untested in ((["--data.seed", "7"], True), (["--data.test_split", "0.5"], True), ([], False)):
        assert main(["test", "--ckpt_path", "best", *change]) == 0
        report("--ckpt_path", "best")
        assert ("This run was never tested" in (here / "runs/default/version_0/README.md").read_text()) is untested


def test_figures_of_a_checkpoint_that_training_has_replaced_are_not_taken_for_the_new_ones(here):
    words = [*QUICK, "--trainer.max_epochs", "1", "--model.scheduler", "null", "--data.val_split", "0"]
    assert main([*words, "--test_after_fit", "false"]) == 0
    assert main(["test", "--ckpt_path", "best"]) == 0
    assert main(["fit", "--ckpt_path", "last", "--trainer.max_epochs", "2", "--test_after_fit", "false"]) == 0
    report("--ckpt_path", "best")
    assert "This run was never tested" in (here / "runs/default/version_0/README.md").read_text()


def test_where_the_images_of_a_later_test_lay_is_reported(here):
    for seed, name in enumerate(("mine", "other")):
        tiny.write_npz(here / f"{name}.npz", 100, 20 + seed)
    words = ["--data", "ArrayFile", "--data.path", "mine.npz", "--trainer.max_epochs", "1", "--test_after_fit", "false"]
    assert main([*QUICK, *words]) == 0
    assert main(["test", "--ckpt_path", "best", "--data.path", "other.npz"]) == 0
    report("--ckpt_path", "best")
    page = Page((here / "runs/default/version_0/report.html").read_text())
    assert f"Measured on 21 test images of {here / 'other.npz'}" in page.text


def test_whose_figures_they_are_is_reported_for_the_last_checkpoint(run):
    report("--ckpt_path", str(run / "checkpoints" / "last.ckpt"))
    assert "The validation and test metrics are of best.ckpt, not of last.ckpt" in (run / "README.md").read_text()


def test_a_page_of_the_last_checkpoint_claims_no_other_figures_for_the_best_one(here):
    assert main([*QUICK, "--trainer.max_epochs", "1", "--test_after_fit", "false"]) == 0
    last = here / "runs/default/version_0/checkpoints/last.ckpt"
    assert main(["test", "--ckpt_path", str(last)]) == 0
    report("--ckpt_path", str(last))  # which is the best one under its second name
    page = Page((here / "runs/default/version_0/report.html").read_text())
    assert "Measured on 1,000 test images" in page.text
    assert "are of best.ckpt, not of last.ckpt" not in page.text
    assert "the others are of best.ckpt" not in page.text


def test_odd_values_in_a_checkpoint_that_others_made_are_left_out(run):
    file = run / "checkpoints" / "best.ckpt"
    content = torch.load(file, weights_only=True)
    content["vision_zoo"]["config"]["trainer"] = {"default_root_dir": 3, "odd": torch.zeros(1)}
    content["vision_zoo"]["config"]["data"]["init_args"] = ["x"]
    _, card = write_report(Classifier.from_checkpoint(content), Checkpoint(file, content))
    assert "LeNet5" in card.read_text()


def test_the_report_shows_where_the_network_looked(run, monkeypatch):
    assert main(["report", "--ckpt_path", str(run)]) == 0
    page = (run / "report.html").read_text()
    assert 'alt="looks: Where the network looked' in page
    report("--ckpt_path", str(run))
    assert "looked" not in (run / "report.html").read_text()
    monkeypatch.setattr("vision_zoo.verbs.report.looks.find_spec", lambda _: None)
    assert main(["report", "--ckpt_path", str(run)]) == 0
    page = (run / "report.html").read_text()
    assert "Pictures of where the network looked need captum" in page
    assert 'alt="looks' not in page


def test_images_of_other_classes_are_not_shown(here, capsys):
    tiny.write_image_folder(here / "in", ("cat", "dog"), count=8)
    assert main([*QUICK, "--data", "ImageFolder", "--data.root", "in", "--data.image_size", "28"]) == 0
    tiny.write_image_folder(here / "in", ("bird",), count=8)
    assert main(["report", "--ckpt_path", "last"]) == 0
    page = (here / "runs/default/version_0/report.html").read_text()
    assert "The test images cannot be shown" in page
    assert 'alt="looks' not in page
