"""Every touch of a private part of Lightning and torch, each with its reason.

What is here for speed says how long a step takes for it without and with the patch, of the 1.8 ms that a step of the
fastest recipe takes. What gains less than 2 % is left out.
"""

import copy
import functools
import inspect
import itertools
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from datetime import timedelta
from typing import Any, cast

import torch
from lightning.fabric.utilities.distributed import _set_num_threads_if_needed as set_num_threads
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback, ModelPruning, StochasticWeightAveraging, WeightAveraging
from lightning.pytorch.profilers import PassThroughProfiler
from lightning.pytorch.strategies import DDPStrategy, Strategy
from lightning.pytorch.strategies.launchers import _MultiProcessingLauncher as MultiProcessingLauncher
from lightning.pytorch.strategies.launchers import _SubprocessScriptLauncher as SubprocessScriptLauncher
from torch import nn
from torch.distributed.constants import default_pg_timeout
from torch.optim import Optimizer

from vision_zoo.data.loaders import Loader
from vision_zoo.trainer_facts import callbacks_of

STEP_HOOKS = (
    *("on_train_batch_start", "on_before_zero_grad", "on_before_backward", "on_after_backward"),
    *("on_before_optimizer_step", "on_train_batch_end"),
)

__all__ = ["MultiProcessingLauncher", "SubprocessScriptLauncher", "set_num_threads"]


def complete_epochs(trainer: Trainer) -> None:
    """Validate what a run ends with, whatever options say when to validate: it may be the best.

    And resume a run with max_steps in the next epoch; Lightning would take it for stopped within, and end it again.
    """
    fit_loop: Any = trainer.fit_loop
    fit_loop._iteration_based_training = lambda: False
    loop = fit_loop.epoch_loop
    due_epoch, due_now = loop._should_check_val_epoch, loop._should_check_val_fx

    def is_last(epoch: int) -> bool:
        return trainer.enable_validation and epoch + 1 == trainer.max_epochs

    @functools.cache  # Lightning asks after every step
    def is_due(epoch: int) -> bool:
        return bool(due_epoch() or is_last(epoch))

    def validates_epoch() -> bool:
        stops = trainer.should_stop and trainer.enable_validation and can_stop(trainer)
        return bool(stops or is_due(trainer.current_epoch))

    def validates_now(data_fetcher: Any) -> bool:
        due = due_now(data_fetcher)
        if getattr(trainer, "_val_check_time_interval", None) is not None:  # each process has a clock
            due = trainer.strategy.broadcast(due)
        return bool(due or (loop.batch_progress.is_last_batch and is_last(trainer.current_epoch)))

    loop._should_check_val_epoch, loop._should_check_val_fx = validates_epoch, validates_now


def validates_this_epoch(trainer: Trainer) -> bool:
    """Whether this epoch has a validation."""
    return trainer.fit_loop.epoch_loop._should_check_val_epoch()


def can_stop(trainer: Trainer) -> bool:
    """Whether the least number of epochs and steps is done, so that ``should_stop`` counts."""
    return trainer.fit_loop._can_stop_early


def epoch_is_complete(trainer: Trainer) -> bool:
    """Whether the batch that was trained is the last of its epoch."""
    return trainer.fit_loop.epoch_loop._num_ready_batches_reached()


def load_positions(trainer: Trainer) -> None:
    """Return to the loaders' positions, also where a schedule that asks for the number of steps has set the data up.

    That happens before the loops are restored, and Lightning sets the data up once.
    """
    loop = trainer.fit_loop
    loaders = loop._combined_loader.flattened if loop._combined_loader is not None else []
    for loader, position in zip(loaders, loop._combined_loader_states_to_load, strict=False):
        if isinstance(loader, Loader):
            loader.check_state(position)
    loop._load_combined_loader_states()


def resume_only_what_is_named(trainer: Trainer) -> None:
    """Without ``ckpt_path``, load nothing; Lightning would resume from a file of OnExceptionCheckpoint or SLURM."""
    connector: Any = trainer._checkpoint_connector
    parse = connector._parse_ckpt_path
    connector._parse_ckpt_path = lambda fn, path, **more: None if path is None else parse(fn, path, **more)


def leave_signals(trainer: Trainer) -> None:
    """Leave signals to `stopping` and Saving: Lightning's handler waits for all processes, some of which have none."""
    cast(Any, trainer)._signal_connector.register_signal_handlers = lambda: None


def forget_trial(trainer: Trainer) -> None:
    """Begin as if no finder had trained before: it leaves its metrics, and a loop that believes to be resumed."""
    trainer.fit_loop.restarting = False
    trainer._logger_connector.reset_metrics()


def replace_launcher(strategy: Strategy, launcher: Any) -> None:
    """Start the processes by another launcher; there is no option for it."""
    strategy._launcher = launcher


def set_timeout(strategy: Strategy, timeout: timedelta) -> None:
    """Wait for the other processes this long, unless the user has given the strategy a timeout."""
    if getattr(strategy, "_timeout", None) == default_pg_timeout:
        newer = getattr(torch.distributed, "set_timeout", None)
        change = newer or torch.distributed.distributed_c10d._set_pg_timeout
        change(timeout, torch.distributed.group.WORLD)


