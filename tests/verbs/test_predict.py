import csv
import io
import json
import os
import re
import shutil
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from lightning.pytorch import Trainer
from PIL import Image

import vision_zoo
from tests import tiny
from tests.conftest import QUICK
from vision_zoo.__main__ import main
from vision_zoo.backbones import SmallCNN
from vision_zoo.backbones.fitting import head_of
from vision_zoo.classifier import Classifier
from vision_zoo.data import ImageFolder, MNIST5k
from vision_zoo.data.decode import decode_image
from vision_zoo.verbs import predict


@pytest.fixture(scope="module")
def digits():
    """uint8 (20, 1, 28, 28), two of each digit."""
    return MNIST5k().sample("test", 20).images


def save(path, image, mode="L", **options):
    """Write one digit as a file of a mode; it looks the same in all of them."""
    path.parent.mkdir(parents=True, exist_ok=True)
    gray = Image.fromarray(image[0].numpy())
    if mode == "I;16":
        drawn = Image.fromarray(image[0].numpy().astype(np.uint16) * 257)
    elif mode == "LA":
        drawn = Image.merge("LA", [gray, Image.new("L", gray.size, 255)])
    elif mode in ("RGBA", "P", "CMYK"):
        drawn = gray.convert("RGB").convert(mode)
    else:
        drawn = gray.convert(mode)
    drawn.save(path, **options)
    return path


OLD = "path,label,probability\na.png,7,0.5\n"  # a table of an earlier run


def run(run_folder, *words):
    return main(["predict", "--ckpt_path", str(run_folder), *map(str, words)])


def rows(path="predictions.csv"):
    with Path(path).open(newline="") as file:
        return list(csv.DictReader(file))


def model_of(run_folder):
    return Classifier.load_from_checkpoint(run_folder / "checkpoints" / "best.ckpt")


def test_probabilities_are_exactly_those_of_the_loaded_checkpoint(trained_run, here, digits):
    files = [save(here / "in" / f"{i:02}.png", image) for i, image in enumerate(digits)]
    assert run(trained_run, "--images", *files, "--top_k", 10) == 0
    model = model_of(trained_run)
    with torch.inference_mode():
        expected, order = model(digits).softmax(1).sort(descending=True)
    for row, path, probabilities, classes in zip(rows(), files, expected, order, strict=True):
        assert row["path"] == str(path)
        names = ["", *(f"_{rank}" for rank in range(2, 11))]
        assert [np.float32(row[f"probability{n}"]) for n in names] == list(probabilities.numpy())
        assert [row[f"label{n}"] for n in names] == [model.class_names[c] for c in classes]


@pytest.mark.parametrize(
    ("mode", "ending"),
    [("L", "png"), ("RGB", "png"), ("RGBA", "png"), ("LA", "png"), ("P", "png"), ("P", "gif"), ("I;16", "png"),
     ("I;16", "tiff"), ("CMYK", "tiff"), ("L", "bmp"), ("L", "webp"), ("L", "ppm")],
)  # fmt: skip
def test_a_digit_is_classified_alike_in_every_mode(trained_run, here, digits, mode, ending):
    save(here / "plain.png", digits[7])
    options = {"lossless": True} if ending == "webp" else {}
    save(here / f"other.{ending}", digits[7], mode, **options)
    assert run(trained_run, "--images", "plain.png", f"other.{ending}") == 0
    plain, other = rows()
    assert other["label"] == plain["label"]
    assert float(other["probability"]) == pytest.approx(float(plain["probability"]), abs=0.02)


def test_a_large_colour_photograph_turned_by_exif_is_upright(trained_run, here, digits):
    upright = Image.fromarray(digits[15][0].numpy()).convert("RGB").resize((560, 560), Image.Resampling.BICUBIC)
    exif = Image.Exif()
    exif[0x0112] = 6  # shown turned by 90 degrees clockwise
    upright.save("upright.jpg", quality=95)
    upright.rotate(90).save("turned.jpg", quality=95, exif=exif)
    assert run(trained_run, "--images", "upright.jpg", "turned.jpg") == 0
    first, second = rows()
    assert second["label"] == first["label"]
    assert float(second["probability"]) == pytest.approx(float(first["probability"]), abs=0.05)


