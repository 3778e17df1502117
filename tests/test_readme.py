"""The README's commands run, one after the other, and what its file map names is there."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import typer
from typer.core import TyperGroup

from charrnn.cli import application, main
from charrnn.tasks import TASKS

ROOT = Path(__file__).parent.parent
DOCUMENTS = ["README.md", "CONTRIBUTING.md", "data/README.md", "docs/performance.md", "docs/looking.md"]


def text(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def commands() -> list[str]:
    """Every line of a bash block, and every `charrnn …` between backticks; a name that needs arguments and has none is but a name."""
    found = []
    for name in DOCUMENTS:
        for block in re.findall(r"```bash\n(.*?)```", text(name), flags=re.DOTALL):
            found += [line for line in block.splitlines() if line.strip()]
        alone, asking = "train|sample|eval|info|backends", "score|fill|classify|tag|transcribe|caption"
        found += re.findall(rf"`(charrnn (?:{alone}|(?:{asking}) )[^`\n]*)`", text(name))
    return list(dict.fromkeys(found))


OURS = [line for line in commands() if line.startswith("charrnn ") and "…" not in line]


def test_there_are_commands_of_every_kind() -> None:
    told = {line.split()[1] for line in OURS}
    assert told >= {"train", "sample", "eval", "info", "backends", "score", "fill", "classify", "tag", "transcribe", "caption"}
    assert told >= {"plot", "report", "watch", "look", "bptt"}


@pytest.mark.parametrize("line", OURS)
def test_a_command_parses(line: str) -> None:
    name, *arguments = shlex.split(line, comments=True)[1:]
    group = typer.main.get_command(application())
    assert isinstance(group, TyperGroup)
    command = group.commands[name]
    context = command.make_context(name, arguments)  # raises for an option that does not exist, or a wrong value
    config = context.params.get("config")
    if config and str(config).startswith("configs/"):
        assert (ROOT / config).is_file()


TINY = {"train.max_steps": 2, "train.batch_size": 4, "model.embedding_size": 8, "model.hidden_size": 8, "train.precision": "fp32"}


def trains(line: str) -> bool:
    """Whether a command begins a run. Those that others go on from come first, and are made short."""
    return line.startswith("charrnn train ") and not re.search(r"--resume|--dry-run|--print-config", line)


def test_the_commands_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    (tmp_path / "data").symlink_to(ROOT / "data")
    lyrics = text("data/sample/lyrics.txt")
    for name in ("novel.txt", "input.txt", "another.txt", "opening.txt"):
        (tmp_path / name).write_text(lyrics[:9000] if name in ("novel.txt", "input.txt") else lyrics[:90], encoding="utf-8")
    for line in sorted(OURS, key=trains, reverse=True):
        arguments = shlex.split(line, comments=True)[1:]
        if trains(line):
            has_text = re.search(r"lyrics|data\.path|-(sample|places)\.yaml", line)
            short = TINY if has_text else {**TINY, "data.source": "files", "data.path": "input.txt"}
            arguments += [part for key, value in short.items() for part in ("--set", f"{key}={value}")]
        with pytest.raises(SystemExit) as end:
            main(arguments)
        said = capsys.readouterr()
        assert not end.value.code, (line, said)
        assert said.out or "--out" in line, line


@pytest.mark.parametrize("line", [line for line in commands() if line.startswith("scripts/")])
def test_a_script_is_there_and_can_be_run(line: str) -> None:
    script = ROOT / line.split()[0]
    assert script.is_file() and script.stat().st_mode & 0o111


def test_the_file_map_names_every_module_and_folder_once() -> None:
    rows = re.findall(r"^\| `([^`]+)` \| .* \|$", text("README.md").partition("## Where things are")[2], flags=re.MULTILINE)
    rooms = [path for path in (ROOT / "charrnn").iterdir() if not path.name.startswith("__")]
    folders = [ROOT / name for name in ("configs", "data", "docs", "scripts", "tests")]
    assert sorted(rows) == sorted(f"{path.relative_to(ROOT)}{'/' * path.is_dir()}" for path in (*rooms, *folders))


def test_the_readme_names_every_task_and_extra() -> None:
    told = text("README.md")
    assert re.findall(r"^\| `(\w+)` \| .* \| `charrnn (\w+) ", told, flags=re.MULTILINE) == [
        (task, "sample" if task == "lm" else task) for task in TASKS
    ]
    section = text("pyproject.toml").partition("[project.optional-dependencies]")[2].partition("\n[")[0]
    extras = re.findall(r"^(\w+) = \[", section, flags=re.MULTILINE)
    assert not [extra for extra in extras if extra != "dev" and f"charrnn[{extra}]" not in told]


@pytest.mark.parametrize("name", DOCUMENTS)
def test_links_lead_somewhere(name: str) -> None:
    links = re.findall(r"\]\((?!https?:)([^)#]+)\)", text(name))
    assert not [link for link in links if not (ROOT / name).parent.joinpath(link).exists()]


def test_the_sample_texts_are_as_many_as_they_are_said_to_be() -> None:
    told = text("data/README.md")
    poems = (ROOT / "data/sample/poems.txt").read_text(encoding="utf-8").splitlines()
    songs = re.findall(r"^# ", (ROOT / "data/sample/lyrics.txt").read_text(encoding="utf-8"), flags=re.MULTILINE)
    chinese = re.findall(r"^# ", (ROOT / "data/sample/lyrics-zh.txt").read_text(encoding="utf-8"), flags=re.MULTILINE)
    reviews = (ROOT / "data/sample/reviews.tsv").read_text(encoding="utf-8").splitlines()[1:]
    assert f"{len(reviews)} reviews" in told and len(set(reviews)) == len(reviews)
    assert sorted(review.split("\t")[0] for review in reviews) == ["bad"] * 240 + ["good"] * 240
    prose = (ROOT / "data/sample/prose.txt").read_text(encoding="utf-8")
    sentences = len(re.findall("[。？！.?!]", prose))
    assert f"{sentences} sentences in Chinese and English in {len(prose.splitlines())} paragraphs" in told
    places = (ROOT / "data/sample/places.conll").read_text(encoding="utf-8").strip("\n").split("\n\n")
    assert f"{len(places)} sentences in Chinese" in told and len(set(places)) == len(places)
    assert f"{len(poems)} quatrains" in told and f"{len(songs)} songs in English" in told and f"{len(chinese)} songs in Chinese" in told
    assert all(poem.count(":") == 1 for poem in poems)
