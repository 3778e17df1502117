"""Corpora over the network: a real server on this machine, which keeps to HTTP or does not."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import re
import tarfile
import threading
import zipfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from charrnn.cli import main
from charrnn.data.corpus import load_corpus
from charrnn.errors import DataError, UserError
from charrnn.fetching import PIECE, SOURCES, Fetched, Source, fetch, source_of
from tests.data.texts import settings

TEXT = "".join(f"{number} bottles of beer on the wall\n" for number in range(9000)).encode()  # some pieces long


class Server(ThreadingHTTPServer):
    """Serves `files`, with Range and If-Range. What it does wrong is switched on by a test."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: dict[str, bytes] = {}
        self.asked: list[tuple[str, str | None]] = []  # path and Range
        self.tag: str | None = '"one"'
        self.ranges = True
        self.tells_length = True
        self.breaks_off_at: list[int] = []  # for each of the next answers, the bytes of its body that are sent
        self.status = 200

    def source(self, name: str, payload: bytes, *, known: bool = True, members: str = "*") -> Source:
        self.files[f"/{name}"] = payload
        address = f"http://127.0.0.1:{self.server_address[1]}/{name}"
        sum_ = hashlib.sha256(payload).hexdigest()
        return Source(address, "a test", "none", len(payload) if known else None, sum_ if known else None, members)


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server

    def do_GET(self) -> None:
        server, wanted = self.server, self.headers.get("Range")
        server.asked.append((self.path, wanted))
        if server.status != 200 or self.path not in server.files:
            self.send_error(server.status if server.status != 200 else 404)
            return
        body, first = server.files[self.path], 0
        if wanted and server.ranges and self.headers.get("If-Range") in (None, server.tag):
            first = int(wanted.removeprefix("bytes=").rstrip("-"))
            if first >= len(body):
                self.send_response(416)
                self.send_header("Content-Range", f"bytes */{len(body)}")
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {first}-{len(body) - 1}/{len(body)}")
        else:
            self.send_response(200)
        body = body[first:]
        if server.tag:
            self.send_header("ETag", server.tag)
        if server.tells_length:
            self.send_header("Content-Length", str(len(body)))
        self.send_header("Connection", "close")
        self.end_headers()
        self.close_connection = True
        self.wfile.write(body[: server.breaks_off_at.pop(0)] if server.breaks_off_at else body)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")  # whatever the machine goes out through
    with Server() as running:
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield running
        running.shutdown()
        thread.join()


def seen(into: Path) -> set[str]:
    """The files that a corpus of that directory would be read from."""
    files = [path.relative_to(into) for path in into.rglob("*") if path.is_file()]
    return {str(file) for file in files if not any(part.startswith(".") for part in file.parts)}


def ranges(server: Server) -> list[str | None]:
    return [wanted for _, wanted in server.asked]


def test_a_text_is_there_verified_and_not_fetched_twice(server: Server, tmp_path: Path) -> None:
    source, into, heard = server.source("input.txt", TEXT), tmp_path / "a/b", list[tuple[int, int | None]]()
    found = fetch(source, into, lambda done, total: heard.append((done, total)))
    assert found == Fetched([into / "input.txt"], len(TEXT), hashlib.sha256(TEXT).hexdigest(), verified=True, fresh=True)
    assert (into / "input.txt").read_bytes() == TEXT and seen(into) == {"input.txt"}
    assert heard[-1] == (len(TEXT), len(TEXT)) and heard == sorted(heard) and len(heard) > 2
    again = fetch(source, into)
    assert not again.fresh and again.files == found.files and len(server.asked) == 1
    assert not list(into.glob("*.part*")) and not list(into.glob(".*.part*"))


def test_a_text_that_was_cut_since_is_refused_and_one_that_is_gone_is_fetched_again(server: Server, tmp_path: Path) -> None:
    source = server.source("input.txt", TEXT)
    fetch(source, tmp_path)
    (tmp_path / "input.txt").write_bytes(TEXT[:-1])
    with pytest.raises(DataError, match=r"input\.txt: its SHA-256 is \w+; expected \w+; delete the file to fetch it again"):
        fetch(source, tmp_path)
    (tmp_path / "input.txt").unlink()
    assert fetch(source, tmp_path).fresh and (tmp_path / "input.txt").read_bytes() == TEXT