def test_the_order_is_as_given_folders_sorted_and_every_file_once(trained_run, here, digits):
    for name in (
        "z.png",
        "f/b.png",
        "f/a/2.png",
        "f/a/10.PNG",
        "f/.hidden.png",
        "f/.git/x.png",
        "f/notes.txt",
        "g/1.png",
        "g/2.jpg",
    ):
        if name.endswith("txt"):
            (here / name).write_text("no image")
        else:
            save(here / name, digits[0])
    (here / "f" / "loop").symlink_to(here / "f")
    assert run(trained_run, "--images", "z.png", "f", "f/b.png", here / "z.png", "g/*.png") == 0
    assert [row["path"] for row in rows()] == ["z.png", "f/a/10.PNG", "f/a/2.png", "f/b.png", "g/1.png"]


def test_many_files_keep_their_order_over_batches(trained_run, here, digits):
    files = [save(here / "in" / f"{i:03}.png", digits[i % 20]) for i in range(150)]
    (here / "in" / "070.png").write_bytes(b"broken")
    assert run(trained_run, "--images", "in", "--batch_size", 7) == 0
    found = rows()
    assert [row["path"] for row in found] == [f"in/{path.name}" for path in files if path.name != "070.png"]
    expected = model_of(trained_run)(digits).argmax(1).tolist()
    kept = [i for i in range(150) if i != 70]
    assert [row["label"] for row in found] == [str(expected[i % 20]) for i in kept]


def test_unreadable_files_are_named_and_counted_and_the_rest_goes_on(trained_run, here, digits, capsys):
    good = save(here / "in" / "good.png", digits[0])
    for i in range(25):
        (here / "in" / f"bad{i:02}.png").write_bytes(good.read_bytes()[: 30 + i] if i else b"")
    assert run(trained_run, "--images", "in") == 0
    output, errors = capsys.readouterr()
    assert [row["path"] for row in rows()] == ["in/good.png"]
    assert "25 could not be read" in output
    assert "in/bad00.png: " in errors
    assert "in/bad19.png: " in errors
    assert "bad20" not in errors
    assert "... and 5 more" in errors


def test_no_readable_file_is_an_error_and_leaves_the_old_table(trained_run, here, capsys):
    (here / "bad.png").write_text("no image")
    (here / "predictions.csv").write_text(OLD)
    assert run(trained_run, "--images", "bad.png") == 2
    assert "cannot read the file as an image" in capsys.readouterr().err
    assert (here / "predictions.csv").read_text() == OLD
    assert sorted(path.name for path in here.iterdir() if path.is_file()) == ["bad.png", "predictions.csv"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--images", "gone.png"], "--images gone.png: .*gone.png not found"),
        (["--images", "empty"], "--images empty: no images in .*empty"),
        (["--images", "empty/*.png"], r"--images empty/\*.png: no images match"),
        ([], "predict needs images: --images"),
        (["--images", "a.png", "--top_k", "11"], "--top_k must be between 1 and the number of classes, 10, got 11"),
        (["--images", "a.png", "--output", "empty"], "--output empty cannot be written: it is a folder"),
        (["--images", "a.png", "--output", "a.png/x.csv"], "--output a.png/x.csv cannot be written"),
        (["--images", "a.png", "--format", "xml"], "format"),
        (["--images", "a.png", "--output", "x.parquet"], r"--output x\.parquet: predict writes \.csv and \.json"),
        (["--images", "a.png", "--embeddings", "empty"], "--embeddings empty cannot be written: it is a folder"),
        (["--images", "a.png", "--batch_size", "0"], "--batch_size must be at least 1, got 0"),
        (["--images", "a.png", "--accelerator", "tpu"], "--accelerator tpu: there is none here; there is cpu, auto"),
    ],
)
def test_wrong_usage_is_refused_by_name(trained_run, here, digits, capsys, words, message):
    (here / "empty").mkdir()
    save(here / "a.png", digits[0])
    assert run(trained_run, *words) == 2
    errors = capsys.readouterr().err
    assert "Traceback" not in errors
    assert re.search(message, errors), errors


def test_predict_without_a_checkpoint_is_refused(here, digits, capsys):
    save(here / "a.png", digits[0])
    assert main(["predict", "--images", "a.png"]) == 2
    assert "predict needs a trained network: --ckpt_path" in capsys.readouterr().err


