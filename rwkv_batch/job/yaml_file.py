"""YAML of job files: loaded safely, repeated keys are errors, and 1e-5 is a number."""

from __future__ import annotations

import os
import re
from typing import Any

import yaml

from ..errors import ConfigurationError


def read_yaml(path: str | os.PathLike[str]) -> Any:
    """Reads a YAML file.

    Raises:
        ConfigurationError: the file cannot be read or is not valid YAML; the message begins with the path.
    """
    try:
        with open(path, encoding="utf-8") as file:
            return yaml.load(file, _Loader)
    except OSError as error:
        raise ConfigurationError(f"{path}: {error.strerror}; expected a job file in YAML") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{path}: not valid YAML: {_one_line(error)}") from error


def parse_yaml(text: str) -> Any:
    """Reads a YAML value, as it may stand after a key.

    Raises:
        ConfigurationError: the text is not valid YAML.
    """
    try:
        return yaml.load(text, _Loader)
    except yaml.YAMLError as error:
        raise ConfigurationError(f"not a YAML value: {_one_line(error)}") from error


class _Loader(yaml.SafeLoader):
    """The safe loader, which also refuses repeated keys and keys that are no scalars."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key_node, _ in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                problem = "a key is a mapping or a list; quote text that begins with { or ["
                raise yaml.constructor.ConstructorError(None, None, problem, key_node.start_mark)
            key = str(key_node.value)
            if key in seen:
                raise yaml.constructor.ConstructorError(None, None, f"key {key!r} is given twice", key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
