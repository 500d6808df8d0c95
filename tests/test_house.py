"""The rules of the house: who imports whom, what is where, and that the README's map is true."""
import ast
import os
import re

import pytest

from conftest import ROOT

STAGES = ["bc", "mps", "sft", "grpo_short"]
SCRIPTS = [*STAGES, "env", "judge", "eval"]
LAYERS = [["sandbox"], ["plumbing"], ["env", "judge"], ["baselines.prompting", "baselines.correctors"],
          [*STAGES, "eval"],
          ["baselines"]]                                   # the lowest first; a fork imports what it forks
LAYER = {room: level for level, rooms in enumerate(LAYERS) for room in rooms}


def modules():
    """{dotted name: path} of all Python files that are no demo, bench or test."""
    found = {name: f"{name}.py" for name in SCRIPTS}
    for room in ("plumbing", "plumbing/formulas", "sandbox", "baselines"):
        for name in os.listdir(os.path.join(ROOT, room)):
            if name.endswith(".py"):
                dotted = room if name == "__init__.py" else f"{room}/{name[:-3]}"
                found[dotted.replace("/", ".")] = os.path.join(room, name)
    return found


MODULES = modules()


def tree_of(name):
    with open(os.path.join(ROOT, MODULES[name]), encoding="utf-8") as file:
        return ast.parse(file.read())


def imports(name):
    """The project's modules that one of them imports, inside functions too."""
    found = set()
    for node in ast.walk(tree_of(name)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level:                                  # from .session import
            found.add(f"{name.split('.')[0]}.{node.module}")
        elif isinstance(node, ast.ImportFrom):
            for alias in node.names:
                submodule = f"{node.module}.{alias.name}"
                found.add(submodule if submodule in MODULES else node.module)
    return (found & set(MODULES)) - {name}


@pytest.mark.parametrize("name", [name for name in sorted(MODULES) if name.startswith("baselines.")
                                  and name != "baselines.prompting"])
def test_a_fork_is_short(name):
    """At most 150 lines, and nowhere more than 15 that stand in a script as they are."""
    with open(os.path.join(ROOT, MODULES[name]), encoding="utf-8") as file:
        lines = file.read().splitlines()
    assert len(lines) <= 150
    for script in SCRIPTS:
        with open(os.path.join(ROOT, f"{script}.py"), encoding="utf-8") as file:
            text = "\n" + file.read()
        for i in range(len(lines) - 15):
            copied = "\n" + "\n".join(lines[i:i + 16]) + "\n" in text
            assert not copied, f"{MODULES[name]}:{i + 1} copies {script}.py"


@pytest.mark.parametrize("name", sorted(MODULES))
def test_no_import_runs_upward(name):
    room = name.split(".")[0]
    for other in imports(name):
        its_room = other.split(".")[0]
        assert LAYER.get(other, LAYER[its_room]) <= LAYER.get(name, LAYER[room]), f"{name} imports {other}"
        assert not (name in STAGES and other in STAGES), f"the stage {name} imports the stage {other}"
        if room == "sandbox":
            assert its_room == "sandbox", f"{name} imports {other}"


def test_no_import_runs_in_a_circle():
    waiting = {name: imports(name) for name in MODULES}
    while waiting:
        free = [name for name, needs in waiting.items() if not needs & set(waiting)]
        assert free, f"a circle among {sorted(waiting)}"
        for name in free:
            del waiting[name]


def test_assets_hold_no_code():
    assert not [name for name in os.listdir(os.path.join(ROOT, "assets")) if name.endswith((".py", ".sh"))]


@pytest.mark.parametrize("name", sorted(MODULES))
def test_code_is_plain(name):
    """What ruff has no rule for: no conditional in a conditional, no text times a truth value, no bare except,
    functions of at most 70 lines and main loops of at most 120."""
    for node in ast.walk(tree_of(name)):
        where = f"{MODULES[name]}:{getattr(node, 'lineno', 0)}"
        if isinstance(node, ast.IfExp):
            inside = [x for x in ast.walk(node) if isinstance(x, ast.IfExp) and x is not node]
            assert not inside, f"{where}: a conditional in a conditional"
        elif isinstance(node, ast.BinOp) and isinstance(node.op, ast.Mult):
            text = isinstance(node.left, ast.JoinedStr) or isinstance(getattr(node.left, "value", None), str)
            assert not (text and isinstance(node.right, (ast.Compare, ast.BoolOp))), f"{where}: text * truth"
        elif isinstance(node, ast.ExceptHandler):
            assert node.type is not None, f"{where}: bare except"
        elif isinstance(node, ast.FunctionDef):
            lines = node.end_lineno - node.lineno + 1
            assert lines <= (120 if node.name == "main" else 70), f"{where}: {node.name} has {lines} lines"


# ---- the README ----

def readme():
    with open(os.path.join(ROOT, "README.md"), encoding="utf-8") as file:
        return file.read()


def test_the_map_from_paper_to_code_is_true():
    """Each line of the table leads to functions or classes at the top level of the script that it names."""
    table = re.search(r"(?m)^\| paper \| here \|\n(?:\|.*\n)+", readme())[0]
    rows = table.splitlines()[2:]
    assert len(rows) > 8
    for row in rows:
        names = re.findall(r"`(\w+)\.(\w+)(?:\.(\w+))?`", row.split("|")[2])
        assert names, row
        for script, name, method in names:
            assert script in SCRIPTS, row
            defined = {node.name: node for node in tree_of(script).body
                       if isinstance(node, (ast.FunctionDef, ast.ClassDef))}
            assert name in defined, f"{script}.py has no {name}: {row}"
            if method:
                methods = [node.name for node in defined[name].body if isinstance(node, ast.FunctionDef)]
                assert method in methods, f"{script}.{name} has no {method}: {row}"


def test_the_readme_is_short_and_its_files_exist():
    text = readme()
    assert len(re.sub(r"\||-{2,}", " ", text).split()) <= 1500                 # lines of tables are no words
    assert max(map(len, text.splitlines())) <= 140
    for path in re.findall(r"\]\((?!http|#)([^)#]+)", text):
        assert os.path.exists(os.path.join(ROOT, path)), path


def test_the_flags_of_its_commands_exist():
    known = set()
    for path in MODULES.values():
        with open(os.path.join(ROOT, path), encoding="utf-8") as file:
            known |= set(re.findall(r'"(--[a-z][a-z0-9-]*)"', file.read()))
    torchrun = {"--nproc_per_node", "--nnodes", "--node_rank", "--rdzv_backend", "--rdzv_endpoint",
                "--help"}
    for line in readme().splitlines():
        if re.search(r"\b(bc|mps|sft|grpo_short|judge|eval)\.py ", line):
            flags = set(re.findall(r"(?<![\w-])--[a-z][a-z0-9_-]*", line)) - torchrun
            assert {flag.replace("--no-", "--") for flag in flags} <= known, line
