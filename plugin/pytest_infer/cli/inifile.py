"""The gate's rules in the ini file that pytest would read, so that the command and pytest have one set of rules."""

from __future__ import annotations

import sys
from pathlib import Path

import iniconfig

from pytest_infer.errors import OptionError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

KEY = "infer_gate"
_INI_FILES = {"pytest.ini": "pytest", ".pytest.ini": "pytest", "tox.ini": "pytest", "setup.cfg": "tool:pytest"}


def gate_rules(folder: Path) -> list[str]:
    """Return the lines of `infer_gate` in the nearest configuration of pytest at or above the folder; [] for none.

    Raises OptionError where that file cannot be read.
    """
    for place in (folder, *folder.parents):
        found = _of(place)
        if found is not None:
            return found
    return []


def _of(place: Path) -> list[str] | None:
    """Return the rules of one folder's configuration, None where it has no configuration of pytest."""
    try:
        pyproject = place / "pyproject.toml"
        if pyproject.is_file():
            tool = tomllib.loads(pyproject.read_text(encoding="utf-8")).get("tool", {}).get("pytest", {})
            options = tool.get("ini_options", tool)
            if tool:
                value = options.get(KEY, [])
                return value.splitlines() if isinstance(value, str) else [str(line) for line in value]
        for name, section in _INI_FILES.items():
            path = place / name
            if path.is_file():
                config = iniconfig.IniConfig(str(path))
                if section in config:
                    return str(config[section].get(KEY, "")).splitlines()
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError, iniconfig.ParseError) as error:
        raise OptionError(f"the configuration in {place} cannot be read: {error}") from error
    return None
