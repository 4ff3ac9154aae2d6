"""Bad input: configuration files, and what they or the command line name."""

from tests.cli.cases import FIT, Case, Prepare, file

MINE = ("fit", "--config", "mine.yaml")


def config(content: bytes | str) -> Prepare:
    return file("mine.yaml", content)


CONFIGS = [
    Case("config missing", MINE, r"--config mine\.yaml: there is no such file or shipped recipe"),
    Case("recipe misspelt", ("fit", "--config", "lenet5_mnst"), r"did you mean lenet5_mnist"),
    Case("config a folder", MINE, r"mine\.yaml is a folder", lambda here: (here / "mine.yaml").mkdir()),
    Case("config empty", MINE, r"mine\.yaml is empty", config("")),
    Case("config binary", MINE, r"mine\.yaml cannot be read", config(bytes(range(256)))),
    Case("config with control characters", MINE, r"mine\.yaml is not valid YAML", config(b"a: \x00\x01")),
    Case("config broken", MINE, r"mine\.yaml is not valid YAML", config("model: {backbone: [")),
    Case("config of words", MINE, r"mine\.yaml must hold options as 'name: value'", config("just words")),
    Case("config a list", MINE, r"mine\.yaml must hold options as 'name: value', got list", config("- model")),
    Case(
        "config options without a class",
        MINE,
        r"--model\.optimizer names no class: write class_path: NAME, and beside it lr under init_args",
        config("model: {backbone: LeNet5, optimizer: {lr: 0.1}}\ndata: MNIST5k"),
    ),
    Case("config section a number", MINE, r"'model' must hold options", config("model: 3")),
    Case(
        "config section a list", MINE, r"'data' must hold options", config("data: [MNIST5k]\nmodel: {backbone: LeNet5}")
    ),
    Case(
        "config section unknown",
        MINE,
        r"there is no option --modell",
        config("modell: {backbone: LeNet5}\ndata: MNIST5k"),
    ),
    Case(
        "config option unknown",
        MINE,
        r"there is no option --model\.colour",
        config("model: {backbone: LeNet5, colour: red}\ndata: MNIST5k"),
    ),
    Case(
        "config with a logger that lacks an option",
        MINE,
        r"--trainer\.logger: CSVLogger must be given save_dir, as --trainer\.logger\.save_dir or under its",
        config("trainer: {logger: [{class_path: TensorBoardLogger, init_args: {save_dir: a}}, CSVLogger]}"),
    ),
    Case("config without data", MINE, r"--data must be given", config("model: {backbone: LeNet5}")),
    Case("config without a network", MINE, r"--model\.backbone must be given", config("data: MNIST5k")),
    Case(
        "config of another version",
        MINE,
        r"there is no option --trainer\.gpus",
        config("model: {backbone: LeNet5}\ndata: MNIST5k\ntrainer: {gpus: 1}"),
    ),
    Case("config with number for a class", MINE, r"backbone", config("model: {backbone: 3}\ndata: MNIST5k")),
    Case(
        "config with a tag",
        MINE,
        r"is not valid YAML: could not determine a constructor",
        config("model: {backbone: !mine LeNet5}\ndata: MNIST5k"),
    ),
    Case(
        "config with a number for a name",
        MINE,
        r"Key must be a string, got: 3",
        config("model: {backbone: LeNet5}\ndata: MNIST5k\n3: 4"),
    ),
    Case("command misspelt", ("fti",), r"there is no command 'fti'; did you mean fit"),
    Case(
        "an optimizer that is none",
        (*FIT, "--model.optimizer", "torch.nn.Linear"),
        r"--model\.optimizer torch\.nn\.Linear: this class is not derived from torch\.optim\.optimizer\.Optimizer",
    ),
    Case(
        "a plain data module",
        (*FIT, "--data", "lightning.LightningDataModule"),
        r"LightningDataModule: this class is not derived from vision_zoo\.data\.base\.ImageDataModule",
    ),
    Case("a seed", (*FIT, "--seed", "3"), r"no option --seed; did you mean --seed_everything or --data\.seed\?"),
    Case("devices under an old name", (*FIT, "--gpus", "2"), r"no option --gpus; did you mean --trainer\.devices\?"),
    Case(
        "a rate without its owner",
        (*FIT, "--model.lr", "1"),
        r"no option --model\.lr; did you mean --model\.optimizer\.lr",
    ),
    Case("help misspelt", ("fit", "--hlep"), r"--hlep needs a value; did you mean --help or --help_all\?"),
]
