"""Recipe files as people write them: YAML, with what its grammar forgets to refuse."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from regraft.errors import UsageError, nearest

SHIPPED = Path(__file__).parents[1] / "recipes"


class _Loader(yaml.SafeLoader):
    """Plain values only. `1e-3` is a number (YAML 1.1 reads a text); a key given twice is refused, not overwritten."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        for number, key in enumerate(keys):
            if key in keys[:number]:
                raise yaml.MarkedYAMLError(
                    problem=f"{key!r} is there twice", problem_mark=node.value[number][0].start_mark
                )
        return super().construct_mapping(node, deep)


class _Dumper(yaml.SafeDumper):
    """Quotes the texts that `_Loader` would take for numbers."""


for _side in (_Loader, _Dumper):
    _side.yaml_implicit_resolvers = {k: list(v) for k, v in yaml.SafeLoader.yaml_implicit_resolvers.items()}
    _side.add_implicit_resolver(
        "tag:yaml.org,2002:float", re.compile(r"[-+]?(?:\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
    )


def dump_yaml(tree: Any) -> str:
    """The text that `parse_yaml` reads `tree` from."""
    return yaml.dump(tree, Dumper=_Dumper, sort_keys=False)


def parse_yaml(text: str, where: str) -> Any:
    """What a YAML text says. Raises `UsageError`, with the line, where it is none; `where` names it."""
    try:
        return yaml.load(text, _Loader)
    except Exception as error:  # whatever Python raises gets out of PyYAML: '!!timestamp x' is an AttributeError
        line = getattr(getattr(error, "problem_mark", None), "line", None)
        what = getattr(error, "problem", None) or str(error).partition("\n")[0]
        raise UsageError(
            f"{where} is not YAML" + (f" (line {line + 1})" if line is not None else "") + f": {what}"
        ) from None


def read_yaml(source: str | Path) -> dict[str, Any]:
    """The mapping in a recipe file, or in the shipped recipe of that name; `name` is the file's unless it says another.

    Raises `UsageError` if there is none, or if it cannot be read, is not YAML, or not a mapping.
    """
    path = Path(source)
    try:
        if not path.is_file():
            path = _shipped(str(source))
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise UsageError(f"cannot read the recipe {str(source)[:200]!r}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise UsageError(f"{path} is not YAML: it is not text in UTF-8") from None
    tree = parse_yaml(text, str(path))
    if not isinstance(tree, dict):
        raise UsageError(f"{path} is not a recipe: it should hold settings such as 'training: {{epochs: 30}}'")
    tree.setdefault("name", path.stem)
    return tree


def _shipped(name: str) -> Path:
    known = {path.stem: path for path in SHIPPED.glob("*.yaml")}
    if name not in known:
        raise UsageError(f"no recipe file or shipped recipe is called {name!r}: {nearest(name, known)}")
    return known[name]
