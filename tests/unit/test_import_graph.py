"""The arrows of architecture.md: who may import whom, and what merely loading the plugin must not load."""

import ast
import re
import subprocess
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

import pytest_infer

PACKAGE = Path(pytest_infer.__file__).parent

GROUND = {"checkouts", "errors", "metrics", "prompts", "records", "units", "untrusted"}
FACE = (
    "pytest_face.options",
    "pytest_face.command_line",
    "pytest_face.fixtures",
    "pytest_face.sweep.lengths",
    "pytest_face.levels",
    "pytest_face.option_reader",
    "pytest_face.selection",
    "pytest_face.served",
    "pytest_face.settings",
    "pytest_face.sweep.configurations",
    "pytest_face.prompt_tokens",
    "pytest_face.pieces",
    "pytest_face.references",
    "pytest_face.late",
    "pytest_face.parametrize",
    "pytest_face.sweep.ordering",
    "pytest_face.saving",
    "pytest_face.accepted",
    "pytest_face.gate",
    "pytest_face.failures",
    "pytest_face.probing",
    "pytest_face.model_in_use",
    "pytest_face.sweep.remeasure",
    "ab.loop",
    "pytest_face.observing",
    "pytest_face.session",
    "pytest_face.since",
    "pytest_face.summary",
    "pytest_face.honoured",
    "pytest_face.infer",
    "pytest_face.under_load",
    "pytest_face.native_options",
    "pytest_face.preflight",
    "pytest_face.exits",
    "pytest_face.followers",
    "ab",
    "pytest_face.hooks",
    "plugin",
)
"""The pytest face and A/B in their own order: a module uses those before it."""

LIGHT = {"plugin", "pytest_face.options", "pytest_face.fixtures"}
"""What every pytest run of an environment loads: other modules of ours and of others within functions only."""

ROOMS = {
    **{name: set() for name in ("", "pytest_face", "pytest_face.sweep")},
    **dict.fromkeys(GROUND, GROUND),
    "engines": GROUND,
    "measure": GROUND | {"engines.base", "engines.roles"},
    # A program on its own, by its path.
    "measure.load.generator": GROUND | {"engines.base", "engines.server.guard", "engines.server.address", "measure"},
    # What a server said may hold the key that it was asked with.
    "measure.load.told": GROUND | {"engines.base", "engines.server.address"},
    # It lies in the same folder as built models.
    "measure.load.environment": GROUND | {"engines.bundled.cache"},
    # A program of its own, started in a fresh process.
    "measure.loading.once": GROUND | {"engines.base", "engines.lookup", "measure"},
    "storage": GROUND | {"engines", "measure"},
    "analysis": GROUND
    | {"engines", "measure", *(f"storage.{name}" for name in ("history", "results", "runs", "schema", "sidecar"))},
    "report": GROUND | {"engines", "measure", "storage", "analysis"},
    "cli": GROUND
    | {
        "engines.base",
        "engines.checkpoint",
        "engines.models",
        "measure.counters.kernel_files",
        "measure.load.environment",
        "measure.loading.process",
        "measure.machine",
        "storage",
        "analysis",
        "report",
    },
    **{
        name: GROUND | {"engines", "measure", "storage", "analysis", "report", *FACE[:number]}
        for number, name in enumerate(FACE)
    },
}
# A fixture's body takes what it needs, when a test asks for it.
ROOMS["pytest_face.fixtures"] |= {*FACE} - {"plugin"}
"""What each room may use beside itself."""

SUMMARY = "report.show.summary"
PYTEST = {"_pytest", "pytest", "pytest_benchmark"}
PYTEST_IN = ("plugin", "pytest_face.", "ab.", *(f"storage.{name}" for name in ("bridge", "files", "native")), SUMMARY)
TORCH = {"torch", "transformers"}
TORCH_IN = (
    "engines.transformers.",
    "engines.bundled.",
    "measure.breakdown.",
    "measure.experts.",
    "measure.machine.probe",
    "measure.profile_round",
)


@dataclass(frozen=True)
class Import:
    """One import statement: `lazy` inside a function, `typing` under TYPE_CHECKING."""

    module: str
    target: str
    line: int
    lazy: bool
    typing: bool


@cache
def modules():
    return {
        ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix("__init__").rstrip("."): path
        for path in sorted(PACKAGE.rglob("*.py"))
    }


def imports_of(module, path):
    found = []

    def visit(node, *, lazy, typing):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: a relative import"
            # `from package import module` is an import of the module.
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        found.extend(Import(module, name, node.lineno, lazy, typing) for name in names)
        in_function = lazy or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        # Only what the guard guards: its `else` runs.
        guarded = node.body if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING") else ()
        for child in ast.iter_child_nodes(node):
            visit(child, lazy=in_function, typing=typing or child in guarded)

    visit(ast.parse(path.read_text(encoding="utf-8")), lazy=False, typing=False)
    return found