def test_standard_output_holds_nothing_but_the_table(trained_run, here, digits, capsys):
    save(here / "a.png", digits[0])
    (here / "b.png").write_bytes(b"broken")
    assert run(trained_run, "--images", "a.png", "b.png", "--output", "-", "--top_k", 3, "--batch_size", 2) == 0
    output, errors = capsys.readouterr()
    (row,) = csv.DictReader(io.StringIO(output))
    assert list(row) == ["path", "label", "probability", "label_2", "probability_2", "label_3", "probability_3"]
    assert "classified 1 image in" in errors
    assert not (here / "predictions.csv").exists()


def test_a_device_or_pipe_is_never_replaced_by_a_file(trained_run, here, digits, capsys):
    save(here / "a.png", digits[0])
    os.mkfifo(here / "pipe")
    for output in ("pipe", "/dev/stdout", "/dev/fd/1"):
        assert run(trained_run, "--images", "a.png", "--output", output) == 2
        assert f"--output {output} cannot be written: it is not a regular file" in capsys.readouterr().err
    assert (here / "pipe").is_fifo()


@pytest.mark.parametrize("words", [["--format", "json"], ["--output", "out/p.json"]])
def test_json_says_the_same_as_the_table(trained_run, here, digits, words):
    for i in range(3):
        save(here / "in" / f"{i}.png", digits[i])
    assert run(trained_run, "--images", "in") == 0
    assert run(trained_run, "--images", "in", *words) == 0
    objects = json.loads((here / (words[1] if "/" in words[1] else "predictions.json")).read_text())
    numbers = [{k: float(v) if k.startswith("prob") else v for k, v in row.items()} for row in rows()]
    assert objects == numbers
    assert list(objects[0])[:4] == ["path", "label", "probability", "label_2"]


@pytest.mark.parametrize("channels", ["1", "3"])
def test_nothing_but_the_checkpoint_is_needed(channels, here, tmp_path_factory, monkeypatch):
    tiny.write_image_folder(here / "data", size=(90, 30))
    assert main(["fit", "--data", "ImageFolder", "--data.root", "data", "--data.image_size", "32",
                 "--data.val_split", "0", "--data.resize", "pad", "--model.backbone", "SmallCNN",
                 "--data.channels", channels, "--trainer.max_epochs", "1",
                 "--test_after_fit", "false"]) == 0  # fmt: skip
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    image = elsewhere / "wide.png"
    shutil.copy(here / "data" / "cat" / "0000.png", image)
    (checkpoint,) = here.glob("runs/*/*/checkpoints/last.ckpt")
    shutil.copy(checkpoint, elsewhere / "copy.ckpt")
    shutil.rmtree(here / "data")
    shutil.rmtree(here / "runs")
    monkeypatch.chdir(elsewhere)
    assert main(["predict", "--ckpt_path", "copy.ckpt", "--images", "wide.png"]) == 0
    (row,) = rows()
    model = Classifier.load_from_checkpoint("copy.ckpt")
    with torch.inference_mode():
        expected = model(decode_image(image, model.image_shape, "pad")).softmax(1).max()
    assert np.float32(row["probability"]) == expected.numpy()
    assert {row["label"], row["label_2"]} == {"cat", "dog"}


def test_images_are_stretched_as_the_arrays_of_training_were(here):
    images = np.random.default_rng(0).integers(0, 256, (40, 20, 40, 3), dtype=np.uint8)
    np.savez(here / "wide.npz", images=images, labels=np.arange(40) % 2)
    assert main(["fit", "--data", "ArrayFile", "--data.path", "wide.npz", "--data.image_size", "20",
                 "--model.backbone", "SmallCNN", "--trainer.max_epochs", "1",
                 "--test_after_fit", "false"]) == 0  # fmt: skip
    Image.fromarray(images[0]).save(here / "wide.png")
    assert main(["predict", "--ckpt_path", "last", "--images", "wide.png"]) == 0
    (row,) = rows()
    model = Classifier.load_from_checkpoint(next(here.glob("runs/*/*/checkpoints/last.ckpt")))
    with torch.inference_mode():
        stretched = model(decode_image(here / "wide.png", model.image_shape, "squash")).softmax(1).max()
        cut = model(decode_image(here / "wide.png", model.image_shape, "crop")).softmax(1).max()
    assert np.float32(row["probability"]) == stretched.numpy() != cut.numpy()


