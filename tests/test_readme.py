"""What README and docs say is run: every command, every YAML, every example part, every link."""

from __future__ import annotations

import re
import shlex
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipelines import commands
from pipelines.commands import main
from pipelines.format.dataset import Dataset
from pipelines.media import images

REPO = Path(__file__).resolve().parents[1]
README = (REPO / "README.md").read_text()
DOCS = sorted((REPO / "docs").glob("*.md"))


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.M | re.S)


def commands_of(text: str) -> list[str]:
    return [line.strip() for block in blocks(text, "sh") for line in block.splitlines() if line.strip() and not line.startswith("#")]


def test_readme_begins_with_the_two_commands() -> None:
    assert commands_of(README)[:2] == ["make demo", "make test"]


@pytest.mark.parametrize("command", [c for c in commands_of(README) if c.startswith("make")])
def test_a_make_command_of_the_readme_has_its_target(command: str) -> None:
    done = subprocess.run(["make", "-n", *shlex.split(command)[1:]], cwd=REPO, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert {"make demo": "pipelines demo --out out/demo", "make test": "pytest"}[command] in done.stdout


@pytest.mark.ray
@pytest.mark.timeout(600)
def test_every_other_command_of_the_readme_runs_as_written(
    demo: tuple[Path, dict[str, Any]], ray_session: None, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(demo[0])
    for text in blocks(README, "yaml"):
        Path(re.match(r"# (\S+\.yaml)\n", text)[1]).write_text(text)  # type: ignore[index]
    rest = [c for c in commands_of(README) if not c.startswith("make")]
    assert len(rest) >= 15
    for command in rest:
        program, *words = shlex.split(command)
        assert program == "pipelines", f"a command that no test runs: {command}"
        code = main(words)
        shown = capfd.readouterr()
        assert code == 0 and shown.out, f"{command}\n{shown.err[-2000:]}"
    assert Dataset.open("out/pictures_pixels").card["records"] == 512


def test_every_yaml_of_the_readme_is_a_document() -> None:
    for text in blocks(README, "yaml"):
        assert isinstance(yaml.safe_load(text), dict)


@pytest.mark.parametrize("path", [REPO / "README.md", *DOCS, REPO / "SECURITY.md", REPO / "CHANGELOG.md"], ids=lambda p: p.name)
def test_every_link_and_every_path_that_is_named_exists(path: Path) -> None:
    text = path.read_text()
    links = [t for t in re.findall(r"\]\(([^)#]+)[^)]*\)", text) if not t.startswith("http")]
    named = re.findall(r"`((?:pipelines|encode|mixtures|trainer|tests|docs|examples|benchmarks)/[\w./]*)`", text)
    missing = [t for t in links if not (path.parent / t).exists()] + [t for t in named if not (REPO / t).exists()]
    assert not missing


def test_the_tree_of_the_readme_names_what_is_there() -> None:
    tree = next(b for b in blocks(README, "text") if b.startswith("pipelines/"))
    top = ""
    for line in tree.splitlines():
        names = re.split(r"\s{2,}", line.strip())[0].split() if line.strip() else []
        for name in names:
            if not re.fullmatch(r"[\w.]+(/[\w.]+)*/?", name):
                continue
            if not line.startswith(" "):
                top = name
                assert (REPO / name).exists(), name
            else:
                assert (REPO / top / name).exists(), f"{top}{name}"


@pytest.mark.parametrize("path", [REPO / "README.md", *DOCS], ids=lambda p: p.name)
def test_every_command_that_docs_mention_is_understood(path: Path) -> None:
    """Verbs and options exist; the commands of README proper are run above."""
    found = re.findall(r"^ {4}(pipelines .+)$", path.read_text(), re.M) + re.findall(r"`(pipelines [a-z].+?)`", path.read_text())
    for command in found:
        words = [w for w in shlex.split(re.sub(r"\s#.*", "", command)) if w not in ("…", "|")]
        if len(words) < 2 or words[1].isupper():
            continue
        assert words[1] in commands.verbs(), command
        verb = commands._verb(words[1])
        parser = commands._Parser(prog="x")
        parser.add_argument("--json", action="store_true")
        verb.arguments(parser)
        options = set(parser._option_string_actions)
        stray = [w for w in words[2:] if w.startswith("--") and w.partition("=")[0] not in options]
        assert not stray or parser.get_default("takes_rest"), f"{command}: {stray}"


# ---- the example parts of docs/add_*.md, as a user would add them -------------------------------------------------------------------------


def example(name: str, nth: int = 0) -> str:
    """The first (or nth after it) indented block of docs/<name> that is a module."""
    lines = (REPO / "docs" / name).read_text().splitlines()
    start = [i for i, line in enumerate(lines) if line.startswith('    """')][nth]
    stop = next((i for i in range(start, len(lines)) if lines[i] and not lines[i].startswith("    ")), len(lines))
    code = "\n".join(line[4:] for line in lines[start:stop])
    return code.split("\n# in a recipe")[0]


def add(package: str, name: str, doc: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, nth: int = 0) -> None:
    """Put the example beside the parts of a package, without touching the tree."""
    import importlib

    (tmp_path / package).mkdir()
    (tmp_path / package / f"{name}.py").write_text(example(doc, nth))
    module = importlib.import_module(package)
    monkeypatch.setattr(module, "__path__", [*module.__path__, str(tmp_path / package)])


def test_the_example_source_and_filter_of_the_docs_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    add("pipelines.sources", "log_lines", "add_a_source.md", tmp_path, monkeypatch)
    add("pipelines.filters", "shouting", "add_a_filter.md", tmp_path, monkeypatch)
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs/a.log").write_bytes(b"first line\n\nSTOP SHOUTING\n\xff\xfe\nlast line\n")
    recipe = tmp_path / "lines.yaml"
    source = {"log_lines": {"path": str(tmp_path / "logs")}}
    document = {"source": source, "filters": [{"shouting": {"most": 0.3}}], "engine": "local", "output": str(tmp_path / "out")}
    recipe.write_text(yaml.safe_dump(document))
    assert main(["run", "text", "-c", str(recipe)]) == 0
    card = Dataset.open(str(tmp_path / "out")).card
    assert (card["written"], card["filtered"], card["rejected"]) == (2, {"shouting": 1}, {"unreadable": 1})
    texts = [r.segments[0].text for r in Dataset.open(str(tmp_path / "out")).records(0)]
    assert texts == ["first line", "last line"]


def test_the_example_encoder_of_the_docs_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import numpy as np

    from encode.encoder import ImageEncoding
    from pipelines.format.document import PartOf

    add("encode.encoders", "mean_colour", "add_an_encoder.md", tmp_path, monkeypatch)
    encoder = PartOf("encode.encoders").find("mean_colour")()
    red = np.zeros((1, 32, 32, 3), np.uint8)
    red[..., 0] = 255
    encoding = ImageEncoding(encoder, "cpu")  # type: ignore[arg-type]
    latents = np.concatenate(list(encoding.batches(red)))
    assert latents.shape == (1, 4, 3) and np.allclose(latents, [1, -1, -1])
    from_file = encoding.encode_bytes([images.encode_png(red[0].repeat(3, axis=0).repeat(2, axis=1))])
    np.testing.assert_array_equal(from_file, latents)


def test_the_example_tower_of_the_docs_gives_what_the_models_own_modules_give(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import numpy as np
    import torch
    import transformers

    from encode.encoder import ImageEncoding
    from pipelines.format.document import PartOf
    from pipelines.format.errors import InputError
    from tests.encode.models import photo, save_clip

    add("encode.encoders", "clip_tower", "add_an_encoder.md", tmp_path, monkeypatch, nth=1)
    model = save_clip(str(tmp_path / "clip")).vision_model
    kind = PartOf("encode.encoders").find("clip_tower")
    encoding = ImageEncoding(kind(weights=str(tmp_path / "clip"), resize="exact", dtype="f32"), "cpu")  # type: ignore[arg-type]
    ours = encoding.encode_bytes([images.encode_png(photo(i)) for i in range(3)])
    processor = transformers.CLIPImageProcessorPil.from_pretrained(tmp_path / "clip")
    with torch.inference_mode():
        hidden = model(**processor(images=[photo(i) for i in range(3)], return_tensors="pt")).last_hidden_state[:, 1:]
        theirs = torch.nn.functional.layer_norm(hidden, hidden.shape[-1:], eps=model.config.layer_norm_eps)
    assert ours.shape == (3, 4, 32) and np.abs(ours - theirs.numpy()).max() <= 1e-5
    with pytest.raises(InputError, match="one size only"):
        ImageEncoding(kind(weights=str(tmp_path / "clip"), size=42), "cpu")  # type: ignore[arg-type]
