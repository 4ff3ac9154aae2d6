"""export --format hub: a network as a folder that the Hugging Face hub shows, and its upload."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from shlex import quote
from tempfile import TemporaryDirectory

from vision_zoo.checkpoints import Checkpoint
from vision_zoo.classifier import Classifier
from vision_zoo.errors import ConfigError, one_line, refuse
from vision_zoo.files import write_file
from vision_zoo.hub import CARD, FILES, described
from vision_zoo.specs import import_path
from vision_zoo.verbs.formats import FORMATS, ExportError, Metadata
from vision_zoo.verbs.output import output_folder
from vision_zoo.verbs.report import is_own, model_card
from vision_zoo.verbs.report.facts import collect


@contextmanager
def new_folder(
    output: Path, model: Classifier, checkpoint: Checkpoint, facts: Metadata, push: str | None
) -> Iterator[Path]:
    """The files for the hub in a folder for a while; they take their places in the output when the block ends well.

    Raises:
        ConfigError: if files of another origin are in the way, a package is missing, or the upload cannot begin.
    """
    folder = output_folder(output)
    foreign = any((folder / name).exists() for name in FILES) and not is_own(folder / CARD)
    token = push and find_spec("huggingface_hub") and import_path("huggingface_hub.get_token")()
    needs = "needs the extra hub (pip install 'vision_zoo[hub]') and a token: set HF_TOKEN, or run hf auth login"
    refuse(
        ConfigError,
        (foreign, f"{folder} holds a network of another origin, or edited since: set --output to another folder"),
        (push and push.count("/") != 1, f"--push {push}: names on the hub are OWNER/NAME"),
        (push and not token, f"--push {push} {needs}"),
    )
    run = collect(model, checkpoint)
    run.missing = [note for note in run.missing if f"--ckpt_path {quote(run.place)}" not in note]  # no use elsewhere
    run.place = run.weights = f"hf://{push}" if push else folder.resolve().name
    run.test_source = ""
    model.cpu().eval().set_memory_format(channels_last=False)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=folder.parent, prefix=".") as made:
        config, weights = described(checkpoint.content).encode(), FORMATS["safetensors"].make(model, facts)
        for name, content in zip(FILES, (model_card(run).encode(errors="replace"), config, weights), strict=True):
            write_file(Path(made, name), content)
        yield Path(made)
        folder.mkdir(exist_ok=True)
        for name in FILES:
            shutil.move(Path(made, name), folder / name)


def upload(folder: Path, name: str) -> str:
    """Upload such a folder to the hub, where it may be new or not; the address of its page."""
    from huggingface_hub import HfApi  # noqa: PLC0415  # of an extra

    api = HfApi()
    try:
        page = api.create_repo(name, exist_ok=True)
        api.upload_folder(repo_id=name, folder_path=folder, allow_patterns=[*FILES], commit_message="vision_zoo export")
    except Exception as error:  # name, network, server, token: each has its own kind
        again = f"The folder is complete, {folder.resolve()}: hf upload {name} {quote(str(folder))} uploads it, too"
        refuse(ExportError, (True, f"--push {name} failed: {one_line(error)}. {again}"))
    return str(page)