@cache
def imports():
    return [found for module, path in modules().items() for found in imports_of(module, path)]


@cache
def room_of(module):
    """Return the room that a module lies in: the longest name in ROOMS that it begins with."""
    return max((room for room in ROOMS if within(module, {room})), key=len, default=module.partition(".")[0])


def within(target, allowed):
    return any(target == name or target.startswith(f"{name}.") for name in allowed)


def test_there_is_something_to_walk():
    assert {room_of(module) for module in modules()} == set(ROOMS)
    assert len(imports()) > 100


def test_the_walk_sees_every_kind_of_import(tmp_path):
    path = tmp_path / "module.py"
    path.write_text(
        "import a.b\nfrom c import d, e\n"
        "if TYPE_CHECKING:\n    import f\nelse:\n    import g\n"
        "class C:\n    async def m(self):\n        try:\n            from h import i\n"
        "        except ImportError:\n            import j\n"
    )
    found = {i.target: (i.line, i.lazy, i.typing) for i in imports_of("m", path)}
    assert found == {
        "a.b": (1, False, False),
        "c.d": (2, False, False),
        "c.e": (2, False, False),
        "f": (4, False, True),
        "g": (6, False, False),
        "h.i": (10, True, False),
        "j": (12, True, False),
    }


@pytest.mark.parametrize(
    ("module", "target", "allowed"),
    [
        ("metrics.table", "units.Unit", True),
        ("metrics.table", "engines.base.Engine", False),
        ("measure.rounds", "engines.base.Engine", True),
        ("measure.rounds", "engines.lookup", False),
        ("engines.transformers.engine", "measure.clock", False),
        ("storage.block", "analysis.loading", False),
        ("analysis.loading", "storage.block", False),
        ("report.show.summary", "analysis.loading", True),
        ("report.show.summary", "pytest_face.session", False),
        ("pytest_face.options", "pytest_face.session", False),
        ("pytest_face.session", "pytest_face.settings.Settings", True),
        ("cli.main", "engines.models", True),
        ("cli.main", "engines.lookup", False),
        ("cli.main", "measure.clock", False),
        ("cli.main", "plugin", False),
        ("records", "", False),
    ],
)
def test_the_arrows_themselves(module, target, allowed):
    assert within(target, ROOMS[room_of(module)] | {room_of(module)}) is allowed


@pytest.mark.parametrize("module", sorted(LIGHT))
def test_what_every_pytest_run_loads_loads_nothing_else(module):
    found = {i.target for i in imports() if i.module == module and not i.lazy and not i.typing}
    ours = {target.removeprefix("pytest_infer.") for target in found if target.startswith("pytest_infer")}
    assert not [target for target in ours if not within(target, LIGHT)]
    assert not {target.partition(".")[0] for target in found} - sys.stdlib_module_names - {"pytest", "pytest_infer"}


@pytest.mark.parametrize("room", sorted(ROOMS), ids=lambda room: room or "package")
def test_imports_run_upward_only(room):
    wrong = []
    for found in imports():
        if room_of(found.module) != room or not found.target.startswith("pytest_infer"):
            continue
        target = found.target.removeprefix("pytest_infer").lstrip(".")
        if not within(target, ROOMS[room] | {room}):
            wrong.append(f"{found.module}:{found.line} imports {target}")
    assert not wrong


def test_pytest_is_imported_by_its_face_and_the_bridge_only():
    found = {i.module for i in imports() if i.target.partition(".")[0] in PYTEST}
    assert not [module for module in found if not module.startswith(PYTEST_IN)]


def test_the_report_uses_pytest_for_types_only():
    found = [i for i in imports() if i.module == SUMMARY and i.target.partition(".")[0] in PYTEST]
    assert found, "the rule can go when the report names no pytest type"
    assert all(i.typing for i in found)


@pytest.mark.parametrize(
    "word", ["compare", "history", "advice", "experts", "placement", "doctor", "loading", "sweep", "breakdown"]
)
def test_a_subject_has_one_word_in_analysis_report_and_cli(word):
    # What a sweep and a breakdown found is shown by `show`, `compare` and `report`.
    rooms = ("analysis", "report") if word in ("sweep", "breakdown") else ("analysis", "report", "cli")
    assert [room for room in rooms if f"{room}.{word}" not in modules()] == []


