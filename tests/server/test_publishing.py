"""What the registry gets: `comfy node validate`, its rules, the description, and that installing moves nothing."""
from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

import pytest
import tomllib

from oneshot_atelier.tests.server.test_older_host import OLDEST
from oneshot_atelier.tools.comfy import ROOT, Host
from oneshot_atelier.tools.host import pythons, setup

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
RULES = "S102,S307,E702"  # exec, eval, several statements in a line: comfy-cli 1.23.0


@pytest.fixture(scope="module")
def cli() -> Path:
    folder = setup.registry_dir()
    if not (folder / "ready").is_file():
        pytest.fail(f"There is no comfy-cli in {folder}: run `make host` first.", pytrace=False)
    return folder / "bin"


def test_comfy_node_validate_finds_nothing(cli: Path) -> None:
    done = subprocess.run([cli / "comfy", "--skip-prompt", "node", "validate"], cwd=ROOT, capture_output=True,
                          text=True, timeout=120)
    said = done.stdout + done.stderr
    assert done.returncode == 0 and not re.search("warning|error", said, re.IGNORECASE), said


def test_what_it_reads_is_what_stands_there(cli: Path) -> None:
    """comfy-cli takes a field that it does not understand for an empty one."""
    asked = ("import dataclasses, json; from comfy_cli.registry import config_parser as parser; "
             "print(json.dumps(dataclasses.asdict(parser.extract_node_configuration())))")
    done = subprocess.run([cli / "python", "-c", asked], cwd=ROOT, capture_output=True, text=True, check=True)
    found, project, comfy = json.loads(done.stdout), PROJECT["project"], PROJECT["tool"]["comfy"]
    assert found["project"] | {"dependencies": project["dependencies"]} == found["project"]
    assert (found["project"]["name"], found["project"]["version"]) == (project["name"], project["version"])
    assert found["project"]["license"]["text"] == project["license"]
    assert found["project"]["urls"] == {"homepage": "", "documentation": project["urls"]["Documentation"],
                                        "repository": project["urls"]["Repository"],
                                        "issues": project["urls"]["Issues"]}
    assert found["project"]["supported_os"] and found["project"]["supported_accelerators"]
    assert found["project"]["supported_comfyui_version"] == comfy["requires-comfyui"]
    assert found["tool_comfy"]["publisher_id"] == comfy["PublisherId"]
    assert (found["tool_comfy"]["icon"], found["tool_comfy"]["banner_url"]) == (comfy["Icon"], comfy["Banner"])


def test_its_rules_would_find_something(cli: Path, tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text("exec('a'); eval('b')\n")
    done = subprocess.run([cli / "python", "-m", "ruff", "check", tmp_path, "-q", "--select", RULES, "--isolated",
                           "--output-format", "concise"], capture_output=True, text=True)
    assert all(rule in done.stdout for rule in RULES.split(","))


# --- packages ---------------------------------------------------------------------------------------------------------
def test_every_dependency_has_a_lower_bound_and_none_an_upper_one() -> None:
    for line in PROJECT["project"]["dependencies"]:
        assert re.fullmatch(r"[\w-]+>=[\d.]+", line), line
    assert not {"torch", "torchvision", "torchaudio"} & {re.split("[>=]", line)[0]
                                                         for line in PROJECT["project"]["dependencies"]}


def test_the_lower_bounds_are_those_that_are_tried() -> None:
    tried = dict(pin.split("==") for pin in pythons.OLDEST)
    stated = dict(line.split(">=") for line in PROJECT["project"]["dependencies"])
    assert {name: tried[name] for name in stated if name != "kornia"} == {
        name: bound for name, bound in stated.items() if name != "kornia"}
    assert stated["kornia"] == OLDEST["kornia"]


def test_both_lists_of_dependencies_agree() -> None:
    lines = [line for line in (ROOT / "requirements.txt").read_text(encoding="utf-8").split("\n")
             if line and line[0] != "#"]
    assert set(lines) <= set(PROJECT["project"]["dependencies"])


@pytest.mark.parametrize("what", [["-r", str(ROOT / "requirements.txt")], PROJECT["project"]["dependencies"]],
                         ids=["requirements.txt", "pyproject.toml"])
def test_installing_into_comfyuis_venv_moves_nothing(host: Host, tmp_path: Path, what: list[str]) -> None:
    """The host holds ComfyUI's packages and the pack's; without the pack's, pip would add them and touch no other.
    `make pythons` does it in fact, and compares pip freeze."""
    report = tmp_path / "report.json"
    subprocess.run([host.python, "-m", "pip", "install", "--no-input", "--dry-run", "--no-index", "--quiet",
                    "--report", report, *what], check=True, timeout=120)
    assert json.loads(report.read_text(encoding="utf-8"))["install"] == []
