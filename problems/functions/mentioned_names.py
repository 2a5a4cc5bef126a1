"""The names that a piece of Python mentions, without those that it has made itself."""

import ast
from collections.abc import Iterable, Iterator, Sequence

FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
SCOPES = (*FUNCTIONS, ast.ClassDef, ast.Lambda)


def mentioned(node: ast.AST) -> list[str]:
    """The names in a piece of code with their attributes, and its texts in double quotes.

    Left out are arguments and variables of functions, which hide names outside of these. `self`
    stays, as its attributes are those of a class.
    """
    mentions = _Mentions()
    mentions.visit(node)
    return mentions.found


def dotted_name(node: ast.AST) -> str | None:
    """A name with its attributes, such as `openai.OpenAI`; None of any other code."""
    attributes: list[str] = []
    while isinstance(node, ast.Attribute):
        attributes.insert(0, node.attr)
        node = node.value
    return ".".join([node.id, *attributes]) if isinstance(node, ast.Name) else None


class _Mentions(ast.NodeVisitor):
    """Collects what `mentioned` returns."""

    def __init__(self):
        self.found: list[str] = []
        self.own: list[set[str]] = []  # names of each function around what is visited

    def visit_Constant(self, node: ast.Constant) -> None:
        if isinstance(node.value, str):
            self.found.append(f'"{node.value}"')

    def visit_Name(self, node: ast.Name) -> None:
        if isinstance(node.ctx, ast.Load):
            self._add(node.id)

    def visit_Attribute(self, node: ast.Attribute) -> None:
        dotted = dotted_name(node)
        if dotted is None:
            self.visit(node.value)
        else:
            self._add(dotted)

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        self._visit_function(node, node.body)

    def visit_AsyncFunctionDef(self, node: ast.AsyncFunctionDef) -> None:
        self._visit_function(node, node.body)

    def visit_Lambda(self, node: ast.Lambda) -> None:
        self._visit_function(node, [node.body])

    def visit_ListComp(self, node: ast.ListComp) -> None:
        self._visit_comprehension(node)

    def visit_SetComp(self, node: ast.SetComp) -> None:
        self._visit_comprehension(node)

    def visit_DictComp(self, node: ast.DictComp) -> None:
        self._visit_comprehension(node)

    def visit_GeneratorExp(self, node: ast.GeneratorExp) -> None:
        self._visit_comprehension(node)

    def _add(self, dotted: str) -> None:
        first = dotted.partition(".")[0]
        if first == "self" or not any(first in names for names in self.own):
            self.found.append(dotted)

    def _visit_function(self, node, body: Sequence[ast.AST]) -> None:
        for child in ast.iter_child_nodes(node):  # defaults, decorators and annotations
            if child not in body:
                self.visit(child)
        self.own.append(_names_of_function(node, body))
        for child in body:
            self.visit(child)
        self.own.pop()

    def _visit_comprehension(self, node) -> None:
        names: set[str] = set()
        for generator in node.generators:
            names.update(_made(ast.walk(generator.target)))
        self.own.append(names)
        self.generic_visit(node)
        self.own.pop()


def _names_of_function(node, body: Sequence[ast.AST]) -> set[str]:
    """The arguments and the variables of a function. What it imports is not among them."""
    arguments = node.args
    every = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]
    every += [one for one in (arguments.vararg, arguments.kwarg) if one is not None]
    names = {argument.arg for argument in every}
    names.update(_made(_in_scope(body)))
    elsewhere: set[str] = set()
    for child in _in_scope(body):
        if isinstance(child, (*FUNCTIONS, ast.ClassDef, ast.ExceptHandler)):
            names.add(child.name)  # None where an error gets no name
        elif isinstance(child, (ast.Global, ast.Nonlocal)):
            elsewhere.update(child.names)
        elif isinstance(child, ast.alias):
            elsewhere.add(child.asname or child.name.partition(".")[0])
    return names - elsewhere


def _in_scope(nodes: Sequence[ast.AST]) -> Iterator:
    """Nodes and all that is in them, but not what is inside of inner functions and classes."""
    for node in nodes:
        yield node
        if not isinstance(node, SCOPES):
            yield from _in_scope(list(ast.iter_child_nodes(node)))


def _made(nodes: Iterable[ast.AST]) -> Iterator[str]:
    """The names among some nodes that get a value."""
    for node in nodes:
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id