def test_negatives_are_noticed_and_invert_brings_them_back(trained_run, here, digits, capsys):
    for i, image in enumerate(digits):
        save(here / "plain" / f"{i:02}.png", image)
        save(here / "scans" / f"{i:02}.png", 255 - image)
    assert run(trained_run, "--images", "plain") == 0
    assert "hint" not in capsys.readouterr().err
    expected = [list(row.values())[1:] for row in rows()]
    assert run(trained_run, "--images", "scans") == 0
    assert "try --invert" in capsys.readouterr().err
    assert run(trained_run, "--images", "scans", "--invert", "true") == 0
    assert "hint" not in capsys.readouterr().err
    assert [list(row.values())[1:] for row in rows()] == expected
    assert run(trained_run, "--images", "plain", "--invert", "true") == 0
    assert "leave out --invert" in capsys.readouterr().err


def test_black_borders_stay_black_where_the_image_is_inverted(tmp_path):
    path = tmp_path / "wide.png"
    Image.new("L", (40, 10), 255).save(path)
    assert decode_image(path, (1, 28, 28), "pad", invert=True).unique().tolist() == [0]
    assert decode_image(path, (1, 28, 28), "pad").unique().tolist() == [0, 255]


def test_the_mean_of_other_classes_is_none_of_a_checkpoint_that_names_no_data(trained_run):
    model = model_of(trained_run)
    model.class_names = tuple("abcdefghij")
    model.hparams["mean"] = [0.86]
    assert predict.training_mean(model, MNIST5k()) == pytest.approx(0.86)


def test_the_published_mean_goes_before_a_recipe_that_scales_to_one(trained_run):
    model = model_of(trained_run)
    model.hparams["mean"] = [0.0]
    assert predict.training_mean(model, MNIST5k(mean=[0.0], std=[1.0])) == pytest.approx(MNIST5k.mean[0])
    assert predict.training_mean(model, None) is None


def test_names_of_files_may_hold_anything(trained_run, here, digits):
    names = ["a,b.png", 'quo"te.png', "line\nbreak.png", "[red]x.png", "日本.png", os.fsdecode(b"\xff.png")]
    for name in names:
        save(here / "in" / name, digits[0])
    assert run(trained_run, "--images", "in") == 0
    with Path("predictions.csv").open(newline="", errors="surrogateescape") as file:
        found = [row["path"] for row in csv.DictReader(file)]
    assert sorted(found) == sorted(f"in/{name}" for name in names)


def test_names_of_classes_and_images_may_be_any_bytes(here, capsys):
    names = [os.fsdecode(name) for name in (b"Gr\xfcn", b"Gr\xe4ulich")]
    tiny.write_image_folder(here / "in", names, count=20)
    words = ["--data", "ImageFolder", "--data.root", "in", "--data.image_size", "32", "--trainer.max_epochs", "1"]
    assert main([*QUICK, *words]) == 0
    for verb in (["test"], ["report"], ["predict", "--images", str(here / "in" / names[0] / "0001.png")]):
        assert main([verb[0], "--ckpt_path", "best", *verb[1:]]) == 0
    assert "Gr\\udcfcn" in capsys.readouterr().out
    with (here / "runs/default/version_0/test/per_class.csv").open("rb") as file:
        assert b"Gr\xfcn" in file.read()
    assert "per_class.csv is broken" not in (here / "runs/default/version_0/report.html").read_text()


def test_a_kind_of_image_that_cannot_be_read_is_named(trained_run, here, digits, capsys):
    save(here / "in" / "a.png", digits[0])
    (here / "in" / "b.heic").write_bytes(b"x")
    for other in ("clip.mpg", "features.h5"):
        (here / "in" / other).write_bytes(b"x")
    with pytest.warns(
        UserWarning, match=r"left out: 1 \.heic \(b\.heic\), 1 \.mpg \(clip\.mpg\), 1 \.h5 \(features\.h5\)"
    ):
        assert run(trained_run, "--images", "in") == 0
    assert len(rows()) == 1
    assert run(trained_run, "--images", "in/b.heic") == 2
    assert "in/b.heic: cannot identify image file" in capsys.readouterr().err


def test_a_stopped_run_leaves_the_old_table_and_no_temporary_file(trained_run, here, digits, monkeypatch):
    save(here / "a.png", digits[0])
    (here / "predictions.csv").write_text(OLD)

    def stop(file, *_, **__):
        file.write("half")
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(predict, "_write", stop)
    assert run(trained_run, "--images", "a.png") == 130
    assert sorted(path.name for path in here.iterdir() if path.is_file()) == ["a.png", "predictions.csv"]
    assert (here / "predictions.csv").read_text() == OLD


