"""What the documentation says is what the program does."""

import importlib.util
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import typer
import yaml

from entrepot.access.plans import parse_plans
from entrepot.bootstrap import _read_issuers
from entrepot.cli import app
from entrepot.replication.rules import parse_rule_file
from entrepot.settings import CONFIG_VARIABLE, load_settings, setting_fields

ROOT = Path(__file__).parents[3]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
# `docs/` has pages that are shapes rather than examples: GLOB and NAME stand for something.
_YAML = re.compile(r"^( *)```yaml\n(.*?)^ *```", re.DOTALL | re.MULTILINE)
_TOML = re.compile(r"^```toml\n(.*?)^```", re.DOTALL | re.MULTILINE)
_COMMAND = re.compile(r"(?:^|[\s`$])entrepot ((?:[a-z-]+ ?)+)")
_LINK = re.compile(r"\]\(([^)#:]+)(?:#[^)]*)?\)")


def load_script() -> ModuleType:
    path = ROOT / "scripts" / "write_reference.py"
    spec = importlib.util.spec_from_file_location("write_reference", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("page", ["settings.md", "commands.md"])
def test_the_generated_pages_are_up_to_date(page: str) -> None:
    script = load_script()
    assert (ROOT / "docs" / "reference" / page).read_text(encoding="utf-8") == script.PAGES[page](), "run: make docs"


def test_every_setting_is_documented() -> None:
    text = (ROOT / "docs" / "reference" / "settings.md").read_text(encoding="utf-8")
    for name, field in setting_fields():
        assert f"`{name}`" in text
        assert field.description


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in _LINK.findall(page.read_text(encoding="utf-8")):
        assert (page.parent / target).exists(), f"{page.name} links to {target}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_yaml_examples_are_accepted(page: Path) -> None:
    for indent, block in _YAML.findall(page.read_text(encoding="utf-8")):
        if re.search(r"\b(GLOB|NAME)\b", block):
            continue
        document = yaml.safe_load(re.sub(f"^{indent}", "", block, flags=re.MULTILINE))
        if "plans" in document:
            assert parse_plans(document)
        else:
            assert parse_rule_file(document)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_settings_files_are_accepted(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(CONFIG_VARIABLE, "")  # which is set when a file is loaded
    for block in _TOML.findall(page.read_text(encoding="utf-8")):
        config = tmp_path / "entrepot.toml"
        config.write_text(block, encoding="utf-8")
        _read_issuers(load_settings(config))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_exist(page: Path) -> None:
    root = typer.main.get_command(app)
    known = set(root.commands) | {  # type: ignore[attr-defined]
        f"{name} {inner}"
        for name, group in root.commands.items()  # type: ignore[attr-defined]
        for inner in getattr(group, "commands", {})
    }
    text = "\n".join(re.findall(r"```sh\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL))
    for words in _COMMAND.findall(re.sub(r" --(data|config) \S+", "", text)):
        first, second = (*words.split(), "", "")[:2]
        assert first in known, f"{page.name}: entrepot {words}"
        if hasattr(root.commands[first], "commands"):  # type: ignore[attr-defined]
            assert f"{first} {second}" in known, f"{page.name}: entrepot {words}"


def test_the_targets_that_the_readme_names_exist() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in re.findall(r"`?make ([a-z]+)", (ROOT / "README.md").read_text(encoding="utf-8")):
        if target != "alone":
            assert re.search(rf"^{target}:.*## ", makefile, re.MULTILINE), target


def test_make_alone_lists_the_targets() -> None:
    listed = subprocess.run(["make", "-C", ROOT], capture_output=True, text=True, check=True).stdout
    for target in ("demo", "test", "check", "bench"):
        assert re.search(rf"^  make {target} +\S", listed, re.MULTILINE)


def test_every_command_has_help_with_an_example() -> None:
    root = typer.main.get_command(app)
    for name, command in root.commands.items():  # type: ignore[attr-defined]
        for inner_name, inner in getattr(command, "commands", {"": command}).items():
            path = f"entrepot {name} {inner_name}".strip()
            assert inner.help, path
            assert inner.epilog is not None, path
            assert f"{name} {inner_name}".strip() in inner.epilog, path


def test_help_is_quick_and_needs_nothing(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "entrepot", "--help"], capture_output=True, text=True, check=True, cwd=tmp_path
    )
    assert "replicate" in done.stdout
    assert list(tmp_path.iterdir()) == []


def test_every_metric_is_documented_and_no_other() -> None:
    program = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "src").rglob("*.py"))
    made = set(re.findall(r"\b(?:Counter|Histogram|Gauge|\w+MetricFamily)\(\s*\"(entrepot_\w+)\"", program))
    # Those of replication have their prefix in one place.
    made |= {
        f"entrepot_replication_{name}{'_total' if kind == 'counter' else ''}"
        for kind, name in re.findall(r"\b_(counter|gauge)\(\s*\"(\w+)\"", program)
    }
    pages = "".join(
        (ROOT / "docs" / "reference" / page).read_text(encoding="utf-8")
        for page in ("metrics.md", "replication-runs.md")
    )
    assert len(made) > 15
    assert set(re.findall(r"^\| `(entrepot_\w+)[`{]", pages, re.MULTILINE)) - {"entrepot_replication_"} == made


def test_a_test_stands_behind_every_row_of_the_security_notes() -> None:
    page = (ROOT / "docs" / "security.md").read_text(encoding="utf-8")
    rows = [line for line in page.splitlines() if line.startswith("| ") and not line.endswith("shown by |")]
    assert len(rows) > 30
    for row in rows:
        (named,) = re.findall(r"`(tests/[\w/]+\.py(?:::\w+)?)` \|$", row)
        path, _, test = named.partition("::")
        text = (ROOT / path).read_text(encoding="utf-8")
        assert re.search(rf"^ *(?:async )?def {test or 'test_'}", text, re.MULTILINE), named
