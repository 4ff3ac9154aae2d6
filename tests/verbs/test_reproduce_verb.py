"""reproduce: the same run again, or where it is another one."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from vision_zoo.__main__ import main
from vision_zoo.verbs.reproduce import _spread, reproduce


@pytest.fixture
def run(trained_run, here) -> Path:
    """A copy of a run, in a folder of its own."""
    return Path(shutil.copytree(trained_run, here / "runs" / "default" / "version_0"))


def change(run: Path, **about) -> None:
    for name in ("best", "last"):
        content = torch.load(run / "checkpoints" / f"{name}.ckpt")
        content["vision_zoo"]["made_with"] |= about
        torch.save(content, run / "checkpoints" / f"{name}.ckpt")


def test_a_run_comes_out_the_same(run, here, capsys):
    assert main(["reproduce", str(run)]) == 0
    out = capsys.readouterr().out
    assert out.endswith("bit-identical: weights and metrics.csv, after 20 steps\n")
    assert "differs from the run" not in out
    again = here / "runs" / "default" / "version_1"
    assert (again / "metrics.csv").read_bytes() == (run / "metrics.csv").read_bytes()


@pytest.mark.slow
def test_the_checkpoint_alone_is_enough(run, here, capsys):
    """3 s."""
    shutil.copy(run / "checkpoints" / "last.ckpt", "moved.ckpt")
    shutil.rmtree("runs")
    assert main(["reproduce", "moved.ckpt", "--output", "out"]) == 0
    assert capsys.readouterr().out.endswith("bit-identical: weights, after 20 steps\n")
    assert (here / "out" / "runs" / "default" / "version_0" / "results.json").is_file()


def test_another_outcome_is_told_with_where_it_differs_first(run, here, capsys):
    versions = {"torch": "1.0", "python": "2.7"}
    change(run, versions=versions, device="an abacus", data={"train": {"images": 3}})
    text = (run / "metrics.csv").read_text().splitlines()
    columns, row = text[0].split(","), text[1].split(",")
    row[columns.index("val/accuracy")] = "0.75"
    (run / "metrics.csv").write_text("\n".join([text[0], ",".join(row), *text[2:], ""]))
    for name, content in {"version_7": "", "version_8": "[]", "version_9": '{"metrics": 3}'}.items():  # no runs
        (run.parent / name).mkdir()
        (run.parent / name / "results.json").write_text(content)
    assert main(["reproduce", str(run)]) == 1
    out, err = capsys.readouterr()
    for what in ("torch: 1.0 -> ", "python: 2.7 -> ", "device: an abacus -> cpu"):
        assert out.index(f"differs from the run: {what}") < out.index("epoch 1/2")  # before the training
    assert "differs from the run: images of train: {'images': 3} -> {'images': 3500" in out
    assert "different: metrics.csv first differs in epoch 1, step 10: val/accuracy 0.75 -> " in err
    assert "weights after 20 steps are the same" in err


@pytest.mark.slow
@pytest.mark.parametrize(("accuracies", "code"), [((0.55, 0.60, 0.58), 0), ((0.90, 0.91, 0.92), 1)])
def test_runs_of_other_seeds_tell_the_spread(run, here, capsys, accuracies, code):
    """Those beside it of the same configuration; the run's own weights are changed, so that it is not the same.

    6 s.
    """
    content = torch.load(run / "checkpoints" / "last.ckpt")
    next(iter(content["state_dict"].values())).add_(1e-7)
    torch.save(content, run / "checkpoints" / "last.ckpt")
    for seed, accuracy in enumerate(accuracies):
        other = run if not seed else Path(shutil.copytree(run, run.with_name(f"version_{seed}")))
        config = (run / "config.yaml").read_text()
        (other / "config.yaml").write_text(config.replace("seed_everything: 0", f"seed_everything: {seed}"))
        results = json.loads((run / "results.json").read_text())
        results["metrics"]["test/accuracy"] = accuracy
        (other / "results.json").write_text(json.dumps(results))
    assert main(["reproduce", str(run)]) == code
    told = "".join(capsys.readouterr())
    assert ("within the spread of its seeds: " if not code else "different: ") in told
    assert "and 3 seeds let " in told
    assert "metrics.csv is the same; weights after 20 steps differ" in told


@pytest.mark.parametrize(("accuracy", "within"), [(0.911, True), (0.910, False), (1.009, True), (1.010, False)])
def test_the_spread_is_the_prediction_interval_of_one_more_run(accuracy, within, here):
    """Of .95, .96, .97: .96 +- 4.303 (Student, 2 degrees of freedom, 95 %) x .01 x sqrt(1 + 1/3) = .0497."""
    runs = [here / "study/trial/runs/default" / f"version_{number}" for number in range(4)]
    values = [0.95, 0.96, 0.97, accuracy]
    for seed, (folder, value) in enumerate(zip(runs, values, strict=True)):
        folder.mkdir(parents=True)
        (folder / "config.yaml").write_text(f"seed_everything: {seed}\n")
        (folder / "results.json").write_text(json.dumps({"metrics": {"test/accuracy": value}}))
    assert _spread(runs[0], runs[3])[1] is within


@pytest.mark.slow
def test_it_computes_in_the_way_that_the_run_chose(run, here, capsys):
    """3 s."""
    for name in ("best", "last"):
        content = torch.load(run / "checkpoints" / f"{name}.ckpt")
        content["callbacks"]["Performance"] |= {"channels_last": True}
        torch.save(content, run / "checkpoints" / f"{name}.ckpt")
    main(["reproduce", str(run)])
    assert "as the run began), channels_last" in capsys.readouterr().out


def test_what_was_stopped_or_taught_is_refused(run, here, capsys):
    (run / "results.json").unlink()
    assert main(["reproduce", str(run)]) == 2
    assert "stopped before its end: continue it first: vision_zoo fit --ckpt_path" in capsys.readouterr().err
    content = torch.load(run / "checkpoints" / "last.ckpt")
    torch.save({**content, "global_step": 0}, here / "taught.ckpt")
    assert main(["reproduce", "taught.ckpt"]) == 2
    assert "what teach has made, teach makes again" in capsys.readouterr().err
    assert main(["reproduce"]) == 2
    assert "reproduce needs one run" in capsys.readouterr().err


@pytest.mark.parametrize(("data", "option"), [("ArrayFile", "path"), ("MNIST", "root")])
def test_images_that_have_moved_are_named(data, option, run, monkeypatch):
    content = torch.load(run / "checkpoints" / "last.ckpt")
    content["vision_zoo"]["config"]["data"] = {
        "class_path": f"vision_zoo.data.{data}",
        "init_args": {option: "/old", "batch_size": 4},
    }
    torch.save(content, run / "checkpoints" / "last.ckpt")
    given = []
    reproduce([str(run)], lambda _, config: given.append(config["data"]["init_args"]), data_root="new")
    assert given == [{option: str(Path("new").absolute()), "batch_size": 4}]
