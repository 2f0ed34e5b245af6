"""A JSON schema, rewritten so that llguidance enforces all of it; what it cannot enforce is refused by name.

Objects are closed: a property that the schema does not name is left out, unless the schema asks for such properties. So
are tuples. A schema without `type` whose keywords are about one type has that type. All of these only leave out texts.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import unquote

from .one_of import Facts, rejects
from .schema_support import (
    ARRAY_KEYWORDS,
    KEYWORDS,
    OBJECT_KEYWORDS,
    Refused,
    check_keywords,
    check_value,
    count,
    has_control_characters,
    implied_type,
    number_keywords,
    pattern,
    property_counts,
    string_keywords,
    types_of,
    without_property_names,
)

_IN_PLACE = ("$ref", "allOf", "anyOf", "oneOf")


def enforceable_schema(schema: Any) -> tuple[dict[str, Any], bool]:
    """The rewritten schema; and whether it has an object with keys that it names, beside others that it does not name.

    Raises:
        Refused: the place, the keyword and the reason.
        RecursionError: it is nested too deeply.
    """
    if schema is False:
        raise Refused("the schema is false: no text matches")
    rewriting = _Rewriting(schema)
    root = rewriting.value(schema, "the schema")
    return rewriting.finished(root), rewriting.has_open_keys


@dataclass(frozen=True)
class _Leaf:
    """The keywords of one value in one place of the schema."""

    schema: Mapping[str, Any]
    path: str


@dataclass(frozen=True)
class _Choice:
    """An `anyOf` or `oneOf`."""

    keyword: str
    branches: list[tuple[Any, str]]


@dataclass
class _Names:
    """What all schemas of one value say about keys of an object."""

    names: dict[str, None] = field(default_factory=dict)
    patterns: dict[str, None] = field(default_factory=dict)
    is_open: bool = False
    """Other keys may come."""
    has_type: bool = False

    def copy(self) -> _Names:
        return _Names(dict(self.names), dict(self.patterns), self.is_open, self.has_type)

    def add(self, schema: Mapping[str, Any]) -> None:
        properties = schema.get("properties", {})
        self.names.update(dict.fromkeys(properties if isinstance(properties, Mapping) else ()))
        required = schema.get("required", ())
        self.names.update(dict.fromkeys(required if isinstance(required, list) else ()))
        patterns = schema.get("patternProperties", {})
        self.patterns.update(dict.fromkeys(patterns if isinstance(patterns, Mapping) else ()))
        self.is_open |= any(
            schema.get(keyword, False) is not False for keyword in ("additionalProperties", "unevaluatedProperties")
        )
        self.has_type |= any(keyword in schema for keyword in ("type", "const", "enum"))


class _Rewriting:
    def __init__(self, root: Any) -> None:
        self.has_open_keys = False
        self._root = root
        self._names: dict[str, str] = {}
        self._definitions: dict[str, Any] = {}
        self._waiting: list[str] = []
        self._with_controls: list[str] = []

    def finished(self, root: Any) -> dict[str, Any]:
        """The rewritten root with all definitions that it needs."""
        while self._waiting:
            pointer = self._waiting.pop()
            self._definitions[self._names[pointer]] = self.value(self._resolve(pointer), pointer)
        if self.has_open_keys and self._with_controls:
            beside = "an object that may have other keys than its own"
            raise Refused(f"{self._with_controls[0]}: control characters cannot be enforced beside {beside}")
        whole = {"allOf": [root]} if "$ref" in root else dict(root)
        return {**whole, "$defs": self._definitions} if self._definitions else whole

    def value(self, schema: Any, path: str) -> Any:
        """The rewritten schema of a whole value."""
        return self._group(schema, path, _Names(), ())

    def _group(self, schema: Any, path: str, outer: _Names, seen: tuple[str, ...]) -> Any:
        """The rewritten schema of a value, or of a branch of a choice.

        Args:
            outer: what the schemas beside the choice say.
            seen: the references that led here, within this value.
        """
        if isinstance(schema, bool):
            return {} if schema else False
        pointer = _lone_reference(schema)
        if pointer is not None and not outer.names and not outer.is_open and not outer.has_type:
            return {"$ref": f"#/$defs/{self._definition(pointer, path)}"}
        parts = list(self._parts(schema, path, seen))
        leaves = [part for part in parts if isinstance(part, _Leaf)]
        choices = [part for part in parts if isinstance(part, _Choice)]
        known = outer.copy()
        for leaf in leaves:
            known.add(leaf.schema)
        is_alone = len(leaves) == 1 and not choices and not (outer.names or outer.is_open)
        rewritten = [out for leaf in leaves for out in self._leaf(leaf, known, is_alone)]
        for choice in choices:
            beside = known.copy()
            for other in choices:
                if other is not choice:
                    self._add_branches(other, beside)
            rewritten.append(self._choice(choice, beside, seen))
        if known.is_open and (known.names or known.patterns):
            self.has_open_keys = True
        if not known.is_open and (known.names or known.patterns) and not choices and not is_alone:
            rewritten.append(_closed(known))
        if not rewritten:
            return {}
        return rewritten[0] if len(rewritten) == 1 else {"allOf": rewritten}

    def _parts(self, schema: Any, path: str, seen: tuple[str, ...]) -> Iterator[_Leaf | _Choice]:
        """The leaves and choices that a value must satisfy together, in the order in which they stand."""
        if isinstance(schema, bool):
            if not schema:
                yield _Leaf({"enum": []}, path)
            return
        if not isinstance(schema, Mapping):
            raise Refused(f"{path}: got {schema!r}, expected a schema")
        with _place(path):
            check_keywords(schema)
        own = {keyword: value for keyword, value in schema.items() if keyword in KEYWORDS}
        for keyword in schema:
            if own and keyword in own and (keyword in OBJECT_KEYWORDS or not any(k in OBJECT_KEYWORDS for k in own)):
                yield _Leaf(own, path)
                own = {}
            elif keyword == "$ref":
                pointer = _pointer(schema[keyword], path)
                if pointer in seen:
                    raise Refused(f"{path}: '$ref' {pointer!r} leads back to itself without a property or an item")
                yield from self._parts(self._resolve(pointer), pointer, (*seen, pointer))
            elif keyword in ("allOf", "anyOf", "oneOf"):
                branches = _branches(schema, keyword, path)
                if keyword == "allOf" or len(branches) == 1:
                    for branch, place in branches:
                        yield from self._parts(branch, place, seen)
                else:
                    yield _Choice(keyword, branches)
        if own:
            yield _Leaf(own, path)

    def _choice(self, choice: _Choice, outer: _Names, seen: tuple[str, ...]) -> dict[str, Any]:
        """An `anyOf` or `oneOf`, as an `anyOf` of rewritten schemas."""
        if choice.keyword == "oneOf":
            facts = [self._facts(schema, path, outer) for schema, path in choice.branches]
            for i, text in enumerate(facts):
                for j, other in enumerate(facts):
                    if i != j and not rejects(text, other, self._value_facts):
                        place = choice.branches[i][1].rpartition("[")[0].rpartition(".")[0]
                        raise Refused(
                            f"{place}: 'oneOf': a text may match both schemas {min(i, j)} and {max(i, j)}; use 'anyOf'"
                        )
        return {"anyOf": [self._group(schema, path, outer, seen) for schema, path in choice.branches]}

    def _add_branches(self, choice: _Choice, known: _Names) -> None:
        """Adds the keys that branches of a choice name."""
        for schema, path in choice.branches:
            for part in self._parts(schema, path, ()):
                if isinstance(part, _Leaf):
                    known.add(part.schema)
                else:
                    self._add_branches(part, known)

    def _value_facts(self, schema: Any) -> Facts:
        return self._facts(schema, "a property", _Names())

    def _facts(self, schema: Any, path: str, outer: _Names) -> Facts:
        """What is known of all texts of a schema, for `rejects`."""
        known, leaves = outer.copy(), []
        for part in self._parts(schema, path, ()):
            if isinstance(part, _Leaf):
                leaves.append(part.schema)
                known.add(part.schema)
            else:
                self._add_branches(part, known)
        return Facts.of(leaves, set(known.names), known.is_open or bool(known.patterns))

    def _leaf(self, leaf: _Leaf, known: _Names, is_alone: bool) -> Iterator[dict[str, Any] | bool]:
        """The rewritten keywords of one value, as schemas that it must satisfy together."""
        schema, path = leaf.schema, leaf.path
        with _place(path):
            types = types_of(schema)
            if types is None and not known.has_type and (implied := implied_type(schema)):
                types = [implied]
            out: dict[str, Any] = {} if types is None else {"type": types[0] if len(types) == 1 else types}
            for keyword in ("const", "enum"):
                if keyword in schema:
                    check_value(keyword, schema[keyword])
                    if has_control_characters(schema[keyword]):
                        self._with_controls.append(f"{path}: {keyword!r}")
                    out[keyword] = schema[keyword]
            out |= number_keywords(schema)
            strings = string_keywords(schema)
        if any(keyword in schema for keyword in ARRAY_KEYWORDS) and (types is None or "array" in types):
            out |= self._array(schema, path, is_alone)
        if any(keyword in schema for keyword in OBJECT_KEYWORDS) and (types is None or "object" in types):
            out |= self._object(schema, path, known if is_alone else None)
        if strings and (types is None or "string" in types):
            out |= strings.pop(0)
        if out:
            yield out
        yield from strings if types is None or "string" in types else ()

    def _array(self, schema: Mapping[str, Any], path: str, is_alone: bool) -> dict[str, Any]:
        with _place(path):
            out: dict[str, Any] = {
                keyword: count(keyword, schema[keyword]) for keyword in ("minItems", "maxItems") if keyword in schema
            }
            if schema.get("uniqueItems") and out.get("maxItems", 2) > 1:
                raise Refused("'uniqueItems' cannot be enforced; leave it out and check the results")
            if schema.get("unevaluatedItems", True) is not True and not is_alone:
                raise Refused("'unevaluatedItems' cannot be enforced beside other schemas of the same value")
        prefix, items = schema.get("prefixItems"), schema.get("items")
        if isinstance(items, list):  # as before draft 2020-12
            prefix, items = items, schema.get("additionalItems")
        items = schema.get("unevaluatedItems") if items is None else items
        if prefix is not None:
            if not isinstance(prefix, list):
                raise Refused(f"{path}: 'prefixItems': got {prefix!r}, expected a list of schemas")
            out["prefixItems"] = [self.value(child, f"{path}.prefixItems[{i}]") for i, child in enumerate(prefix)]
            if items is None and is_alone and out.get("minItems", 0) <= len(prefix):
                items = False
        if items is not None:
            out["items"] = self.value(items, f"{path}.items")
        return out

    def _object(self, schema: Mapping[str, Any], path: str, known: _Names | None) -> dict[str, Any]:
        """The keywords of an object.

        Args:
            known: all that is said of its keys, where the schema stands alone; None where there are others.
        """
        if "propertyNames" in schema:
            with _place(path):
                schema = without_property_names(schema, known is not None)
                if known is not None:
                    known = _Names()
                    known.add(schema)
        with _place(path):
            required = schema.get("required", [])
            if not isinstance(required, list) or not all(isinstance(name, str) for name in required):
                raise Refused(f"'required': got {required!r}, expected a list of names")
        out: dict[str, Any] = {"required": required} if required else {}
        for keyword in ("properties", "patternProperties"):
            children = schema.get(keyword, {})
            if not isinstance(children, Mapping):
                raise Refused(f"{path}: {keyword!r}: got {children!r}, expected an object of schemas")
            rewritten = {name: self.value(child, f"{path}.{keyword}.{name}") for name, child in children.items()}
            if keyword == "patternProperties":
                with _place(path):
                    rewritten = {pattern(name): child for name, child in rewritten.items()}
            if rewritten:
                out[keyword] = rewritten
        others = schema.get("additionalProperties")
        if schema.get("unevaluatedProperties", False) is not False and others is None:
            if known is None:
                raise Refused(
                    f"{path}: 'unevaluatedProperties' cannot be enforced beside other schemas of the same value"
                )
            others = schema["unevaluatedProperties"]
        if (
            others is None
            and known is not None
            and (known.names or known.patterns or "unevaluatedProperties" in schema)
        ):
            others = False
            missing = [name for name in required if name not in out.get("properties", {})]
            out["properties"] = {**out.get("properties", {}), **{name: {} for name in missing}}
        if others is not None:
            out["additionalProperties"] = self.value(others, f"{path}.additionalProperties")
        with _place(path):
            out |= property_counts(schema, len(set(required)), others is not False or "patternProperties" in out)
        return out

    def _definition(self, pointer: str, path: str) -> str:
        """The name of the definition that a reference leads to."""
        if pointer not in self._names:
            self._resolve(pointer, path)
            self._names[pointer] = f"d{len(self._names)}"
            self._waiting.append(pointer)
        return self._names[pointer]

    def _resolve(self, pointer: str, path: str = "") -> Any:
        """The schema at "#" or "#/a/b"."""
        target = self._root
        for step in pointer.split("/")[1:]:
            key = unquote(step).replace("~1", "/").replace("~0", "~")
            if isinstance(target, list) and key.isdigit() and int(key) < len(target):
                target = target[int(key)]
            elif isinstance(target, Mapping) and key in target:
                target = target[key]
            else:
                raise Refused(f"{path or pointer}: '$ref' {pointer!r} leads nowhere")
        return target


class _place:
    """Puts the place in front of what is raised inside."""

    def __init__(self, path: str) -> None:
        self._path = path

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if isinstance(error, Refused):
            raise Refused(f"{self._path}: {error}", error.is_too_large) from error


def _branches(schema: Mapping[str, Any], keyword: str, path: str) -> list[tuple[Any, str]]:
    value = schema[keyword]
    if not isinstance(value, list):
        raise Refused(f"{path}: {keyword!r}: got {value!r}, expected a list of schemas")
    if not value:
        raise Refused(f"{path}: {keyword!r} is empty")
    return [(child, f"{path}.{keyword}[{i}]") for i, child in enumerate(value)]


def _pointer(value: Any, path: str) -> str:
    if not isinstance(value, str) or not (value == "#" or value.startswith("#/")):
        raise Refused(f"{path}: '$ref' {value!r} cannot be followed; only '#' and '#/...' within the schema can")
    return value


def _lone_reference(schema: Any) -> str | None:
    """The reference of a schema that says nothing else."""
    if not isinstance(schema, Mapping):
        return None
    said = [keyword for keyword in schema if keyword in (*KEYWORDS, *_IN_PLACE)]
    if said == ["$ref"] and isinstance(schema["$ref"], str) and schema["$ref"].startswith("#"):
        return schema["$ref"] if schema["$ref"] == "#" or schema["$ref"].startswith("#/") else None
    if said == ["allOf"] and isinstance(schema["allOf"], list) and len(schema["allOf"]) == 1:
        return _lone_reference(schema["allOf"][0])
    return None


def _closed(known: _Names) -> dict[str, Any]:
    """A schema that leaves out the keys that are not known."""
    out: dict[str, Any] = {"additionalProperties": False}
    if known.names:
        out["properties"] = {name: {} for name in known.names}
    if known.patterns:
        out["patternProperties"] = {pattern(name): {} for name in known.patterns}
    return out
