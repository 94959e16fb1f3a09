"""Write the parts of the documentation that are generated from the program; `make docs`."""

from pathlib import Path

from entrepot.settings import setting_fields

TARGET = Path(__file__).parents[1] / "docs" / "reference" / "settings.md"

HEAD = """\
# Settings

The first that speaks wins: command line, environment, configuration file, default. In the environment a setting is
`ENTREPOT_` and its name, nested with `__`. In the file (TOML, `--config FILE` or `ENTREPOT_CONFIG`) it is the name in
lower case, nested in tables: `ENTREPOT_LOG__LEVEL` is `level` in `[log]`. An unknown name is an error. A secret may
come from a file: `ENTREPOT_SECRET_KEY_FILE` names one.

| setting | default | what it is |
|---|---|---|
"""


def render() -> str:
    """The page."""
    rows = []
    for name, field in setting_fields():
        default = field.get_default(call_default_factory=True)
        shown = getattr(default, "value", default)
        if hasattr(default, "get_secret_value") or shown == "":
            shown = "see right"
        elif isinstance(shown, bool):
            shown = str(shown).lower()
        rows.append(f"| `{name}` | `{shown}` | {field.description} |\n".replace("`see right`", ""))
    return HEAD + "".join(rows)


if __name__ == "__main__":
    TARGET.write_text(render(), encoding="utf-8")
