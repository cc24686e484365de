"""House rules that a machine can check: what no file may contain. Who may import whom is in .importlinter."""

from __future__ import annotations

import ast
import re
from pathlib import Path

PACKAGE = Path(__file__).parent.parent / "qat_lightning"
FILES = sorted(PACKAGE.rglob("*.py"))

PICKLES = {"pickle", "_pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
SHELLS = {"subprocess", "pty", "pexpect", "commands", "code", "runpy", "ctypes"}
CALLS = re.compile(
    r"(builtins\.)?(eval|exec|compile|__import__)|os\.(system|popen|fork|forkpty|startfile|exec\w+|(posix_)?spawn\w*)"
    r"|asyncio\.create_subprocess_\w+|torch\.hub\.\w+|torch\.(jit|package)\.\w+|(\w+\.)*(unsafe_load|load_from_checkpoint)"
    r"|yaml\.(full|unsafe)_load(_all)?|(\w+\.)*read_pickle"
)
"""Calls that run text, a command or a pickle, whatever their arguments."""

SYSTEMS = {"fcntl", "resource", "pwd", "grp", "termios", "tty", "msvcrt", "winreg"}
"""Modules that only one operating system has."""

NAMED_IMPORTS = {"config/allowed_targets.py": 1}
"""How often a module may be imported by a name that is a value: behind the allowlist, and nowhere else."""


def imports(tree: ast.AST) -> set[str]:
    """Dotted names of all that is imported, inside functions and under TYPE_CHECKING as well."""
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute, so that one can see the floor"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def dangerous(tree: ast.AST) -> list[str]:
    """Pickles, shells, evaluated text, and loading of weights or settings that may hold code."""
    names = imports(tree)
    found = sorted({name.split(".")[0] for name in names} & (PICKLES | SHELLS))
    found += sorted(name for name in names if CALLS.fullmatch(name) or name in {"torch.load", "yaml.load"})
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            found += _dangerous_call(ast.unparse(node.func), node)
        if isinstance(node, ast.Import):  # by another name, its calls would not be seen
            found += [ast.unparse(each) for each in node.names if each.asname and each.name in {"os", "torch", "yaml"}]
    return found


def _dangerous_call(called: str, node: ast.Call) -> list[str]:
    given = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords if keyword.arg is not None}
    splat = any(keyword.arg is None for keyword in node.keywords)
    found = [called] if CALLS.fullmatch(called) else []
    if called == "torch.load" and (splat or given.get("weights_only") != "True"):
        found.append(called)
    if called in {"yaml.load", "yaml.load_all"} and (
        splat or not {given.get("Loader"), *map(ast.unparse, node.args[1:])} & {"yaml.SafeLoader", "yaml.CSafeLoader"}
    ):
        found.append(called)
    wrong = {"allow_pickle": "False", "shell": "False", "weights_only": "True", "trust_remote_code": "False"}
    for name, safe in wrong.items():
        # What is no constant comes from a setting: the one for trusted code is checked where it is read.
        if name in given and given[name] in {"True", "False", "None"} and given[name] != safe:
            found.append(f"{name}={given[name]}")
    return found


def named_imports(tree: ast.AST) -> int:
    """Modules that are imported by a name that the source does not hold."""
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    named = [node for node in calls if ast.unparse(node.func).rpartition(".")[2] in {"import_module", "find_spec"}]
    return sum(not (node.args and isinstance(node.args[0], ast.Constant)) for node in named)


def ids(file: Path) -> str:
    return str(file.relative_to(PACKAGE))


TREES = {ids(file): ast.parse(file.read_text(encoding="utf-8"), filename=str(file)) for file in FILES}


def test_nothing_dangerous() -> None:
    assert {name: found for name, tree in TREES.items() if (found := dangerous(tree))} == {}


def test_modules_are_imported_by_name_behind_the_allowlist_alone() -> None:
    assert {name: count for name, tree in TREES.items() if (count := named_imports(tree))} == NAMED_IMPORTS


def test_no_module_of_one_operating_system_is_imported() -> None:
    """Windows is not tested, and no import keeps it out."""
    found = {
        name: names & SYSTEMS for name, tree in TREES.items() if (names := {one.split(".")[0] for one in imports(tree)})
    }
    assert not any(found.values()), found


def test_no_file_for_odds_and_ends() -> None:
    assert not [name for name in TREES if Path(name).stem in {"utils", "helpers", "common", "misc"}]