@pytest.mark.parametrize("known", [True, False], ids=["known", "unknown"])
def test_what_breaks_off_goes_on_behind_what_is_there(server: Server, tmp_path: Path, known: bool) -> None:
    source = server.source("input.txt", TEXT, known=known)
    server.breaks_off_at = [70_000, 100_000]
    found = fetch(source, tmp_path)
    assert (tmp_path / "input.txt").read_bytes() == TEXT and found.verified is known
    assert ranges(server) == [None, "bytes=70000-", "bytes=170000-"]


def test_the_next_call_goes_on_too(server: Server, tmp_path: Path) -> None:
    source = server.source("input.txt", TEXT)
    server.breaks_off_at = [70_000, 0]
    with pytest.raises(DataError) as refused:
        fetch(source, tmp_path)
    assert str(refused.value) == (
        f"{source.address}: cannot be fetched (it breaks off); 70,000 bytes are here, and the next try goes on behind them; "
        f"check the network and try again, or fetch it by hand to {tmp_path}/input.txt and run this again"
    )
    assert seen(tmp_path) == set()  # half a text is no text
    fetch(source, tmp_path)
    assert (tmp_path / "input.txt").read_bytes() == TEXT and ranges(server)[2:] == ["bytes=70000-"]


def test_a_server_that_knows_no_ranges_sends_all_again(server: Server, tmp_path: Path) -> None:
    server.ranges = False
    server.breaks_off_at = [70_000]
    fetch(server.source("input.txt", TEXT), tmp_path)
    assert (tmp_path / "input.txt").read_bytes() == TEXT


def test_another_version_is_not_glued_to_the_first(server: Server, tmp_path: Path) -> None:
    source = server.source("input.txt", TEXT, known=False)
    server.breaks_off_at = [70_000, 0]
    with pytest.raises(DataError, match="it breaks off"):
        fetch(source, tmp_path)
    server.tag, server.files["/input.txt"] = '"two"', TEXT[::-1]
    fetch(source, tmp_path)
    assert (tmp_path / "input.txt").read_bytes() == TEXT[::-1]


def test_without_a_version_and_without_a_sum_it_begins_anew(server: Server, tmp_path: Path) -> None:
    server.tag = None
    server.breaks_off_at = [70_000, 0]
    source = server.source("input.txt", TEXT, known=False)
    with pytest.raises(DataError, match="it breaks off"):
        fetch(source, tmp_path)
    fetch(source, tmp_path)
    assert (tmp_path / "input.txt").read_bytes() == TEXT and set(ranges(server)) == {None}


def test_a_part_that_is_whole_already(server: Server, tmp_path: Path) -> None:
    """As a kill leaves it between the last byte and the new name."""
    (tmp_path / ".input.txt.part").write_bytes(TEXT)
    fetch(server.source("input.txt", TEXT), tmp_path)
    assert (tmp_path / "input.txt").read_bytes() == TEXT and ranges(server) == [f"bytes={len(TEXT)}-"]
    (tmp_path / "b").mkdir()
    (tmp_path / "b/.input.txt.part").write_bytes(TEXT + b"and more")  # of something else
    fetch(server.source("input.txt", TEXT), tmp_path / "b")
    assert (tmp_path / "b/input.txt").read_bytes() == TEXT


def test_no_length_is_told(server: Server, tmp_path: Path) -> None:
    server.tells_length = False
    heard = list[int | None]()
    fetch(server.source("input.txt", TEXT, known=False), tmp_path, lambda done, total: heard.append(total))
    assert (tmp_path / "input.txt").read_bytes() == TEXT and set(heard) == {None}


def test_another_content_is_refused_and_not_kept(server: Server, tmp_path: Path) -> None:
    source = server.source("input.txt", TEXT)
    server.files["/input.txt"] = TEXT[::-1]
    with pytest.raises(DataError, match=r"what came has the SHA-256 \w{64}; expected \w{64}; try again, .* by hand to .*/input\.txt from"):
        fetch(source, tmp_path)
    assert seen(tmp_path) == set() and not list(tmp_path.glob(".*.part"))
    server.files["/input.txt"] = TEXT + b"more"
    with pytest.raises(DataError, match=rf"the file there has {len(TEXT) + 4:,} bytes; expected {len(TEXT):,}; it is another one now"):
        fetch(source, tmp_path)
    server.tells_length = False
    with pytest.raises(DataError, match=rf"sends more than the {len(TEXT):,} bytes it should have"):
        fetch(source, tmp_path)


