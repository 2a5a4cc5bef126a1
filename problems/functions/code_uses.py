"""What functions reach for outside of their own files, found by reading their source.

Nothing is called. Followed are functions, classes and variables of the same file and of files
beside it. What a library does is not seen.
"""

import ast
import builtins
from collections.abc import Callable, Iterator
from functools import lru_cache, partial
from importlib.util import find_spec
from inspect import unwrap
from pathlib import Path
from typing import NamedTuple

from evox_evogm.problems.functions.load_function import find_file
from evox_evogm.problems.functions.mentioned_names import FUNCTIONS, dotted_name, mentioned


class Use(NamedTuple):
    """Something that a function reaches for.

    :param what: a name such as `openai.OpenAI` or `exec`, or a text in double quotes.
    :param file: where it stands.
    """

    what: str
    file: Path

    def __str__(self):
        return f"{self.what} in {self.file.name}"


def uses_of(function: Callable, package: str = "") -> Iterator[Use]:
    """All that a function, and what it calls of its own files, reaches for.

    :param function: one without a file reaches for nothing.
    :param package: modules of this package are followed from wherever they are imported.
    """
    while isinstance(function, partial):
        function = function.func
    function = unwrap(function)
    if not hasattr(function, "__code__"):  # an object that is called as a function
        function = type(function).__call__
    code = getattr(function, "__code__", None)
    if code is not None and Path(code.co_filename).is_file():
        name = function.__qualname__.partition(".<locals>")[0]  # of a closure, what made it
        yield from uses_in(Path(code.co_filename), name, package)


def uses_in(file: Path, name: str, package: str = "") -> Iterator[Use]:
    """All that a function of a file reaches for, see `uses_of`.

    :param name: of the function; of a method `Class.method`.
    """
    yield from _Walk(package).follow(file, name)


class _Source(NamedTuple):
    """A file of Python.

    :param defined: functions, classes, methods (`Class.method`) and variables of the module.
    :param imported: what names of the module stand for, such as `openai.OpenAI` for `OpenAI`. What
        is imported relatively begins with a dot for each level.
    :param stars: the modules of which all names are imported.
    """

    defined: dict[str, ast.AST]
    imported: dict[str, str]
    stars: list[str]


@lru_cache
def _read(file: Path) -> _Source:
    source = _Source({}, {}, [])
    try:
        tree = ast.parse(file.read_bytes())
    except (OSError, SyntaxError):  # importing it says why
        return source
    for node in tree.body:
        _add(node, source)
    return source


def _add(node: ast.AST, source: _Source) -> None:
    """Note what a statement of a module defines or imports, also below `try` and `if`."""
    source.imported.update(_imports(node))
    if "*" in source.imported:
        source.stars.append(source.imported.pop("*").removesuffix(".*"))
    if isinstance(node, FUNCTIONS):
        source.defined[node.name] = node
    elif isinstance(node, ast.ClassDef):
        source.defined[node.name] = node
        for method in node.body:
            if isinstance(method, FUNCTIONS):
                source.defined[f"{node.name}.{method.name}"] = method
    elif isinstance(node, ast.Assign):
        for target in node.targets:
            if isinstance(target, ast.Name):
                source.defined[target.id] = node.value
    elif isinstance(node, ast.AnnAssign):
        if isinstance(node.target, ast.Name) and node.value is not None:
            source.defined[node.target.id] = node.value
    elif isinstance(node, (ast.If, ast.Try, ast.With, ast.ExceptHandler)):
        for child in ast.iter_child_nodes(node):
            _add(child, source)


def _imports(node: ast.AST) -> dict[str, str]:
    """What the names stand for that a statement imports."""
    names = {}
    if isinstance(node, ast.Import):
        for alias in node.names:
            first = alias.name.partition(".")[0]
            names[alias.asname or first] = alias.name if alias.asname else first
    elif isinstance(node, ast.ImportFrom):
        module = f"{node.module}." if node.module else ""
        for alias in node.names:
            names[alias.asname or alias.name] = f"{'.' * node.level}{module}{alias.name}"
    return names


class _Walk:
    """A walk through functions that call each other.

    :param package: see `uses_of`.
    """

    def __init__(self, package: str):
        self.package = package
        spec = find_spec(package) if package else None
        self.root = None if spec is None or spec.origin is None else Path(spec.origin).parent
        self.seen: set[tuple[Path, str]] = set()

    def follow(self, file: Path, name: str) -> Iterator[Use]:
        """What a function, a class or a variable of a file reaches for."""
        source = _read(file)
        if (file, name) in self.seen:
            return
        self.seen.add((file, name))
        node = source.defined.get(name)
        if node is None:
            if name in source.imported:  # and from here by another
                yield from self._outside(file, source.imported[name])
            return
        imported = dict(source.imported)
        for child in ast.walk(node):
            own = _imports(child)
            imported.update(own)
            for dotted in own.values():
                yield from self._outside(file, dotted)
        for dotted in mentioned(node):
            first, _, rest = dotted.partition(".")
            if first == "self":
                owner, method = name.partition(".")[0], rest.partition(".")[0]
                yield from self._follow_method(file, owner, method)
            elif first in imported:
                yield from self._outside(file, f"{imported[first]}.{rest}".rstrip("."))
            elif first in source.defined:
                yield from self.follow(file, first)
            elif hasattr(builtins, first) or first.startswith('"'):
                yield Use(dotted, file)
            else:
                for module in source.stars:
                    yield from self._outside(file, f"{module}.{dotted}")

    def _follow_method(self, file: Path, owner: str, method: str) -> Iterator[Use]:
        """What a method of a class reaches for, which may be inherited."""
        source = _read(file)
        node = source.defined.get(owner)
        if f"{owner}.{method}" in source.defined or not isinstance(node, ast.ClassDef):
            yield from self.follow(file, f"{owner}.{method}")
            return
        for base in node.bases:
            dotted = dotted_name(base)
            if dotted is None:
                continue
            first, _, rest = dotted.partition(".")
            if first in source.imported:
                inherited = f"{source.imported[first]}.{rest}".rstrip(".")
                yield from self._outside(file, f"{inherited}.{method}")
            elif dotted != owner:
                yield from self._follow_method(file, dotted, method)

    def _outside(self, file: Path, dotted: str) -> Iterator[Use]:
        """Something that a file imports: what that reaches for, if it is beside; else its name."""
        name = dotted.lstrip(".")
        level = len(dotted) - len(name)
        parts = name.split(".")
        for count in range(len(parts), -1, -1):
            beside = self._find(file, ".".join(parts[:count]), level)
            if beside is None:
                continue
            inside = parts[count:]
            if len(inside) > 1 and isinstance(_read(beside).defined.get(inside[0]), ast.ClassDef):
                yield from self._follow_method(beside, *inside[:2])
            elif inside:
                yield from self.follow(beside, inside[0])
            return
        yield Use(dotted, file)

    def _find(self, file: Path, module: str, level: int) -> Path | None:
        """The file of a module beside a file, or of the package; None of a library.

        :param module: empty for the package that the file is in, or one above it.
        :param level: of a relative import: 1 is the folder of the file, 2 the one above it.
        """
        if level > 0:
            root = file.parents[min(level, len(file.parents)) - 1]
            return find_file(root, module) if module else _file_of_package(root)
        if not module:
            return None
        if self.root is not None and module.startswith(f"{self.package}."):
            return find_file(self.root, module.removeprefix(f"{self.package}."))
        return find_file(file.parent, module)


def _file_of_package(folder: Path) -> Path | None:
    """The file with what a package itself defines, or None."""
    file = folder / "__init__.py"
    return file if file.is_file() else None
