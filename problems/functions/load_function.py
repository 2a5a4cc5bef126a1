"""A function named as `module:function`, imported, with a digest of its source."""

import ast
import hashlib
import importlib
import inspect
import sys
from collections.abc import Callable
from functools import partial
from operator import attrgetter
from pathlib import Path

LIBRARIES = ("site-packages", "dist-packages")
OWN = __name__.partition(".")[0]  # this package, which the folder may hold


def load_function(name: str, folder) -> tuple[Callable, str]:
    """Import a function.

    :param name: `"module:function"`. The module is looked for in the folder first, then where
        Python looks. A module of the folder is read anew, with those that it imports from there.
    :param folder: stays on Python's path, as that of a script does.
    :return: the function, and the SHA-256 of its module and of the modules in the same place that
        this imports, directly or not.
    :raises ValueError: if there is no such function, or its module cannot be imported, in one
        sentence.
    """
    module_name, _, attribute = name.partition(":")
    if not module_name or not attribute:
        expected = "expected module:function, such as my_fitness:score"
        raise ValueError(f"fitness: {expected}, found {name!r}")
    folder = Path(folder).resolve()
    path = [str(folder), *[entry for entry in sys.path if entry != str(folder)]]
    sys.path[:] = path
    forget_modules_of(folder, module_name)
    importlib.invalidate_caches()
    try:
        module = importlib.import_module(module_name)
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        found = f"found {type(error).__name__}: {one_line(error)}"
        expected = f"expected a module {module_name} that can be imported, from {folder}"
        raise ValueError(f"fitness {name!r}: {expected}, {found}") from error
    try:
        function = attrgetter(attribute)(module)
    except AttributeError as error:
        hint = near_function(module, attribute)
        expected = f"expected a function {attribute} in {module.__file__}"
        raise ValueError(f"fitness {name!r}: {expected}, found none{hint}") from error
    if not callable(function):
        raise ValueError(f"fitness {name!r}: expected a function, found {function!r}")
    return function, digest_of(function, module.__file__, folder)


def one_line(error: BaseException) -> str:
    """What an error says, in one line."""
    return " ".join(str(error).split()) or "no message"


def near_function(module, attribute: str) -> str:
    """A hint at the function of a module whose name is nearest, or an empty text."""
    import difflib

    functions = [name for name, value in vars(module).items() if callable(value)]
    near = difflib.get_close_matches(attribute, functions, n=1)
    return f"; did you mean {near[0]!r}?" if near else ""


def forget_modules_of(folder: Path, module_name: str) -> None:
    """Have the module and those that it imports from a folder imported anew.

    A process may have imported them before they were changed, or others of the same names from
    another folder.
    """
    first = find_file(folder, module_name)
    if first is None:
        return
    files = {first, *files_imported(first, folder)}
    names = {module_name}
    for file in files:
        relative = file.relative_to(folder).with_suffix("")
        parts = relative.parts[:-1] if relative.name == "__init__" else relative.parts
        names.add(".".join(parts))
    for name in names:
        sys.modules.pop(name, None)


def digest_of(function: Callable, file: str | None = None, folder: Path | None = None) -> str:
    """The SHA-256 of the source of a function.

    :param file: of its module; by default that in which it was written. All of it counts. A
        function without a file has the digest of its own source, or of its name.
    :param folder: the modules under it that the module imports count too, if it is one of them. By
        default the folder of the file.
    """
    while isinstance(function, partial):
        function = function.func
    if file is None:
        try:
            file = inspect.getsourcefile(function)
        except TypeError:
            file = None
    sha256 = hashlib.sha256()
    if file is None or not Path(file).is_file():
        try:
            text = inspect.getsource(function)
        except (OSError, TypeError):
            text = getattr(function, "__qualname__", type(function).__qualname__)
        sha256.update(text.encode())
        return sha256.hexdigest()
    first = Path(file).resolve()
    root = folder if folder is not None and folder in first.parents else first.parent
    for path in [first, *sorted(files_imported(first, root))]:
        sha256.update(f"{path.relative_to(root)}\n".encode())
        sha256.update(path.read_bytes())
    return sha256.hexdigest()


def files_imported(first: Path, root: Path) -> set[Path]:
    """The modules under a folder that a module imports, directly or not.

    :param first: the file of the module.
    :param root: the folder.
    """
    found: set[Path] = set()
    waiting = [first]
    while waiting:
        for name in names_imported(waiting.pop(), root):
            file = find_file(root, name)
            if file is not None and file != first and file not in found:
                found.add(file)
                waiting.append(file)
    return found


def names_imported(file: Path, root: Path) -> list[str]:
    """The names that a module imports, anywhere in it. Names that are no module may be among them.

    :param root: the folder that relative imports are resolved in, as if it were on Python's path.
    :raises ValueError: if the file is not Python.
    """
    if file.suffix != ".py":
        return []
    names = []
    try:
        tree = ast.parse(file.read_bytes())
    except SyntaxError:
        return []  # importing it says why
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            module = _absolute(node, file, root)
            prefix = f"{module}." if module else ""
            names += [module] if module else []
            names += [f"{prefix}{alias.name}" for alias in node.names]
    return names


def _absolute(node: ast.ImportFrom, file: Path, root: Path) -> str:
    """The module that `from ... import` names, from the root; empty for the root itself."""
    if node.level == 0 or root not in file.parents:
        return node.module or ""
    package = file.parent.relative_to(root).parts
    names = list(package[: max(0, len(package) - node.level + 1)])
    if node.module:
        names.append(node.module)
    return ".".join(names)


def find_file(root: Path, name: str) -> Path | None:
    """The file of a module under a folder, or None if the folder does not have it.

    Libraries and this package do not count, even where the folder has them.
    """
    if name.partition(".")[0] == OWN:
        return None
    place = root.joinpath(*name.split("."))
    for file in (place.with_suffix(".py"), place / "__init__.py"):
        inside = not any(part in LIBRARIES for part in file.relative_to(root).parts)
        if inside and file.is_file():
            return file
    return None
