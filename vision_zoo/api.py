"""vision_zoo from Python: five functions, thin calls of the commands.

What is wrong with their arguments, a checkpoint or the data is a VisionZooError, whose message has the way out.
"""

from __future__ import annotations

import json
import signal
from argparse import ArgumentError
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vision_zoo.errors import ConfigError

if TYPE_CHECKING:  # torch is imported when a function is called
    from vision_zoo.classifier import Classifier

# A value as YAML, also paths, and numbers of NumPy and torch.
_YAML = json.JSONEncoder(ensure_ascii=False, default=lambda x: x.item() if hasattr(x, "item") else str(x)).encode


@dataclass(frozen=True)
class Run:
    """A run folder."""

    path: Path  # absolute
    results: dict[str, Any] = field(repr=False, default_factory=dict)  # of results.json; empty for a run that goes on

    @property
    def metrics(self) -> dict[str, float]:
        """The metrics in results, such as test/accuracy, a fraction."""
        return dict(self.results.get("metrics", {}))

    def __str__(self) -> str:
        return str(self.path)

    @classmethod
    def at(cls, path: str | Path) -> Run:
        """The run in a folder."""
        file = Path(path, "results.json")
        return cls(Path(path).resolve(), json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {})


def fit(recipe: str | Path | None = None, **options: Any) -> Run | None:
    """Train a network, as ``vision_zoo fit --config RECIPE`` does.

    Args:
        recipe: name of a shipped recipe, or a YAML file; by default the default recipe.
        options: those of the command, nested (``trainer={"max_epochs": 3}``) or dotted
            (``**{"trainer.max_epochs": 3}``).

    Returns:
        The run; None with ``fast_dev_run`` and ``barebones``, which leave nothing.

    Ray Tune (https://docs.ray.io, ``pip install 'ray[tune]'``) searches with it, on as many machines as it has::

        from ray import tune

        def trial(options):
            import vision_zoo

            tune.report(vision_zoo.fit("cnn_mnist5k", test_after_fit=False, **options).metrics)

        rates = {"model.optimizer.lr": tune.loguniform(1e-4, 1e-1), "trainer.max_epochs": 2}
        how = tune.TuneConfig(metric="val/accuracy", mode="max", num_samples=4)
        best = tune.Tuner(trial, param_space=rates, tune_config=how).fit().get_best_result()
    """
    folder = _run(["fit", *([] if recipe is None else ["--config", str(recipe)]), *_words(options)])
    return None if folder is None else Run.at(folder)


def load(path: str | Path, trusted_packages: Sequence[str] = ()) -> Classifier:
    """Load a trained network, which takes raw uint8 images (B, C, H, W) and gives logits (B, K).

    Args:
        path: a checkpoint, a run folder (its best), or best or last of the newest run.
        trusted_packages: further packages whose classes the checkpoint may name.

    Returns:
        The classifier, on the CPU, in eval mode.
    """
    from vision_zoo.checkpoints import open_checkpoint  # noqa: PLC0415  # imports torch
    from vision_zoo.classifier import Classifier  # noqa: PLC0415  # as above

    return Classifier.from_checkpoint(open_checkpoint(str(path), trusted_packages).content)


def predict(
    path: str | Path,
    images: str | Path | Iterable[str | Path],
    top_k: int = 1,
    invert: bool = False,
    trusted_packages: Sequence[str] = (),
) -> list[dict[str, Any]]:
    """Classify image files.

    Args:
        path: a checkpoint, a run folder (its best), or best or last of the newest run.
        images: files, folders and patterns.
        top_k: labels for each image.
        invert: turn dark into light first.
        trusted_packages: further packages whose classes the checkpoint may name.

    Returns:
        A row for each image that can be read: path, label, probability, and label_2, probability_2, ...; of a network
        with a threshold for known images also answer, the label or "none of these", and known_score.
    """
    from vision_zoo.checkpoints import open_checkpoint  # noqa: PLC0415  # all of these import torch
    from vision_zoo.classifier import Classifier  # noqa: PLC0415  # as above
    from vision_zoo.verbs.image_files import find_images  # noqa: PLC0415  # as above
    from vision_zoo.verbs.predict import predict_images  # noqa: PLC0415  # as above

    checkpoint = open_checkpoint(str(path), trusted_packages)
    paths = find_images([str(image) for image in ([images] if isinstance(images, str | Path) else images)])
    model = Classifier.from_checkpoint(checkpoint.content)
    found = predict_images(model, paths, top_k, checkpoint.resizing, invert)
    return [prediction.as_dict() for prediction in found if not prediction.problem]


def test(path: str | Path, **options: Any) -> dict[str, float]:
    """Score a trained network on the test images of its dataset.

    Args:
        path: a checkpoint, a run folder (its best), or best or last of the newest run.
        options: those of ``vision_zoo test``, as in `fit`.

    Returns:
        The metrics by name, such as test/accuracy, a fraction.
    """
    return dict(_run(["test", "--ckpt_path", str(path), *_words(options)]))


def runs(root: str | Path = ".") -> list[Run]:
    """The runs below a folder that holds "runs", the oldest first."""
    folders = [folder for folder in Path(root).glob("runs/*/version_*") if folder.is_dir()]
    written = {f: [c.stat().st_mtime_ns for c in (*f.glob("checkpoints/*.ckpt"), f)] for f in folders}
    return [Run.at(f) for f in sorted(folders, key=lambda f: max(written[f][:-1], default=written[f][-1]))]


def _run(words: list[str]) -> Any:
    """Run a command, and leave the program as it was: without a group of processes, Ctrl-C and warnings as before."""
    from vision_zoo.cli.main import execute  # noqa: PLC0415  # imports torch
    from vision_zoo.cli.messages import explain, quiet  # noqa: PLC0415  # as above
    from vision_zoo.training.processes import leave_processes  # noqa: PLC0415  # as above

    before = signal.getsignal(signal.SIGINT)
    try:
        return quiet()(execute)(words)
    except ArgumentError as error:
        raise ConfigError(explain(error)[0]) from error
    except SystemExit as error:  # Lightning turns Ctrl-C into one, and ignores more of them
        raise (error.__context__ if isinstance(error.__context__, KeyboardInterrupt) else error) from None
    finally:
        leave_processes()
        with suppress(ValueError, TypeError):  # of another thread, or of a handler that is not Python's
            signal.signal(signal.SIGINT, before)


def _words(options: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Options as words of the command line; a value that is no string is written as YAML."""
    words: list[str] = []
    for name, value in options.items():
        if isinstance(value, Mapping):
            words += _words(value, f"{prefix}{name}.")
        else:
            word = value if isinstance(value, str) else str(value) if isinstance(value, Path) else _YAML(value)
            words.append(f"--{prefix}{name}={word}")
    return words