@pytest.mark.parametrize("kind", ["csv", "json"])
def test_a_table_of_another_origin_is_replaced_only_by_name(kind, trained_run, here, digits, capsys):
    save(here / "a.png", digits[0])
    table = here / f"predictions.{kind}"
    table.write_text("my own predictions")
    words = ("--images", "a.png", "--format", kind)
    assert run(trained_run, *words) == 2
    assert f"{table} is there and was not written by predict" in capsys.readouterr().err
    assert table.read_text() == "my own predictions"
    assert run(trained_run, *words, "--output", table.name) == 0
    first = table.read_text()
    assert run(trained_run, *words) == 0  # its own table is replaced
    assert table.read_text() == first


def test_decoding_stays_a_bounded_number_of_images_ahead(trained_run, here, digits, monkeypatch):
    files = [save(here / "a.png", digits[0])] * 5000
    read = []
    monkeypatch.setattr(predict, "decode_image", lambda *_: read.append(1) or digits[0])
    predictions = predict.predict_images(model_of(trained_run), files, batch_size=64)
    next(predictions)
    time.sleep(0.2)
    assert len(read) <= 64 * predict.TURN
    predictions.close()


def test_from_python_predictions_come_in_order_with_those_that_could_not_be_read(trained_run, here, digits):
    files = [save(here / f"{i}.png", image) for i, image in enumerate(digits[:5])]
    files[2].write_bytes(b"broken")
    found = list(predict.predict_images(model_of(trained_run), files, top_k=3, batch_size=2))
    assert [prediction.path for prediction in found] == files
    assert [len(prediction.labels) for prediction in found] == [3, 3, 0, 3, 3]
    assert [bool(prediction.problem) for prediction in found] == [False, False, True, False, False]
    assert found[0].brightness == pytest.approx(float(digits[0].float().mean()) / 255)


def test_the_data_of_a_plain_trainers_checkpoint_says_how_images_are_resized(here):
    folder = tiny.write_image_folder(here / "data", size=(90, 30))
    data = ImageFolder(str(folder), image_size=32, resize="pad", val_split=0)
    model = Classifier(SmallCNN, data.image_shape, data.class_names, optimizer=torch.optim.Adam)
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    trainer = Trainer(max_epochs=1, limit_train_batches=1, enable_checkpointing=False, **quiet)
    trainer.fit(model, datamodule=data)
    trainer.save_checkpoint("plain.ckpt")
    image = folder / "cat" / "0000.png"
    with torch.inference_mode():
        expected = model.eval()(decode_image(image, model.image_shape, "pad")[None]).softmax(1).max()
    assert main(["predict", "--ckpt_path", "plain.ckpt", "--images", str(image)]) == 0
    assert np.float32(rows()[0]["probability"]) == expected.numpy()
    assert np.float32(vision_zoo.predict("plain.ckpt", [image])[0]["probability"]) == expected.numpy()


def test_embeddings_are_the_inputs_of_the_last_layer_beside_the_rows(trained_run, here, digits, capsys):
    for number, digit in enumerate(digits[:5]):
        save(here / "in" / f"{number}.png", digit)
    (here / "in" / "2b.png").write_bytes(b"no image")
    assert run(trained_run, "--images", "in", "--batch_size", "2", "--embeddings", "e.npz") == 0
    found = np.load("e.npz")
    assert found["path"].tolist() == [row["path"] for row in rows()] == [f"in/{n}.png" for n in range(5)]
    assert found["label"].tolist() == [row["label"] for row in rows()]
    assert found["probability"].tolist() == [float(row["probability"]) for row in rows()]
    model = model_of(trained_run)
    head = model.backbone.get_submodule(head_of(model.backbone))
    assert (found["features"].dtype, found["features"].shape) == (np.float32, (5, head.in_features))
    again = head(torch.from_numpy(found["features"])).softmax(1).max(1).values
    torch.testing.assert_close(again.double(), torch.from_numpy(found["probability"]))
    best, last = (str(trained_run / "checkpoints" / f"{name}.ckpt") for name in ("best", "last"))
    assert main(["predict", "--ckpt_path", best, last, "--images", "in", "--embeddings", "e.npz"]) == 2
    assert "--embeddings are of one network" in capsys.readouterr().err
