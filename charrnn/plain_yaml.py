"""YAML as plain values, with the numbers that everyone means. Without pydantic, for its import takes a tenth of a second."""

from __future__ import annotations

import re
from typing import Any

import yaml

from charrnn.errors import ConfigError, short

LONGEST = 2_000_000  # characters; PyYAML reads about a million in a second
MOST = 100_000  # values, references unfolded: a few lines of them can stand for billions


class Loader(yaml.SafeLoader):
    """YAML with the numbers everyone means: `1e-3` is one, `1:30` is not 90. A key given twice is a mistake."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key_node, _ in node.value:
            if isinstance(key_node, yaml.ScalarNode) and key_node.value in seen:
                raise _mistake(f"key {short(key_node.value)} stands twice in one section; keep one of them", key_node)
            if isinstance(key_node, yaml.ScalarNode):
                seen.add(key_node.value)
        return super().construct_mapping(node, deep)

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep)
        except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError):
            # What PyYAML's constructors let out at `2024-13-45`, `!!int ""` or a number of 5000 digits.
            kind = node.tag.rpartition(":")[2]
            raise _mistake(f"{short(node.value)} is no {kind}; quote it if it is text", node) from None

    def construct_integer(self, node: yaml.ScalarNode) -> int:
        text = self.construct_scalar(node)
        return int(text, 0 if text.lower().lstrip("+-").startswith(("0x", "0o", "0b")) else 10)


def _mistake(problem: str, node: yaml.Node) -> yaml.constructor.ConstructorError:
    return yaml.constructor.ConstructorError(None, None, problem, node.start_mark)


# YAML 1.2's numbers instead of 1.1's, which has 1:30 for 90 and 017 for 15, and 1e-3 for text.
Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag not in ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float")]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
Loader.add_implicit_resolver(
    "tag:yaml.org,2002:int",
    re.compile(r"^(?:[-+]?[0-9]+(?:_[0-9]+)*|0o[0-7]+|0x[0-9a-fA-F]+|0b[01]+)$"),
    list("-+0123456789"),
)
Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^(?:[-+]?(?:[0-9]+(?:_[0-9]+)*\.?[0-9]*|\.[0-9]+)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$"),
    list("-+0123456789."),
)
Loader.add_constructor("tag:yaml.org,2002:int", Loader.construct_integer)


def _unfolded(node: yaml.Node, known: dict[int, int]) -> int:
    """How many values a node stands for, where each reference stands for all that it names. Raises a ConstructorError for too many."""
    if id(node) in known:
        size = known[id(node)]
    else:
        known[id(node)] = 0  # until it is known: who comes by then is within it
        below = [one for pair in node.value for one in pair] if isinstance(node, yaml.MappingNode) else node.value
        size = 1 + (sum(_unfolded(one, known) for one in below) if isinstance(node, yaml.CollectionNode) else 0)
        known[id(node)] = size
    if size == 0:
        raise _mistake("a reference names what it is a part of; write it out", node)
    if size > MOST:
        raise _mistake(f"its references stand for {size:,} values; expected at most {MOST:,}", node)
    return size


def parse_yaml(text: str) -> Any:
    """Plain values. Raises ConfigError, one line, naming line and column."""
    if len(text) > LONGEST:
        raise ConfigError(f"{len(text):,} characters of YAML; expected at most {LONGEST:,}")
    try:
        loader = Loader(text)
        try:
            node = loader.get_single_node()
            if node is None:
                return None
            _unfolded(node, {})
            return loader.construct_document(node)
        finally:
            loader.dispose()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        if isinstance(error, yaml.constructor.ConstructorError):
            raise ConfigError(f"{where}{error.problem}") from None
        context = f"{error.context}, " if error.context else ""
        remedy = "indent with spaces" if "'\\t'" in str(error.problem) else "check indentation and quotes there"
        raise ConfigError(f"{where}not valid YAML: {context}{error.problem}; {remedy}") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"not valid YAML: {' '.join(str(error).split())}; expected plain text") from None
    except RecursionError:
        raise ConfigError("not valid YAML: nested too deeply; expected sections with keys") from None