def test_the_report_and_the_commands_compute_nothing():
    # Whoever needs these computes a figure, which analysis/ and metrics/ are for.
    found = {i.module for i in imports() if i.target.partition(".")[0] in {"numpy", "scipy", "statistics", "math"}}
    assert not [module for module in found if room_of(module) in ("report", "cli")]


def test_torch_is_imported_where_models_run_only():
    wrong = [
        f"{i.module}:{i.line}"
        for i in imports()
        if i.target.partition(".")[0] in TORCH and not i.module.startswith(TORCH_IN)
    ]
    assert not wrong


def test_the_profile_round_imports_torch_for_types_only():
    found = [i for i in imports() if i.module == "measure.profile_round" and i.target.partition(".")[0] in TORCH]
    assert found, "the rule can go when it names no torch type"
    assert all(i.typing for i in found)


def test_nothing_is_imported_by_a_name_made_up_at_run_time():
    # Such an import escapes the walk. The helper process starts without site-packages and is given psutil's folder.
    made_up = {
        module
        for module, path in modules().items()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and re.search(r"\b(import_module|__import__)$", ast.unparse(node.func))
    }
    # NVML is there with an NVIDIA driver only.
    assert made_up <= {"measure.counters.nvml", "measure.counters.peak_helper"}


@pytest.mark.parametrize("module", modules(), ids=lambda module: module or "package")
def test_a_modules_docstring_is_one_line(module):
    docstring = ast.get_docstring(ast.parse(modules()[module].read_text(encoding="utf-8")))
    assert docstring, "a module says what it owns"
    if module == "":
        # Which pytest looks for in a docstring.
        docstring = docstring.partition("\n\nPYTEST_DONT_REWRITE")[0]
    assert "\n" not in docstring
    assert docstring.endswith((".", "`"))


def test_the_command_line_reaches_no_torch_and_no_pytest_face():
    reached, left = set(), [m for m in modules() if room_of(m) == "cli"]
    while left:
        module = left.pop()
        if module in reached:
            continue
        reached.add(module)
        names = [i.target.removeprefix("pytest_infer.") for i in imports() if i.module == module and not i.lazy]
        left += [name for target in names for name in (target, target.rpartition(".")[0]) if name in modules()]
    assert not [module for module in reached if within(module, FACE)]
    assert not [i for i in imports() if i.module in reached and not i.lazy and i.target.partition(".")[0] in TORCH]


def test_the_source_root_is_not_imported_through():
    assert not [i for i in imports() if i.target.partition(".")[0] == "plugin"]
    assert not (PACKAGE.parent / "__init__.py").exists()


@pytest.mark.parametrize(
    "module", ["pytest_infer.plugin", "pytest_infer.cli.main", "pytest_infer.engines.transformers.engine"]
)
def test_loading_takes_neither_torch_nor_transformers_nor_numpy(module):
    code = f"import sys, {module}; print(sorted({{'torch', 'transformers', 'numpy'}} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=120)
    assert (done.stdout.strip(), done.stderr) == ("[]", "")


@pytest.mark.parametrize("first", [False, True], ids=["storage last", "storage first"])
@pytest.mark.parametrize(
    ("arguments", "heavy"),
    [
        (["compare"], {"numpy", "scipy", "pydantic", "jinja2", "pytest", "pytest_benchmark", "psutil", "filelock"}),
        (["history"], {"numpy", "scipy", "pydantic", "jinja2", "pytest", "pytest_benchmark", "psutil", "filelock"}),
        (["show"], {"scipy", "pydantic", "jinja2", "pytest", "pytest_benchmark"}),
        (["history", "--change-points"], {"scipy", "pydantic", "jinja2", "pytest", "pytest_benchmark"}),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_command_imports_what_it_needs(storage, make_block, arguments, heavy, first):
    # Most of the time of a command over stored runs is that of its imports.
    for value in range(1, 9):
        storage.add([make_block(tpot_s=[value / 1000] * 4)])
    named = ["--storage", str(storage.folder)]
    code = f"""
import sys
sys.argv = ["pytest-infer", *{[*named, *arguments] if first else [*arguments, *named]}]
from pytest_infer.cli.main import app
try:
    app()
finally:
    print(sorted({heavy} & set(sys.modules)), file=sys.stderr)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0
    assert done.stdout
    assert done.stderr.splitlines()[-1] == "[]"


def test_at_the_end_of_a_command_python_does_not_look_for_garbage():
    # What is registered first is called last.
    asked = "import atexit, gc; atexit.register(lambda: print(gc.get_freeze_count() > 10_000))"
    code = f"{asked}; import pytest_infer.cli.main"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=120)
    assert (done.stdout, done.stderr) == ("True\n", "")
