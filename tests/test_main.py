"""The commands of the README."""

import re
import shlex
from pathlib import Path

from vision_zoo.__main__ import main

ROOT = Path(__file__).parents[1]


def commands_of(readme: str) -> list[list[str]]:
    """Its lines and inline code that run vision_zoo, and options of the trainer with their values, as fit's."""
    blocks = "".join(re.findall(r"```bash\n(.*?)```", readme, re.DOTALL)).replace("\\\n", " ")
    texts = [line.partition("#")[0] for line in blocks.splitlines()]
    inline = [" ".join(code.split()) for code in re.findall(r"(?<!`)`([^`]+)`(?!`)", readme)]
    texts += [code for code in inline if code.startswith("vision_zoo ")]
    texts += [f"vision_zoo fit {code}" for code in inline if code.startswith("--trainer.") and " " in code]
    return [shlex.split(text.rpartition("vision_zoo ")[2]) for text in texts if re.search("(^|-m )vision_zoo ", text)]


def test_every_command_of_the_readme_is_one(only_parsed, trained_run, here, capsys):
    readme = (ROOT / "README.md").read_text()
    commands = commands_of(re.sub(r"(?s)<!-- (results|speed) -->.*<!-- /\1 -->", "", readme))
    assert {"fit", "test", "predict", "export", "report", "show", "summary", "list"} <= {words[0] for words in commands}
    (here / "mine.yaml").write_text(re.findall(r"```yaml\n(.*?)```", readme, re.DOTALL)[0])
    (here / "my_network.py").write_text(re.findall(r"```python\n(.*?)```", readme, re.DOTALL)[1])
    for words in commands:
        given = [str(trained_run) if word in ("best", "last") else word for word in words]
        if "--data.test_split" in given:  # which the network of somebody's pictures knows, and this one does not
            given += ["--data", "ImageFolder"]
        assert main(given) in (0, 77), f"{' '.join(words)}: {capsys.readouterr().err}"
