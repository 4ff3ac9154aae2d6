"""What a command does once: it reads and vets its checkpoint, and builds its network without random weights."""

import shutil
from pathlib import Path

import pytest
from PIL import Image

from vision_zoo import checkpoints
from vision_zoo.__main__ import main
from vision_zoo.classifier import Classifier


@pytest.mark.parametrize("verb", ["fit", "validate", "test", "predict", "export", "summary", "report", "show"])
def test_a_checkpoint_is_read_and_vetted_once(verb, trained_run, here, monkeypatch):
    read, vetted = [], []
    original, untrusted = checkpoints.read_torch_file, checkpoints.untrusted

    def reading(path, **more):
        read.append(Path(path).name)
        return original(path, **more)

    def vetting(*words):
        vetted.append(words)
        return untrusted(*words)

    monkeypatch.setattr(checkpoints, "read_torch_file", reading)
    monkeypatch.setattr(checkpoints, "untrusted", vetting)
    Image.new("L", (28, 28)).save("a.png")
    more = {
        "fit": ["--trainer.max_epochs", "2", "--test_after_fit", "false"],
        "predict": ["--images", "a.png"],
        "export": ["--format", "state_dict", "--output", "weights.pt"],
        "report": ["--output", "page"],
        "test": ["--output", "figures", "--trainer.limit_test_batches", "1"],
    }
    shutil.copytree(trained_run, "copy")  # fit goes on in it
    assert main([verb, "--ckpt_path", "copy", *more.get(verb, [])]) == 0
    # (export reads the file that it has written, to compare it.)
    assert [name for name in read if name.endswith(".ckpt")] == ["last.ckpt" if verb == "fit" else "best.ckpt"]
    assert len(vetted) == 1


@pytest.mark.parametrize("verb", ["validate", "test", "predict"])
def test_no_random_weights_are_drawn_on_the_way_to_loaded_ones(verb, trained_run, here, monkeypatch):
    drawn = []
    original = Classifier.load_state_dict

    def loading(self, *words, **options):
        drawn.extend(bool(weight.any()) for name, weight in self.named_parameters() if name.endswith("weight"))
        return original(self, *words, **options)

    monkeypatch.setattr(Classifier, "load_state_dict", loading)
    Image.new("L", (28, 28)).save("a.png")
    words = ["--images", "a.png"] if verb == "predict" else ["--trainer.limit_test_batches", "1"]
    words += ["--output", "figures"] if verb == "test" else []
    assert main([verb, "--ckpt_path", str(trained_run), *words]) == 0
    assert drawn
    assert not any(drawn)
