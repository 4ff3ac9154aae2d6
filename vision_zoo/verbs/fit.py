"""fit: train a network, test the best checkpoint, leave a run folder."""

from collections.abc import Mapping
from pathlib import Path
from shlex import quote
from typing import Any, NamedTuple

from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ModelSummary
from rich.markup import escape
from torch.optim.lr_scheduler import CyclicLR

from vision_zoo.checkpoints import Checkpoint, read_torch_file, run_folder
from vision_zoo.classifier import Classifier
from vision_zoo.data.base import ImageDataModule
from vision_zoo.errors import ConfigError, refuse
from vision_zoo.training.callbacks import run_callbacks
from vision_zoo.training.evaluation import to_floats
from vision_zoo.training.head_only import HeadOnly
from vision_zoo.training.known import keep_known
from vision_zoo.training.metrics_file import training_metrics
from vision_zoo.training.performance import Performance
from vision_zoo.training.run_folder import RunFolder
from vision_zoo.training.saving import Saving, hard_link
from vision_zoo.trust import foreign_packages, trusting
from vision_zoo.types import TTA, Compile, Config
from vision_zoo.verbs.checks import check_data, check_fit, check_known, check_monitors, check_share, check_strategy
from vision_zoo.verbs.results import say_results, write_results
from vision_zoo.verbs.summary import layer_table
from vision_zoo.verbs.trainer import TrainerMaker, determinism, say


class Plan(NamedTuple):
    """The run that fit begins or continues."""

    name: str  # of its configuration
    config: Config  # the whole, as config.yaml and checkpoints keep it
    checkpoint: Checkpoint | None = None  # that it continues from
    speed: Mapping[str, Any] | None = None  # what another run chose, in place of a trial


def speed_of(checkpoint: Checkpoint) -> Mapping[str, Any]:
    """What the run of a checkpoint chose to be fast, see `Performance`."""
    states = checkpoint.content.get("callbacks") or {}
    return dict(states.get("Performance", {}))


