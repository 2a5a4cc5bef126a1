"""Run what a guide shows: its blocks of Python, its settings files and its lines of `evogm`."""

import re
import shlex
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
HUB_BASE = "HuggingFaceTB/SmolLM2-135M-Instruct"  # of the guides; tests have no network


def blocks(page, language):
    """The code blocks of a page in a language."""
    return re.findall(rf"```{language}\n(.*?)```", page.read_text("utf-8"), flags=re.DOTALL)


def block(page, language, part):
    """The one code block of a page with a text in it."""
    (found,) = [code for code in blocks(page, language) if part in code]
    return found


def code_files(page, languages=("python", "yaml", "json")):
    """The code blocks of a page whose first line is a comment with a file name, by this name."""
    files = {}
    for language in languages:
        for code in blocks(page, language):
            named = re.match(r"# ([\w/]+\.(?:py|yaml|jsonl))\b", code)
            if named:
                files[named[1]] = code
    return files


def run_python(code, name, values=None):
    """Run a block of Python, and return what it defined.

    :param values: what an earlier block defined.
    """
    found = {"__name__": "__main__", **(values or {})}
    sys.modules.pop(Path(name).stem, None)
    exec(compile(code, name, "exec"), found)
    return found


def commands(code):
    """The words of every command in a block of shell lines, without comments."""
    joined = code.replace("\\\n", " ")
    return [words for line in joined.splitlines() if (words := shlex.split(line, comments=True))]


def run_shell(code, more=None):
    """Run the lines of a block that start `evogm` or a script in the folder.

    :param more: words to add, by sub-command of `evogm`.
    :return: the exit status of every line.
    """
    from evox_evogm.command import cli

    statuses = []
    for program, *words in commands(code):
        if program == "evogm":
            statuses.append(cli.main([*words, *(more or {}).get(words[0], ())]))
        elif program == "python":
            run_python(Path(words[0]).read_text(), words[0])
            statuses.append(0)
        else:
            raise AssertionError(f"a test cannot run {program}")
    return statuses