def share_gradient_memory(strategy: Strategy) -> None:
    """Leave gradients where they are summed, in place of copying them back; the arguments of DDP are kept private."""
    if isinstance(strategy, DDPStrategy):
        strategy._ddp_kwargs.setdefault("gradient_as_bucket_view", True)


def begin_average(averaging: WeightAveraging, model: LightningModule) -> None:
    """Let an average that has not begun be the weights themselves; Lightning has the random ones of before training.

    Validation and checkpoints take the average for the network.
    """
    average = averaging._average_model
    if average is not None and average.n_averaged == 0:
        average.module.load_state_dict(model.state_dict())


def share_average_rate(averaging: StochasticWeightAveraging, optimizer: Optimizer) -> None:
    """Turn one rate of the average into one for each group of weights, in proportion to those of the groups."""
    if isinstance(averaging._swa_lrs, float):
        rates = [group.get("initial_lr", group["lr"]) for group in optimizer.param_groups]
        averaging._swa_lrs = [averaging._swa_lrs * (rate / max(rates)) for rate in rates]


def prune_for_good(pruning: ModelPruning) -> None:
    """Have checkpoints hold plain weights, also where the option of the same name is false."""
    pruning._make_pruning_permanent = True


def try_pruning(pruning: ModelPruning, epochs: int) -> None:
    """Prune a copy of the weights as the epochs will: torch refuses an amount that there is not when it prunes."""
    trial: Any = copy.copy(pruning)
    trial._parameters_to_prune, trial._verbose = copy.deepcopy(trial._parameters_to_prune), 0
    with torch.random.fork_rng(devices=[]):
        for epoch in range(epochs if isinstance(trial.amount, int) else 1):  # a share is one of what is left
            trial._run_pruning(epoch)


def call_compiled(network: nn.Module, call: Callable[..., Any] | None) -> Callable[..., Any] | None:
    """Have a network called as ``network.compile()`` made it, or, for None, as it is; gives how it was called.

    torch has no way back, nor to compile the steps of training alone.
    """
    before, network._compiled_call_impl = network._compiled_call_impl, call
    return before


def has_cpu_bf16() -> bool:
    """Whether the processor has AMX or AVX512-BF16; torch has no public function for it."""
    return any(getattr(torch.cpu, name, bool)() for name in ("_is_amx_tile_supported", "_is_avx512_bf16_supported"))


def ask_no_gpu(optimizer: Optimizer) -> None:
    """Let Adam on a CPU not ask, before each step, whether a GPU records a graph.

    With the environment variable that Lightning sets, torch loads the GPU's driver library anew for the answer: a step
    takes 0.043 ms for it, and so none.
    """
    cast(Any, optimizer)._accelerator_graph_capture_health_check = lambda: None


def ask_once(trainer: Trainer) -> None:
    """Ask once, not at each step, who has a hook, whose data hook counts, what training_step takes; drop what is told.

    A step takes at least 0.068 ms for the first three questions, and so nothing; the last takes 0.011 ms.
    """
    owners: list[tuple[Any, type]] = [(callback, Callback) for callback in callbacks_of(trainer)]
    for (owner, base), hook in itertools.product([*owners, (trainer.lightning_module, LightningModule)], STEP_HOOKS):
        if getattr(type(owner), hook) is getattr(base, hook) and hook not in vars(owner):  # LambdaCallback's are there
            vars(owner)[hook] = None  # Lightning passes over what cannot be called
    selector: Any = trainer._data_connector._datahook_selector
    selector.get_instance = functools.cache(selector.get_instance)
    step: Any = type(trainer.lightning_module).training_step
    step.__signature__ = inspect.signature(step)
    connector: Any = trainer._logger_connector
    tell, accumulates = connector.update_train_step_metrics, cast(Any, trainer.fit_loop)._should_accumulate

    def tell_once() -> None:
        tell()
        told = connector.should_update_logs and not accumulates()
        for logged in cast(Any, trainer)._results.values() if told else ():
            if logged.meta.on_step and not (logged.meta.on_epoch or logged.has_reset):
                logged.reset()  # or its value is gathered after each step until it is logged anew

    connector.update_train_step_metrics = tell_once


class NoProfiler(PassThroughProfiler):
    """Lightning's stand-in for a profiler, which builds a generator some 54 times a step: 0.051 ms, and so 0.011 ms."""

    _nothing = nullcontext()

    def profile(self, action_name: str) -> AbstractContextManager[None]:  # type: ignore[override]  # a generator there
        """A context that does nothing, the same for every action."""
        return self._nothing


def note_hooks_fast(kind: type[LightningModule]) -> None:
    """Let Lightning note the running hook's name in a module without torch's search for a parameter of that name.

    It does so some 43 times a step, which takes 0.055 ms, and so 0.007 ms.
    """
    original = kind.__setattr__

    def set_attribute(self: LightningModule, name: str, value: Any) -> None:
        if name == "_current_fx_name":
            self.__dict__[name] = value
        else:
            original(self, name, value)

    if "__setattr__" not in vars(kind):
        cast(Any, kind).__setattr__ = set_attribute