def test_init_files_only_re_export() -> None:
    for name, tree in TREES.items():
        if not name.endswith("__init__.py"):
            continue
        assert isinstance(tree, ast.Module)
        exported: set[str] = set()
        for node in tree.body:
            is_docstring = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
            is_lazy = isinstance(node, ast.If | ast.FunctionDef) and name == "__init__.py"  # the public names
            is_names = isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) in {"__all__", "__version__"}
            assert is_docstring or is_names or is_lazy or isinstance(node, ast.Import | ast.ImportFrom), name
            if isinstance(node, ast.Assign) and "__all__" in ast.unparse(node):
                exported |= set(ast.literal_eval(node.value))
        assert exported - {"__version__"} <= {one.split(".")[-1] for one in imports(tree)}, name


SOURCES = [
    ("import pickle", ["pickle"]),
    ("from dill import loads", ["dill"]),
    ("def f(x):\n    return eval(x)", ["eval"]),
    ("torch.load(path)", ["torch.load"]),
    ("torch.load(path, weights_only=False)", ["torch.load", "weights_only=False"]),
    ("import torch as pytorch", ["torch as pytorch"]),
    ("torch.load(path, weights_only=True)\nmodel.eval()", []),
    ("torch.load(path, **given)", ["torch.load"]),
    ("torch.load(path, weights_only=True, **given)", ["torch.load"]),
    ("torch.load(path, weights_only=trusting)", ["torch.load"]),
    ("from torch import load", ["torch.load"]),
    ("from os import system", ["os.system"]),
    ("from builtins import eval as value", ["builtins.eval"]),
    ("os.system(command)", ["os.system"]),
    ("os.popen(command)", ["os.popen"]),
    ("os.execvp(name, words)", ["os.execvp"]),
    ("os.posix_spawn(name, words, {})", ["os.posix_spawn"]),
    ("import subprocess", ["subprocess"]),
    ("from subprocess import run", ["subprocess"]),
    ("run(command, shell=True)", ["shell=True"]),
    ("asyncio.create_subprocess_shell(command)", ["asyncio.create_subprocess_shell"]),
    ("__import__(name)", ["__import__"]),
    ("import marshal", ["marshal"]),
    ("numpy.load(path, allow_pickle=True)", ["allow_pickle=True"]),
    ("numpy.load(path)\nnumpy.load(path, allow_pickle=False)", []),
    ("pandas.read_pickle(path)", ["pandas.read_pickle"]),
    ("yaml.load(text)", ["yaml.load"]),
    ("yaml.load(text, Loader=yaml.Loader)", ["yaml.load"]),
    ("yaml.load(text, yaml.FullLoader)", ["yaml.load"]),
    ("yaml.unsafe_load(text)", ["yaml.unsafe_load"]),
    ("yaml.load(text, yaml.SafeLoader)\nyaml.load(text, Loader=yaml.SafeLoader)\nyaml.safe_load(text)", []),
    ("torch.hub.load(name, model)", ["torch.hub.load"]),
    ("QATModule.load_from_checkpoint(path)", ["QATModule.load_from_checkpoint"]),
    ("trainer.fit(module, weights_only=False)", ["weights_only=False"]),
    ("auto.from_pretrained(path, trust_remote_code=True)", ["trust_remote_code=True"]),
    ("auto.from_pretrained(path, trust_remote_code=False)\nre.compile(text)\nmodel.compile()", []),
]


def test_the_check_sees_what_is_dangerous() -> None:
    assert {source: dangerous(ast.parse(source)) for source, _ in SOURCES} == dict(SOURCES)


def test_the_check_sees_an_import_by_a_name() -> None:
    assert named_imports(ast.parse("importlib.import_module(name)\nimport_module(f'a.{name}')")) == 2
    assert named_imports(ast.parse("importlib.import_module('math')")) == 0


PRINTS = {"io/screen.py": {"print"}, "commands/cli.py": {"print"}}
"""Where the terminal is written to; `screen` escapes control characters, and `cli` prints its own help."""


def test_only_the_screen_prints() -> None:
    for name, tree in TREES.items():
        calls = {ast.unparse(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}
        printing = {called for called in calls if called in {"print", "Console"} or called.startswith("sys.std")}
        assert printing - {"sys.stdout.flush", "sys.stderr.flush"} <= PRINTS.get(name, set()), name
