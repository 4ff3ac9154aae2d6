"""The README's recipe and Python."""

import re
from pathlib import Path

from PIL import Image

import vision_zoo
from tests.cli.runs import fit
from vision_zoo.__main__ import main
from vision_zoo.data import FashionMNIST, MNIST5k


def test_the_readmes_recipe_trains_and_its_python_classifies(here, data_root, capsys):
    readme = (Path(vision_zoo.__file__).parents[1] / "README.md").read_text()
    [recipe] = re.findall(r"```yaml\n(.*?)```", readme, re.DOTALL)
    Path("lenet5_mnist.yaml").write_text(recipe)
    words = ["--config", "./lenet5_mnist.yaml", "--data.root", str(data_root), "--data.val_split", "50"]
    assert fit(*words) == 0
    Image.new("L", (28, 28), 7).save("digit.png")
    program, network = re.findall(r"```python\n(.*?)```", readme, re.DOTALL)
    Path("my_network.py").write_text(network)
    assert fit("--model.backbone", "my_network.MyNetwork", "--model.backbone.width", "8") == 0
    assert main(["test", "--ckpt_path", "runs/default/version_0", "--trusted_packages", "my_network"]) == 0
    capsys.readouterr()
    exec(compile(program, "README.md", "exec"), {})
    assert capsys.readouterr().out.strip() in FashionMNIST.class_names + MNIST5k.class_names
