"""The command line of a run as pytest's own parser takes it: its words, its options, and which were given."""

from __future__ import annotations

import os
import shlex
from argparse import Action
from collections.abc import Iterable, Mapping
from typing import Any

import pytest


def parser_of(config: pytest.Config) -> Any:
    """Return pytest's own argparse parser; there is no public way to ask which option takes a value."""
    parser: Any = config._parser
    # pytest 9 has it from the start; before, it is made when needed.
    return getattr(parser, "optparser", None) or parser._getparser()


def options_of(config: pytest.Config) -> Mapping[str, Action]:
    """Return the options that pytest knows, by every spelling."""
    found: Mapping[str, Action] = parser_of(config)._option_string_actions
    return found


def words(config: pytest.Config) -> list[str]:
    """Return what was typed, with the words of a file in place of `@FILE`."""
    return read_in(config, map(str, config.invocation_params.args))


def read_in(config: pytest.Config, typed: Iterable[str]) -> list[str]:
    """Return words with those of a file in place of `@FILE`, which pytest knows from 8.2 on."""
    parser = parser_of(config)
    found: list[str] = list(typed)
    if parser.fromfile_prefix_chars:
        found = parser._read_args_from_files(found)
    return found


def given(config: pytest.Config, names: Iterable[str]) -> list[str]:
    """Return which of these options (`--name`) are given, in a word anywhere or by a plugin that changed its value."""
    addopts = [*shlex.split(os.environ.get("PYTEST_ADDOPTS", "")), *config.getini("addopts")]
    typed = {word.partition("=")[0] for word in (*read_in(config, addopts), *words(config))}
    defaults, _ = parser_of(config).parse_known_args([])

    def changed(name: str) -> bool:
        values = (getattr(found, name.strip("-").replace("-", "_"), None) for found in (config.option, defaults))
        # As text: a default that is made anew equals no other of its kind.
        return len(set(map(str, values))) > 1

    return [name for name in names if name in typed or changed(name)]