def fit(
    make_trainer: TrainerMaker,
    model: Classifier,
    datamodule: ImageDataModule,
    plan: Plan,
    test_after_fit: bool = True,
    save_every_minutes: float = 10.0,
    deterministic: bool = True,
    channels_last: bool | None = None,
    compile: bool | Compile = False,  # noqa: A002  # the option's name
    tta: TTA = "none",
    known: float | None = None,
) -> Path | None:
    """Train a network, test the best checkpoint, leave a run folder.

    Args:
        make_trainer: builds the trainer.
        model: the classifier.
        datamodule: the data.
        plan: the run.
        test_after_fit: test the best checkpoint when training ends.
        save_every_minutes: minutes between saves within an epoch.
        deterministic: two runs of one configuration on one machine are the same bit for bit, if
            their speed was chosen alike, which --trainer.precision and --channels_last settle; false lets a GPU choose
            faster algorithms that are not (a CPU has none to choose).
        channels_last: memory format of convolutions in training, by default the faster one.
        compile: have torch compile the network for its training steps, which takes a minute at first: true, or a mode
            of torch.compile, such as reduce-overhead, which makes CUDA graphs; on a CPU it needs a C++ compiler. What
            is evaluated is not compiled, as in a loaded checkpoint. Dropout draws other numbers than without.
        tta: test-time augmentation of the final test: average the predictions for each image and its mirror image
            (flip), its shifts by one pixel to each side (shift), its two diagonal shifts at half the weight each
            (diagonal), or of all these also the mirror images (flip+...).
        known: share of the validation images that pass as of a known class, such as 0.95; with it, the checkpoint
            answers "none of these" for images beyond, in predict and in exported files.
    """
    options = make_trainer.options
    check_fit(options, datamodule, test_after_fit, save_every_minutes)
    check_known(options, datamodule, known)
    folder, stored = None, plan.speed
    if plan.checkpoint is not None:
        check_data(model, datamodule)
        folder, stored = run_folder(plan.checkpoint.path), speed_of(plan.checkpoint)
    elif model.freezing is not None and not model.has_weights:
        model.freezing.warn_of_random_weights(model.network_name)
    performance = Performance(options.get("precision") is not None, stored, channels_last, compile)
    exact = options.get("precision") is not None and "bf16" not in str(options["precision"])
    head_only = HeadOnly(make_trainer.own, plan.checkpoint, exact)
    run = saving = None
    if not make_trainer.bare:
        run = RunFolder(plan.name, plan.config, folder, options.get("logger") is not False)
        saving = None if options.get("enable_checkpointing") is False else Saving(run, save_every_minutes)
    ours: dict[str, Any] = {"run": run, "head_only": head_only, "performance": performance, "saving": saving}
    callbacks = run_callbacks(make_trainer.own, make_trainer.bar, **ours)
    trainer = make_trainer(callbacks, **determinism(options, deterministic))
    check_strategy(trainer, test_after_fit, known)
    check_monitors(trainer, model, datamodule)
    if test_after_fit:
        check_share(trainer, datamodule)
    table = None
    if trainer.is_global_zero and not make_trainer.has(ModelSummary) and options.get("enable_model_summary") is None:
        # The pass of one image through the layers serves as the check.
        table = layer_table(model, max_rows=24)
    model.check(datamodule.batch_size)
    model.check_optimizer()
    datamodule.check_augmentation()
    if table is not None:
        say(trainer, table)
    try:
        trainer.fit(model, datamodule=datamodule, ckpt_path=plan.checkpoint and plan.checkpoint.path, weights_only=True)
    except MisconfigurationException as error:  # which names limit_train_batches for it
        part: Any = getattr(trainer, "overfit_batches", 0)
        less = f"--trainer.overfit_batches {part} is less than one batch: set it higher"
        refuse(ConfigError, (part and "You requested to check" in str(error), less))
        raise
    metrics = {} if run is None else training_metrics(run.path / "metrics.csv")
    if run is not None and not run.trained:
        say(trainer, f"nothing was left to train: {_why_ended(trainer, plan, run)}")
    if saving is not None:
        if trainer.is_global_zero and (saving.best_epoch is None or not saving.best.exists()):  # nothing was validated
            hard_link(saving.last, saving.best)
            saving.best_epoch = None
        trainer.strategy.barrier("best checkpoint")
        if test_after_fit or known is not None:
            model.load_state_dict(read_torch_file(saving.best)["state_dict"])
        if known is not None:
            keep_known(trainer, model, datamodule, saving, known)
    if test_after_fit and not options.get("barebones"):
        model.test_time_augmentation = tta
        trainer.test(model, datamodule=datamodule, verbose=False)
        metrics |= {n: v for n, v in to_floats(trainer.callback_metrics).items() if n.startswith("test/")}
    if run is None:  # as with fast_dev_run and barebones
        say(trainer, "nothing is kept of such a run: no folder, no checkpoint")
        return None
    if trainer.is_global_zero:
        results = write_results(trainer, model, run, saving, performance, metrics)
        say_results(trainer, run, saving, results)
        if words := trusting(foreign_packages(plan.config)):
            say(trainer, f"commands that read its checkpoints need{words}, since they name code of your own")
        say(trainer, escape(str(run.path)))
    return run.path


def _why_ended(trainer: Trainer, plan: Plan, run: RunFolder) -> str:
    """What keeps a run from continuing, and the way out."""
    if trainer.early_stopping_callback is not None and trainer.early_stopping_callback.stopping_reason.value:
        return "the run had stopped early; leave EarlyStopping out with --trainer.callbacks null to continue"
    in_steps = trainer.max_steps != -1 and trainer.global_step >= trainer.max_steps
    progress: Any = trainer.fit_loop.epoch_progress.current
    if not in_steps and (trainer.max_epochs == -1 or progress.processed < (trainer.max_epochs or 0)):
        return "its time was up; raise --trainer.max_time to continue"
    if any(c.interval == "step" and not isinstance(c.scheduler, CyclicLR) for c in trainer.lr_scheduler_configs):
        last = run.path / "checkpoints" / "last.ckpt"
        again = f"--config {quote(str(run.path / 'config.yaml'))} --model.weights {quote(str(last))}"
        again += trusting(foreign_packages(plan.config))
        return f"its schedule ends here; to train on from its weights: vision_zoo fit {again}"
    return f"raise --trainer.{'max_steps' if in_steps else 'max_epochs'} to continue"
