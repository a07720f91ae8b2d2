"""The import law and the bans, held over the source tree and proved in fresh processes."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parents[1]
PACKAGES = ("pipelines", "encode", "mixtures", "trainer")
FILES = sorted(p for package in PACKAGES for p in (REPO / package).rglob("*.py"))
NAMES = [str(p.relative_to(REPO)) for p in FILES]

# What each floor may import of ours, and what it may never load. The longest matching prefix rules.
FLOORS: dict[str, tuple[set[str], set[str]]] = {
    "pipelines/format": ({"pipelines.format"}, {"ray", "torch", "PIL", "av", "transformers"}),
    "pipelines": ({"pipelines"}, {"torch", "transformers", "diffusers"}),
    "encode": ({"encode", "pipelines"}, {"ray"}),
    "mixtures": ({"mixtures", "pipelines.format"}, {"ray", "torch", "fsspec"}),
    "trainer": ({"trainer", "mixtures", "pipelines.format"}, {"ray", "fsspec"}),
}
# Heavy or dangerous libraries that live in one room only.
ROOMS: dict[str, tuple[str, ...]] = {
    "ray": ("pipelines/engine.py",),
    "fsspec": ("pipelines/format/storage.py",),
    "s3fs": ("pipelines/format/storage.py",),
    "PIL": ("pipelines/media/",),
    "av": ("pipelines/media/",),
    "cv2": ("pipelines/media/",),
    "decord": ("pipelines/media/",),
    "scenedetect": ("pipelines/media/",),
    "torchcodec": ("pipelines/media/",),
}


def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_bytes(), str(path))


def imports(path: Path) -> Iterator[tuple[str, int]]:
    """Every module that a file imports when it runs, functions included, as (dotted name, line). What only type checkers read is free."""
    module = tree(path)
    typing = {id(n) for top in ast.walk(module) if isinstance(top, ast.If) and "TYPE_CHECKING" in ast.unparse(top.test) for n in ast.walk(top)}
    for node in ast.walk(module):
        if id(node) in typing:
            continue
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: a relative import hides its floor"
            for alias in node.names:
                yield f"{node.module}.{alias.name}", node.lineno


def floor(name: str) -> str:
    return max((prefix for prefix in FLOORS if name.startswith(prefix + "/")), key=len)


@pytest.mark.parametrize("name", NAMES)
def test_imports_point_only_downwards(name: str) -> None:
    allowed, never = FLOORS[floor(name)]
    wrong = []
    for module, line in imports(REPO / name):
        top = module.partition(".")[0]
        ours = top in PACKAGES
        if ours and not any(module == a or module.startswith(a + ".") for a in allowed):
            wrong.append(f"{name}:{line}: {module} is above this floor or beside it; allowed: {', '.join(sorted(allowed))}")
        if top in never:
            wrong.append(f"{name}:{line}: {top} must not be loaded on this floor")
        if top in ROOMS and not name.startswith(ROOMS[top]):
            wrong.append(f"{name}:{line}: {top} lives in {' '.join(ROOMS[top])} only")
    assert not wrong, "\n".join(wrong)


def test_the_law_sees_an_import_inside_a_function(tmp_path: Path) -> None:
    file = tmp_path / "x.py"
    file.write_text("def f():\n    import torch.nn\n    from pipelines.engine import open_job\n")
    assert list(imports(file)) == [("torch.nn", 2), ("pipelines.engine.open_job", 3)]


@pytest.mark.parametrize("name", NAMES)
def test_a_file_holds_one_noun_and_at_most_300_lines(name: str) -> None:
    path = REPO / name
    lines = path.read_text().count("\n")
    assert lines <= 300, f"{name} has {lines} lines"
    words = set(Path(name).with_suffix("").parts)
    assert not words & {"utils", "util", "common", "helpers", "helper", "misc"}, f"{name} has no noun"


@pytest.mark.parametrize("name", [n for n in NAMES if (REPO / n).stat().st_size])
def test_each_module_says_what_it_is(name: str) -> None:
    assert ast.get_docstring(tree(REPO / name)), f"{name} opens without a docstring"


# ---- bans: each with the reason it is dangerous ---------------------------------------------------------------------------------------

WRITERS = ("pipelines/format/storage.py",)
# Files that are not part of an artifact's bytes and append lines or hold sockets of their own.
MAY_OPEN = {
    "pipelines/engine.py": "log.jsonl, appended",
    "trainer/checkpoint.py": "a remote checkpoint copied to scratch, each file checked by its hash",
}


def calls(path: Path) -> Iterator[tuple[str, ast.Call]]:
    """(dotted name of what is called, the call)."""
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), node


def banned(path: Path, name: str) -> Iterator[str]:
    for said, call in calls(path):
        last = said.rsplit(".", 1)[-1]
        words = {k.arg: k.value for k in call.keywords}
        where = f"{name}:{call.lineno}"
        if last in ("eval", "exec") and said == last:
            yield f"{where}: {last} runs text as code"
        if said in ("pickle.load", "pickle.loads", "cloudpickle.load", "cloudpickle.loads", "marshal.loads", "shelve.open"):
            yield f"{where}: {said} runs what a file says"
        if said == "torch.load" and not (isinstance(w := words.get("weights_only"), ast.Constant) and w.value is True):
            yield f"{where}: torch.load without weights_only=True unpickles"
        if said in ("yaml.load", "yaml.unsafe_load", "yaml.full_load", "yaml.load_all"):
            yield f"{where}: {said} builds objects; yaml_text.read_yaml is ours"
        if (isinstance(s := words.get("shell"), ast.Constant) and s.value) or said in ("os.system", "os.popen"):
            yield f"{where}: a shell reads what it is given"
        if isinstance(a := words.get("allow_pickle"), ast.Constant) and a.value:
            yield f"{where}: allow_pickle unpickles"
        if isinstance(t := words.get("trust_remote_code"), ast.Constant) and t.value:
            yield f"{where}: trust_remote_code runs downloaded code"
        if last in ("extract", "extractall") and "tar" in said.lower():
            yield f"{where}: archives are streamed, never extracted"
        if name not in WRITERS and name not in MAY_OPEN and writes(said, last, call, words):
            yield f"{where}: {said} for writing can publish a torn file; pipelines.format.storage is the only publisher"


def writes(said: str, last: str, call: ast.Call, words: dict[str | None, ast.expr]) -> bool:
    if last in ("write_bytes", "write_text"):
        return True
    if last != "open" or said in ("Image.open", "av.open", "Dataset.open", "Plan.open", "tarfile.open", "webbrowser.open"):
        return False
    mode = words.get("mode") or next((a for a in call.args[:2] if isinstance(a, ast.Constant) and _is_mode(a.value)), None)
    return isinstance(mode, ast.Constant) and any(c in str(mode.value) for c in "wax+")


def _is_mode(x: object) -> bool:
    return isinstance(x, str) and 0 < len(x) <= 3 and set(x) <= set("rwaxbt+")


@pytest.mark.parametrize("name", NAMES)
def test_nothing_dangerous_is_called(name: str) -> None:
    assert not list(banned(REPO / name, name))


@pytest.mark.parametrize(
    "line",
    [
        "eval('1')",
        "pickle.load(f)",
        "torch.load(p)",
        "torch.load(p, weights_only=False)",
        "yaml.load(t, Loader=L)",
        "subprocess.run(c, shell=True)",
        "open(p, 'wb')",
        "fs.open(p, mode='w')",
        "path.open('w')",
        "path.write_bytes(b)",
        "np.load(p, allow_pickle=True)",
        "tar.extractall(p)",
        "M.from_pretrained(n, trust_remote_code=True)",
    ],
)
def test_every_ban_catches_what_it_is_for(line: str, tmp_path: Path) -> None:
    file = tmp_path / "x.py"
    file.write_text(line)
    assert list(banned(file, "pipelines/x.py"))


@pytest.mark.parametrize("line", ["open(p)", "open(p, 'rb')", "torch.load(p, weights_only=True)", "Image.open(b)", "model.eval()"])
def test_the_bans_let_harmless_calls_pass(line: str, tmp_path: Path) -> None:
    file = tmp_path / "x.py"
    file.write_text(line)
    assert not list(banned(file, "pipelines/x.py"))


# ---- fresh processes: what is really loaded -------------------------------------------------------------------------------------------


def loaded(code: str) -> set[str]:
    """The top-level modules that a fresh Python has loaded after running `code`."""
    full = f"{code}\nimport sys, json, os\nprint(json.dumps(sorted({{m.partition('.')[0] for m in sys.modules}})), flush=True)\nos._exit(0)"
    done = subprocess.run([sys.executable, "-c", full], capture_output=True, text=True, cwd=REPO, timeout=120)
    assert done.returncode == 0, done.stderr
    return set(json.loads(done.stdout.splitlines()[-1]))


def modules(package: str) -> str:
    found = [".".join(p.relative_to(REPO).with_suffix("").parts).removesuffix(".__init__") for p in (REPO / package).rglob("*.py")]
    return "; ".join(f"import {name}" for name in sorted(found) if not name.endswith("__main__"))


def test_the_ground_floor_loads_no_ray_and_no_torch() -> None:
    assert not loaded(modules("pipelines/format")) & {"ray", "torch", "PIL", "av", "transformers", "encode", "mixtures", "trainer"}


def test_mixtures_load_no_ray_and_no_torch() -> None:
    assert not loaded(modules("mixtures")) & {"ray", "torch", "PIL", "av", "encode", "trainer"}


def test_the_trainer_loads_no_ray_and_no_codec() -> None:
    assert not loaded(modules("trainer")) & {"ray", "PIL", "av", "encode"}


def test_curating_loads_no_torch() -> None:
    assert not loaded("import pipelines.curate, pipelines.engine, pipelines.build") & {"torch", "ray", "transformers"}


def test_the_help_loads_nothing_heavy() -> None:
    said = loaded("from pipelines.commands import main; main(['--help'])")
    assert not said & {"ray", "torch", "pyarrow", "numpy", "pydantic", "rich", "fsspec"}


@pytest.mark.parametrize("group", ["stages", "views", "checks"])
def test_entry_points_load_neither_ray_nor_torch(group: str) -> None:
    code = f"from importlib.metadata import entry_points\nfor e in entry_points(group='pipelines.{group}'): e.load()"
    assert not loaded(code) & {"ray", "torch"}