def test_errors_of_the_server_and_the_network(server: Server, tmp_path: Path) -> None:
    source = server.source("input.txt", TEXT)
    server.status = 503
    with pytest.raises(DataError, match=r"/input\.txt: the server answers 503 Service Unavailable; try again later, or fetch"):
        fetch(source, tmp_path)
    server.status, server.files = 200, {}
    with pytest.raises(DataError, match="the server answers 404 Not Found"):
        fetch(source, tmp_path)
    nobody = Source("http://127.0.0.1:9/x.txt", "", "")
    with pytest.raises(DataError, match=r"^http://127.0.0.1:9/x.txt: cannot be fetched \(.*refused.*\); check .* to .*/x\.txt and run"):
        fetch(nobody, tmp_path)


def test_what_was_fetched_by_hand_is_taken(server: Server, tmp_path: Path) -> None:
    archive = zipped({"a/1.txt": b"one", "a/2.md": b"two"})
    (tmp_path / "some.zip").write_bytes(archive)
    found = fetch(server.source("some.zip", archive), tmp_path)
    assert not server.asked and found.fresh and seen(tmp_path) == {"a/1.txt", "a/2.md"}


def zipped(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def tarred(files: dict[str, bytes | None], mode: str = "w:gz") -> bytes:
    """None is a link."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as archive:  # type: ignore[call-overload]
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            if content is None:
                info.type, info.linkname = tarfile.SYMTYPE, "/etc/passwd"
            info.size = len(content or b"")
            archive.addfile(info, io.BytesIO(content or b""))
    return buffer.getvalue()


TREE: dict[str, bytes] = {"top/全唐诗/poet.0.json": b"[1]", "top/README.md": b"read me", "top/全唐诗/error/poet.1.json": b"[2]"}


@pytest.mark.parametrize("name", ["tree.zip", "tree.tar.gz", "tree.tgz", "tree.tar", "tree.tar.xz"])
def test_an_archive_becomes_its_texts(server: Server, tmp_path: Path, name: str) -> None:
    mode = {"tar": "w", "xz": "w:xz"}.get(name.rpartition(".")[2], "w:gz")
    payload = zipped(TREE) if name.endswith("zip") else tarred(dict(TREE), mode)
    found = fetch(server.source(name, payload, members="*/全唐诗/poet.*.json"), tmp_path)
    assert found.files == [tmp_path / "top/全唐诗/poet.0.json"] and seen(tmp_path) == {"top/全唐诗/poet.0.json"}
    assert found.files[0].read_bytes() == b"[1]"
    assert not fetch(server.source(name, payload, members="*/全唐诗/poet.*.json"), tmp_path).fresh
    more = fetch(server.source(name, payload), tmp_path)  # other members are another corpus
    assert more.fresh and seen(tmp_path) == set(TREE)
    found.files[0].unlink()
    assert fetch(server.source(name, payload), tmp_path).fresh and seen(tmp_path) == set(TREE)


def test_a_gzip_file_becomes_its_text_and_trains(server: Server, tmp_path: Path) -> None:
    found = fetch(server.source("beer.txt.gz", gzip.compress(TEXT)), tmp_path / "beer")
    assert found.files == [tmp_path / "beer/beer.txt"] and found.files[0].read_bytes() == TEXT
    assert len(load_corpus(settings(tmp_path / "beer"), 1).ids) == len(TEXT)  # the directory holds nothing else to be read


@pytest.mark.parametrize(
    "name, payload, complaint",
    [
        ("a.zip", zipped({"fine.txt": b"fine", "../out.txt": b"out"}), r"a\.zip: '\.\./out\.txt': a path outside of the archive"),
        ("a.zip", zipped({"fine.txt": b"fine", "/etc/out.txt": b"out"}), r"'/etc/out\.txt': a path outside"),
        ("a.zip", zipped({"fine.txt": b"fine", "C:\\out.txt": b"out"}), r"'C:.*out\.txt': a path outside"),
        ("a.zip", zipped({"fine.txt": b"fine", "x\\..\\..\\out.txt": b"out"}), r"out\.txt': a path outside"),
        ("a.tar", tarred({"fine.txt": b"fine", "../out.txt": b"out"}, "w"), r"'\.\./out\.txt': a path outside"),
        ("a.tgz", tarred({"fine.txt": b"fine", "link": None}), r"'link': a link or a device; expected plain files, so nothing"),
        ("a.zip", zipped({"fine.txt": b"fine", "bomb.txt": bytes(3_000_000)}), r"'bomb\.txt': more than 100 times as large unpacked as"),
        ("a.tgz", tarred({"fine.txt": b"fine", "bomb.txt": bytes(3_000_000)}), r"'bomb\.txt': more than 100 times"),
        ("a.txt.gz", gzip.compress(bytes(3_000_000)), r"'a\.txt': more than 100 times"),
        ("a.zip", b"PK no zip at all", r"a\.zip: cannot be unpacked: .*; delete it to fetch it again"),
        ("a.tgz", b"no tar at all", r"a\.tgz: cannot be unpacked: .*; delete it"),
        ("a.txt.gz", gzip.compress(TEXT)[:-9], r"a\.txt\.gz: cannot be unpacked: .*; delete it"),
        ("a.zip", zipped({}), r"a\.zip: holds no file '\*'; its makers have arranged it anew"),
    ],
)
def test_an_archive_that_is_not_to_be_trusted(server: Server, tmp_path: Path, name: str, payload: bytes, complaint: str) -> None:
    into = tmp_path / "deep/into"
    with pytest.raises(DataError, match=complaint) as refused:
        fetch(server.source(name, payload), into)
    assert len(str(refused.value).splitlines()) == 1
    assert seen(into) == {name}  # the archive, for who wants to look into it
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["into"] and not list(into.glob(".unpacking*"))


def test_the_table_holds_what_can_be_asked_for() -> None:
    for name, source in SOURCES.items():
        assert re.fullmatch(r"https?://[\w.-]+/\S+", source.address) and source.file and source.licence and source.about, name
        assert source.sha256 is None or re.fullmatch(r"[0-9a-f]{64}", source.sha256), name
        assert source.sha256 or source.address.endswith("/master.zip"), f"{name}: only a branch has no fixed sum"
        assert source_of(name) is source
    with pytest.raises(UserError, match=r"^corpus 'text9': not in the table; did you mean 'text8'\?; known are tinyshakespeare, "):
        source_of("text9")


class TestCommandLine:
    def run(self, capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as end:
            main([str(argument) for argument in arguments])
        return int(end.value.code or 0), *capsys.readouterr()

    def test_without_a_name_it_lists_the_table(self, capsys: pytest.CaptureFixture[str]) -> None:
        code, out, _ = self.run(capsys, "data", "fetch")
        assert code == 0
        for name, source in SOURCES.items():
            assert re.search(rf"^{name} ", out, re.MULTILINE) and source.address in out and (source.sha256 or "cannot be verified") in out

    @pytest.mark.parametrize("known", [True, False], ids=["known", "unknown"])
    def test_it_says_where_the_texts_are(
        self, server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, known: bool
    ) -> None:
        monkeypatch.chdir(tmp_path)
        source = server.source("input.txt", TEXT, known=known)
        monkeypatch.setitem(SOURCES, "beer", source)
        code, out, _ = self.run(capsys, "data", "fetch", "beer")
        sure = "as it should be" if known else "which could not be verified, for no sum to compare it with is known"
        assert (code, out) == (
            0,
            f"beer: {len(TEXT):,} bytes from {source.address}; none\nSHA-256 {hashlib.sha256(TEXT).hexdigest()}, {sure}\n"
            "1 file: --set data.path=data/downloads/beer/input.txt\n",
        )
        assert Path("data/downloads/beer/input.txt").read_bytes() == TEXT
        assert "all there already" in self.run(capsys, "data", "fetch", "beer")[1]
        assert "2 files: --set data.path='my texts'" in self.several(server, capsys, monkeypatch)

    def several(self, server: Server, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> str:
        monkeypatch.setitem(SOURCES, "two", server.source("two.zip", zipped({"1.txt": b"1", "2.txt": b"2"})))
        return self.run(capsys, "data", "fetch", "two", "--to", "my texts")[1]

    def test_mistakes_are_one_line(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        code, _, err = self.run(capsys, "data", "fetch", "tinyshakespear")
        assert code == 2 and err.startswith("charrnn: error: corpus 'tinyshakespear': not in the table; did you mean 'tinyshakespeare'?")
        (tmp_path / "file").write_text("")
        code, _, err = self.run(capsys, "data", "fetch", "text8", "--to", tmp_path / "file")
        assert code == 2 and "File exists; free some space or name another directory with --to" in err


def test_what_was_done_is_told_by_a_file_that_may_be_damaged(server: Server, tmp_path: Path) -> None:
    source = server.source("input.txt", TEXT)
    fetch(source, tmp_path)
    assert json.loads((tmp_path / ".fetched.json").read_text())["files"] == {"input.txt": len(TEXT)}
    for damaged in ("", "[]", "{}", '{"files": 3}', '{"files": {"input.txt": 1}}'):
        (tmp_path / ".fetched.json").write_text(damaged)
        assert fetch(source, tmp_path).fresh  # looked at again, and not fetched: the text is there
    assert len(server.asked) == 1 and len(TEXT) > 4 * PIECE
