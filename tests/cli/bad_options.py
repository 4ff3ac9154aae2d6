"""Bad input: options that do not exist, have no such value, or do not go together."""

import numpy as np
import torch
from safetensors.torch import save
from torch import nn

from tests import tiny
from tests.cli.cases import ARRAYS, FIT, FOLDER, Case, file, npz
from vision_zoo.backbones import LeNet5, SmallCNN

ONE_CYCLE = ("--model.scheduler", "OneCycleLR", "--model.scheduler.max_lr", "0.1")
STOPPING = "[{class_path: EarlyStopping, init_args: {monitor: val/loss}}]"
CROP_TOO_LARGE = "[{class_path: torchvision.transforms.v2.RandomCrop, init_args: {size: 40}}]"


class OneMoreAxis(nn.Module):
    """What somebody writes who takes the image for a batch."""

    def forward(self, image):
        return image[:1].unsqueeze(0)


class NotANetwork:
    def __init__(self, shape, classes):
        pass


def half(epoch):
    return np.float64(0.5)


OPTIONS = [
    Case("val_split above one", (*FIT, "--data.val_split", "1.5"), r"--data\.val_split must be a fraction .*got 1\.5"),
    Case(
        "val_split below zero", (*FIT, "--data.val_split", "-0.1"), r"--data\.val_split must be a fraction .*got -0\.1"
    ),
    Case(
        "val_split no number",
        (*FIT, "--data.val_split", "half"),
        r"--data\.val_split: got 'half', expected a whole number or a number$",
    ),
    Case(
        "val_split too large",
        (*FIT, "--data.val_split", "4000"),
        r"--data\.val_split 4000 would cut 4000 of 4000 images.*Choose a number between 10 and 3990",
    ),
    Case(
        "val_split too small to stratify", (*FIT, "--data.val_split", "7"), r"--data\.val_split 7 would cut 7 of 4000"
    ),
    Case("batch_size zero", (*FIT, "--data.batch_size", "0"), r"--data\.batch_size must be at least 1, got 0"),
    Case("batch_size below zero", (*FIT, "--data.batch_size", "-4"), r"--data\.batch_size must be at least 1, got -4"),
    Case(
        "batch_size no number",
        (*FIT, "--data.batch_size", "two"),
        r"--data\.batch_size: got 'two', expected a whole number$",
    ),
    Case(
        "batch_size one for batch norm",
        ("fit", "--data.batch_size", "1"),
        r"CNN has batch normalisation.*set --data\.batch_size to at least 2",
    ),
    Case(
        "num_workers below zero", (*FIT, "--data.num_workers", "-1"), r"--data\.num_workers must be at least 0, got -1"
    ),
    Case(
        "balanced in file order",
        (*FIT, "--data.sampler", "balanced", "--data.shuffle", "false"),
        r"--data\.sampler balanced draws another order in each epoch: leave out --data\.shuffle false",
    ),
    Case("seed below zero", (*FIT, "--data.seed", "-1"), r"--data\.seed must be at least 0, got -1"),
    Case("image_size zero", (*FIT, "--data.image_size", "0"), r"--data\.image_size must be at least 1, got 0"),
    Case(
        "image_size of three sides",
        (*FIT, "--data.image_size", "9", "9", "9"),
        r"--data\.image_size: got '\[9, 9, 9\]', .* list of 2",
    ),
    Case("image_size absurd", (*FIT, "--data.image_size", "1000000"), r"--data\.image_size"),
    Case(
        "image too small for the network",
        ("fit", "--model.backbone", "Conv4"),
        r"Conv4: images of shape \(1, 28, 28\) are too small .*: set --data\.image_size higher",
    ),
    Case(
        "mean of other channels",
        (*FIT, "--data.mean", "[0.5, 0.5]"),
        r"--data\.mean has 2 values, but the images have 1",
    ),
    Case("std zero", (*FIT, "--data.std", "[0]"), r"--data\.std must be positive"),
    Case(
        "a folder in place of a data set",
        (*FIT, "--data", "pictures"),
        r"--data pictures: unknown; your own pictures are --data ImageFolder --data\.root pictures\. Known",
        lambda here: tiny.write_image_folder(here / "pictures"),
    ),
    Case(
        "a file in place of a data set",
        (*FIT, "--data", "digits.npz"),
        r"--data digits\.npz: .*; your own images are --data ArrayFile --data\.path digits\.npz",
    ),
    Case(
        "a network of torchvision",
        ("fit", "--model.backbone", "resnet50"),
        r"resnet50: unknown; --model\.backbone Torchvision --model\.backbone\.name resnet50 is the one of torchvision",
    ),
    Case("unknown data set", (*FIT, "--data", "MNSIT"), r"--data MNSIT: unknown; did you mean MNIST"),
    Case(
        "unknown network",
        ("fit", "--model.backbone", "LeNet"),
        r"--model\.backbone LeNet: unknown; did you mean LeNet5",
    ),
    Case(
        "unknown module",
        ("fit", "--model.backbone", "nowhere.Net"),
        r"nowhere\.Net: No module named 'nowhere'\. Modules are looked for in the working directory, PYTHONPATH",
    ),
    Case(
        "unknown class of a module",
        ("fit", "--model.backbone", "vision_zoo.backbones.LeNt5"),
        r"has no LeNt5; did you mean LeNet5",
    ),
    Case("not a network", ("fit", "--model.backbone", "tests.cli.bad_options.NotANetwork"), r"NotANetwork"),
    Case(
        "network without an image shape",
        ("fit", "--model.backbone", "torch.nn.Linear"),
        r"first two parameters are the image shape",
    ),
    Case(
        "option of no network",
        (*FIT, "--model.backbone.colour", "red"),
        r"there is no option --model\.backbone\.colour",
    ),
    Case(
        "network option out of range",
        ("fit", "--model.backbone", "SimpleCNN", "--model.backbone.drop_rate", "2"),
        r"drop_rate is 2\.0, set --model\.backbone\.drop_rate",
    ),
    Case(
        "unknown torchvision network",
        ("fit", "--model.backbone", "Torchvision", "--model.backbone.name", "resnet19"),
        r"no network is named 'resnet19'; did you mean",
    ),
    Case(
        "pretrained weights without network",
        ("fit", "--model.backbone", "Torchvision", "--model.backbone.weights", "DEFAULT", "--data.image_size", "64"),
        r"the weights IMAGENET1K_V1 of resnet18 could not be fetched from .*leave out --model\.backbone\.weights",
    ),
    Case(
        "folder as data",
        ("fit", "--data", "./photos"),
        r"--data \./photos: not a class path.*your own pictures are --data ImageFolder --data\.root \./photos",
    ),
    Case(
        "file as network",
        ("fit", "--model.backbone", "../my_network.py"),
        r"--model\.backbone \.\./my_network\.py: not a class path; write package\.module\.Class",
    ),
    Case("module as data", ("fit", "--data", "vision_zoo.data.cifar"), r"vision_zoo\.data\.cifar: this is a module"),
    Case("seed below 0", (*FIT, "--seed_everything", "-1"), r"--seed_everything must be a whole number from 0 to"),
    Case(
        "seed that is none",
        (*FIT, "--seed_everything", "true"),
        r"--seed_everything must be a whole number .* got True",
    ),
    Case("seed that is a time", (*FIT, "--seed_everything", "20250131123045"), r"--seed_everything must be a whole"),
    Case(
        "options beside a class",
        (*FIT, "--model.optimizer", "{class_path: SGD, lr: 0.5}"),
        r"--model\.optimizer: lr beside class_path SGD: its options go under init_args",
    ),
    Case(
        "options that are a list",
        (*FIT, "--model.optimizer", "{class_path: SGD, init_args: [1]}"),
        r"--model\.optimizer: the init_args of SGD are not options: \[1\]",
    ),
    Case(
        "misspelt option beside another data set",
        ("fit", "--config", "one.yaml", "--config", "two.yaml"),
        r"image_szie",
        lambda here: [
            (here / "one.yaml").write_text("model: {backbone: LeNet5}\ndata: {class_path: MNIST}\n"),
            (here / "two.yaml").write_text("data: {class_path: MNIST5k, init_args: {image_szie: 32}}\n"),
        ],
    ),
    Case(
        "schedule shorter than the run",
        (*FIT, *ONE_CYCLE, "--model.scheduler.total_steps", "2"),
        r"OneCycleLR ends after 2 steps, and the run has 3: leave its total_steps out",
    ),
    Case(
        "validation after more batches than there are",
        (*FIT, "--trainer.val_check_interval", "4"),
        r"`val_check_interval` \(4\) must be less than or equal to the number of the training batches \(3\)",
    ),
    Case(
        "early stopping without validation",
        (*FIT, "--trainer.limit_val_batches", "0", "--trainer.callbacks", STOPPING),
        r"EarlyStopping: there is no metric val/loss",
    ),
    *(
        Case(
            f"a name that the run needs, {option}",
            (*FIT, "--trainer.callbacks", f"[{{class_path: ModelCheckpoint, init_args: {{{option}}}}}]"),
            r"--trainer\.callbacks ModelCheckpoint with .* would replace a checkpoint of the run's own",
        )
        for option in ("filename: best", "filename: last", "save_last: true")
    ),
    Case(
        "less than one batch to overfit",
        (*FIT, "--trainer.overfit_batches", "0.001"),
        r"--trainer\.overfit_batches 0\.001 is less than one batch: set it higher",
    ),
    Case(
        "no pictures to test with",
        (*FOLDER, "--data.test_split", "0"),
        r"ImageFolder has no test images: leave the test out with --test_after_fit false; .* --data\.help ImageFolder",
        lambda here: tiny.write_image_folder(here / "pictures", count=20),
    ),
    Case(
        "no arrays to test with",
        ARRAYS,
        r"ArrayFile has no test images",
        npz(x_train=np.zeros((20, 28, 28), np.uint8), y_train=np.arange(20) % 2),
    ),
    Case("weights missing", (*FIT, "--model.weights", "own.pth"), r"own\.pth not found"),
    Case(
        "weights of another network",
        (*FIT, "--model.weights", "own.pth"),
        r"own\.pth does not fit LeNet5: Missing key",
        lambda here: torch.save(SmallCNN((1, 28, 28), 10).state_dict(), here / "own.pth"),
    ),
    Case(
        "weights of another image size",
        (*FIT, "--model.weights", "own.pth"),
        r"size mismatch for features\.0\.weight: .*\[6, 3, 5, 5\].*\[6, 1, 5, 5\].* Weights serve the network",
        lambda here: torch.save(LeNet5((3, 28, 28), 10).state_dict(), here / "own.pth"),
    ),
    Case(
        "weights in half a safetensors file",
        (*FIT, "--model.weights", "own.safetensors"),
        r"own\.safetensors is not a whole safetensors file",
        lambda here: (here / "own.safetensors").write_bytes(save(LeNet5((1, 28, 28), 10).state_dict())[:99_000]),
    ),
    Case(
        "label_smoothing",
        (*FIT, "--model.loss.label_smoothing", "2"),
        r"--model\.loss\.label_smoothing must be in \[0, 1\), got 2\.0",
    ),
    Case(
        "gamma", (*FIT, "--model.loss", "Focal", "--model.loss.gamma", "-1"), r"--model\.loss\.gamma must be at least 0"
    ),
    Case("unknown loss", (*FIT, "--model.loss", "Fokal"), r"did you mean Focal"),
    Case(
        "class weights for other classes",
        (*FIT, "--model.loss.class_weights", "[1, 2]"),
        r"--model\.loss\.class_weights has 2 values, but there are 10 classes: 0, 1",
    ),
    Case(
        "class weights below zero",
        (*FIT, "--model.loss.class_weights", "[1, -2]"),
        r"--model\.loss\.class_weights must be balanced, or finite numbers from 0 on, not all 0, got \[1\.0, -2\.0\]",
    ),
    Case(
        "a loss that takes other labels",
        (*FIT, "--model.loss", "torch.nn.BCEWithLogitsLoss"),
        r"--model\.loss cannot be used so: Target size",
    ),
    Case(
        "a loss of every image",
        (*FIT, "--model.loss", "CrossEntropyLoss", "--model.loss.reduction", "none"),
        r"--model\.loss cannot be used so: it must return a scalar, got \(2,\)",
    ),
    Case(
        "a teacher that is not there",
        (*FIT, "--model.loss", "Distillation", "--model.loss.teacher", "nowhere"),
        r"nowhere",
    ),
    Case("unknown optimizer", (*FIT, "--model.optimizer", "Adm"), r"did you mean Adam"),
    Case("unknown schedule", (*FIT, "--model.scheduler", "OneCycle"), r"did you mean OneCycleLR"),
    Case("lr zero", (*FIT, "--model.optimizer.lr", "0"), r"--model\.optimizer\.lr is 0"),
    Case(
        "lr below zero",
        (*FIT, "--model.optimizer.lr", "-0.1"),
        r"--model\.optimizer cannot be used so: Invalid learning rate: -0\.1",
    ),
    Case("lr not a number", (*FIT, "--model.optimizer.lr", ".nan"), r"--model\.optimizer.*nan"),
    Case("lr infinite", (*FIT, "--model.optimizer.lr", ".inf"), r"--model\.optimizer\.lr is inf"),
    Case(
        "lr in words", (*FIT, "--model.optimizer.lr", "fast"), r"--model\.optimizer\.lr: got 'fast', expected a number$"
    ),
    Case(
        "momentum below zero",
        (*FIT, "--model.optimizer", "SGD", "--model.optimizer.lr", "0.1", "--model.optimizer.momentum", "-1"),
        r"--model\.optimizer.*momentum",
    ),
    Case(
        "augmentation that changes the size",
        (*FIT, "--data.augmentation", "[{class_path: CenterCrop, init_args: {size: 9}}]"),
        r"--data\.augmentation: CenterCrop turns",
    ),
    Case(
        "misspelt option of an augmentation",
        (*FIT, "--data.augmentation", "[{class_path: RandomCrop, init_args: {paddin: 4}}]"),
        r"--data\.augmentation: RandomCrop has no option paddin; did you mean padding or padding_mode",
    ),
    Case(
        "option of an augmentation that takes no such one",
        (*FIT, "--data.augmentation", "[{class_path: RandomCrop, init_args: {size: 40}}]"),
        r"--data\.augmentation: RandomCrop has no option size; it takes padding",
    ),
    Case(
        "misspelt option of a callback",
        (*FIT, "--trainer.callbacks", "[{class_path: EarlyStopping, init_args: {monitr: val/loss}}]"),
        r"--trainer\.callbacks: EarlyStopping has no option monitr; did you mean monitor",
    ),
    Case(
        "augmentation to look at that fails",
        ("show", "--augmented", "true", "--data.augmentation", CROP_TOO_LARGE),
        r"--data\.augmentation",
    ),
    Case(
        "trusted package that is no YAML",
        ("test", "--ckpt_path", "best", "--trusted_packages", "["),
        r"--trusted_packages \[ is not valid YAML",
    ),
    Case(
        "augmentation that takes the image for a batch",
        (*FIT, "--data.augmentation", f"[{__name__}.OneMoreAxis]"),
        r"OneMoreAxis turns .* shape \(1, 28, 28\) into .* \(1, 1, 28, 28\); .* It gets one image",
    ),
    Case(
        "metric whose lowest value is the worst",
        (*FIT, "--trainer.callbacks", "EarlyStopping", "--trainer.callbacks.monitor", "val/accuracy"),
        r"EarlyStopping: it takes the lowest val/accuracy for the best: set --trainer\.callbacks\.mode max",
    ),
    Case(
        "metric of another name",
        (*FIT, "--trainer.callbacks", "[{class_path: EarlyStopping, init_args: {monitor: val_loss}}]"),
        r"EarlyStopping: there is no metric val_loss; did you mean val/loss",
    ),
    Case(
        "metric of a validation that there is none of",
        (*FIT, "--data.val_split", "0", "--trainer.callbacks", STOPPING),
        r"there is no metric val/loss, for nothing is validated: --data\.val_split is 0",
    ),
    Case(
        "schedule with a share above one",
        (*FIT, *ONE_CYCLE, "--model.scheduler.pct_start", "2"),
        r"--model\.scheduler cannot be used so: .*pct_start",
    ),
    Case(
        "schedule that steps after no epochs",
        (*FIT, "--model.scheduler", "StepLR", "--model.scheduler.step_size", "0"),
        r"--model\.scheduler cannot be used so: .*zero",
    ),
    Case("infinite val_split", (*FIT, "--data.val_split", ".inf"), r"--data\.val_split must be a fraction"),
    Case("std that is no number", (*FIT, "--data.std", "[.nan]"), r"--data\.std must be finite"),
    Case(
        "metrics never counted",
        (*FIT, "--trainer.log_every_n_steps", "0"),
        r"--trainer\.log_every_n_steps must be",
    ),
    Case("no test batches", (*FIT, "--trainer.limit_test_batches", "0"), r"limit_test_batches is 0.*test_after_fit"),
    Case("config without a value", (*FIT, "--config"), r"--config needs a value"),
    Case(
        "unknown augmentation",
        (*FIT, "--data.augmentation", "[RandomCorp]"),
        r"--data\.augmentation RandomCorp: unknown; did you mean RandomCrop",
    ),
    Case(
        "what the module of augmentations imports",
        (*FIT, "--data.augmentation", "F"),
        r"--data\.augmentation F: unknown\. Known are AlternatingFlip, AugMix, AutoAugment, CenterCrop,",
    ),
    Case(
        "whole number in words",
        (*FIT[:3], "--trainer.max_epochs", "many"),
        r"--trainer\.max_epochs: got 'many', expected a whole number",
    ),
    Case(
        "one class only",
        ARRAYS,
        r"two classes or more are needed, but the data has 1",
        lambda here: np.savez(here / "a.npz", images=np.zeros((40, 28, 28), np.uint8), labels=np.zeros(40, int)),
    ),
    Case("no time at all", (*FIT, "--trainer.max_time", "00:00:00:00"), r"--trainer\.max_time is 0"),
    Case("not a time", (*FIT, "--trainer.max_time", "0"), r"duration='0'.* DD:HH:MM:SS"),
    Case(
        "more weights to prune than there are in two epochs",
        (
            *FIT,
            "--trainer.max_epochs",
            "2",
            "--trainer.callbacks",
            "ModelPruning",
            "--trainer.callbacks.amount",
            "40000",
        ),
        r"--trainer\.callbacks ModelPruning cannot be used so: amount=40000 should be smaller than the number of",
    ),
    Case(
        "a name of a checkpoint that no number fits",
        (*FIT, "--trainer.callbacks", "ModelCheckpoint", "--trainer.callbacks.filename", "{val/accuracy:d}"),
        r"--trainer\.callbacks ModelCheckpoint: its filename .* cannot be written: Unknown format code 'd'",
    ),
    Case(
        "an optimizer that divides by nothing",
        (*FIT, "--model.optimizer.eps", "0"),
        r"--model\.optimizer cannot be used so: in two steps it takes weights from 1 to nan",
    ),
    Case(
        "an optimizer for other gradients",
        (*FIT, "--model.optimizer", "SparseAdam"),
        r"SparseAdam does not support",
    ),
    Case(
        "an optimizer for the plain order only",
        (*FIT, "--model.optimizer", "LBFGS", "--model.scheduler", "null", "--channels_last", "true"),
        r"--channels_last true: the optimizer needs the plain order",
    ),
    Case(
        "a schedule for a metric that rises",
        (*FIT, "--model.scheduler", "ReduceLROnPlateau", "--model.scheduler.mode", "max"),
        r"--model\.scheduler\.mode max: it watches the loss, which is better the lower it is",
    ),
    Case(
        "a schedule of numpy's numbers",
        (*FIT, "--model.scheduler", "LambdaLR", "--model.scheduler.lr_lambda", "tests.cli.bad_options.half"),
        r"--model\.scheduler has a state that no checkpoint could be continued from.*made Python's with float\(\)",
    ),
    Case(
        "a schedule that cannot be saved",
        (*FIT, "--model.scheduler", "LambdaLR", "--model.scheduler.lr_lambda", "math.sqrt"),
        r"--model\.scheduler has a state that no checkpoint could .*functions of a library to be wrapped in your own",
    ),
    Case(
        "a schedule of schedules",
        (*FIT, "--model.scheduler", "SequentialLR"),
        r"--model\.scheduler SequentialLR: unknown.*a class of your own is named with its module",
    ),
    Case("epochs below minus one", (*FIT[:3], "--trainer.max_epochs", "-5"), r"max_epochs"),
    Case(
        "misspelt option",
        (*FIT, "--trainer.max_epoch", "3"),
        r"there is no option --trainer\.max_epoch; did you mean --trainer\.max_epochs",
    ),
    Case("option without a value", (*FIT, "--data.batch_size"), r"--data\.batch_size needs a value"),
    Case(
        "a network in place of the model's options",
        ("fit", "--config", "m.yaml"),
        r"m\.yaml: 'model' must hold options such as backbone: LeNet5, got 'LeNet5'",
        lambda here: (here / "m.yaml").write_text("model: LeNet5\ndata: MNIST5k\n"),
    ),
    Case("word that is no option", (*FIT, "cnn"), r"'cnn' is not an option: .*, such as --config cnn"),
    Case("unknown accelerator", (*FIT, "--trainer.accelerator", "abacus"), r"abacus"),
    Case("unknown precision", (*FIT, "--trainer.precision", "12"), r"--trainer\.precision: got '12'"),
    Case(
        "half precision on a CPU",
        (*FIT, "--trainer.accelerator", "cpu", "--trainer.precision", "16-mixed"),
        r"--trainer\.precision 16-mixed on a CPU does not work here: .* set bf16-mixed or 32-true",
    ),
    Case("unknown strategy", (*FIT, "--trainer.strategy", "warp"), r"--trainer.*warp"),
    Case("no device", (*FIT, "--trainer.devices", "0"), r"--trainer.*0"),
    Case(
        "gradients added up zero times",
        (*FIT, "--trainer.accumulate_grad_batches", "0"),
        r"--trainer\.accumulate_grad_batches must be at least 1, got 0",
    ),
    Case(
        "to go on from the best",
        ("fit", "--ckpt_path", "best"),
        r"fit resumes where the newest run ended, with --ckpt_path last; to drop .* path of its best\.ckpt",
    ),
    Case("no epochs", (*FIT, "--trainer.max_epochs", "0"), r"--trainer\.max_epochs is 0"),
    Case("no batches", (*FIT, "--trainer.limit_train_batches", "0"), r"--trainer\.limit_train_batches is 0"),
    Case("save_every_minutes zero", (*FIT, "--save_every_minutes", "0"), r"--save_every_minutes must be positive"),
    Case("seed in words", (*FIT, "--seed_everything", "lucky"), r"seed_everything"),
    Case(
        "run folder below a file",
        (*FIT, "--trainer.default_root_dir", "file"),
        r"run folder below .*file.* cannot be written.*--trainer\.default_root_dir",
        file("file"),
    ),
    Case("runs is a file", FIT, r"run folder below .* cannot be written.*--trainer\.default_root_dir", file("runs")),
]
