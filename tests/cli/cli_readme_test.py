"""plugin/cli/README.md: its commands run as they stand there, its table names every command."""
import json
import os
import re

from conftest import ROOT
from plan_test import LLAMA_8B

README = open(os.path.join(ROOT, "plugin", "cli", "README.md")).read()


def test_its_commands_run(recoup, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(LLAMA_8B))
    lines = [line for block in re.findall(r"```bash\n(.*?)```", README, re.S) for line in block.splitlines()]
    assert len(lines) == 3
    for line in lines:
        program, *arguments = line.split()
        assert program == "recoup"
        done = recoup(*arguments)
        assert done.returncode == 0, (line, done.stderr)


def test_its_table_names_every_command(recoup):
    listed = set(re.findall(r"^\| `recoup (\w+)", README, re.M))
    shown = set(re.findall(r"^  (\w+)  ", recoup("--help").stdout.split("Subcommands:")[1], re.M))
    assert listed == shown
