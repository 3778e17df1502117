"""`charrnn serve`: what the API answers, whom it lets in, what it refuses, and what it leaves behind."""

from __future__ import annotations

import http.client
import json
import re
import shlex
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator
from openapi_spec_validator import validate

from charrnn.checkpoint import build_model, load_model
from charrnn.scoring import Document, score
from charrnn.web import limits
from charrnn.web.app import STATIC
from charrnn.web.asked import SampleAsked
from charrnn.web.guard import Access
from charrnn.web.hosted import Called, Torch, Writer, command
from tests.test_cli import said_to
from tests.web.playing import HOSTILE, JSON, SAMPLE, ask, events, post, served

PRIME = "Oh, "


class TestPage:
    @pytest.mark.parametrize("path", [*STATIC, "/v1/models", "/v1/none", "/v1/openapi.json"])
    def test_every_answer_says_what_a_browser_may_do(self, port: int, path: str) -> None:
        answer = ask(port, "GET", path)
        assert answer.status == (404 if path == "/v1/none" else 200)
        policy = answer.headers["content-security-policy"]
        assert policy.startswith("default-src 'none'; script-src 'self'; style-src 'self';") and "unsafe" not in policy
        assert (answer.headers["x-content-type-options"], answer.headers["cache-control"]) == ("nosniff", "no-store")
        assert "set-cookie" not in answer.headers and "server" not in answer.headers

    def test_it_names_nothing_of_others(self, port: int) -> None:
        for path in STATIC:
            text = ask(port, "GET", path).body.decode().replace("http://www.w3.org/2000/svg", "")
            assert "http:" not in text and "https:" not in text and "//cdn" not in text
        page = ask(port, "GET", "/").body.decode()
        assert " style=" not in page and "onclick" not in page  # the policy would not let them
        assert "innerHTML" not in ask(port, "GET", "/app.js").body.decode()

    def test_a_menu_of_models(self, port: int) -> None:
        told = ask(port, "GET", "/v1/models").json["models"]
        tasks = {"writes": "lm", "hostile": "lm", "fill": "fill", "classify": "classify", "tag": "tag", "marks": "tag"}
        assert {model["name"]: model["task"] for model in told} == tasks | {"caption": "caption", "hear": "transcribe"}
        assert ask(port, "GET", "/v1/healthz").json["status"] == "ok"


class TestSample:
    @pytest.mark.parametrize(
        "asked",
        [
            {"prime": PRIME, "length": 60, "seed": 5},
            {"prime": 'It\'s "so"\n', "length": 40, "temperature": 1.3, "top_k": 9, "top_p": 0.9, "min_p": 0.01, "seed": 1 << 60},
            {"prime": "a\u202eb\\'", "length": 30, "repetition_penalty": 1.2, "no_repeat_ngram": 4},
            {"prime": "-x", "temperature": 0, "stop": ["e", "\n"]},
        ],
    )
    def test_it_is_what_the_command_beside_it_writes(self, port: int, asked: dict[str, Any]) -> None:
        told = post(port, "/v1/sample", asked | {"model": "writes"}).json
        assert len(told["text"]) == told["chars"] == len(told["bits"]) <= asked.get("length", 500)
        assert told["command"].startswith("charrnn sample ")
        line = told["command"].replace("charrnn", f"{shlex.quote(sys.executable)} -m charrnn", 1)
        written = subprocess.run(["bash", "-c", line], capture_output=True, check=True).stdout.decode()
        assert written.removesuffix("\n") == (told["prime"] + told["text"]).removesuffix("\n")

    def test_an_acrostic_holds(self, port: int) -> None:
        told = post(port, "/v1/sample", {"model": "hostile", "acrostic": "spam", "max_line": 12, "temperature": 1.5}).json
        assert [line[0] for line in told["text"].splitlines()] == list("spam") and told["reason"] in ("end", "length")
        assert "--acrostic=spam" in told["command"] and "--length" not in told["command"]

    def test_a_stream_is_the_same_piece_by_piece(self, port: int) -> None:
        asked = {"model": "writes", "prime": PRIME, "length": 400, "seed": 3, "temperature": 1.0, "stop": ["never written"]}
        whole = post(port, "/v1/sample", asked).json
        answer = post(port, "/v1/sample", asked | {"stream": True})
        assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
        (first, begun), *pieces, (last, ended) = events(answer.body)
        assert (first, last) == ("start", "end") and {name for name, _ in pieces} == {"piece"}
        assert begun == {key: whole[key] for key in begun} and begun["seed"] == 3
        assert "".join(piece["text"] for _, piece in pieces) == whole["text"]
        assert [bit for _, piece in pieces for bit in piece["bits"]] == pytest.approx(whole["bits"], abs=2e-3)
        assert ended["command"] == whole["command"] and ended["chars"] == whole["chars"]

    def test_a_pace_is_kept(self, port: int) -> None:
        began = time.monotonic()
        answer = post(port, "/v1/sample", {"model": "hostile", "length": 60, "stream": True, "pace": 100})
        assert time.monotonic() - began > 0.5
        assert len([name for name, _ in events(answer.body) if name == "piece"]) >= 10

    def test_bits_are_the_models_own_whatever_the_temperature(self, port: int, models: Path) -> None:
        told = post(port, "/v1/sample", {"model": "writes", "prime": PRIME, "length": 50, "temperature": 0}).json
        loaded = load_model(models / "writes.safetensors")
        texts = [PRIME + told["text"], PRIME]
        whole, before = score(build_model(loaded), loaded.vocabulary, [Document("", 1, text) for text in texts])
        ended = len(told["text"]) < 50  # the end of the document, which is none of the characters
        assert told["reason"] == ("end" if ended else "length")
        scored = post(port, "/v1/score", {"model": "writes", "text": texts[0]}).json
        assert scored["bits_per_char"] == pytest.approx(whole.bits_per_char, abs=1e-4)
        assert scored["accuracy"] == whole.tally.as_metrics()["accuracy"]
        assert scored["bits"][len(PRIME) :] == pytest.approx(told["bits"], abs=2e-3)
        # What is scored of the prime alone is that, and the end behind it.
        assert sum(scored["bits"][: len(PRIME)]) < before.tally.bits_per_char() * (len(PRIME) + 1)

    def test_torch_writes_the_same(self, port: int, models: Path) -> None:
        asked = {"prime": PRIME, "length": 40, "seed": 9}
        loaded = load_model(models / "writes.safetensors")
        writing = Writer(Called("torch", "torch"), loaded.vocabulary, Torch(build_model(loaded))).write(SampleAsked.model_validate(asked))
        text, bits = "", list[float | None]()
        while (piece := writing.more(7)) is not None:
            assert len(piece.text) <= 7
            text, bits = text + piece.text, bits + piece.bits
        writing.close()
        told = post(port, "/v1/sample", asked | {"model": "writes"}).json
        assert text == told["text"] and bits == pytest.approx(told["bits"], abs=2e-3)

    def test_a_prime_that_the_model_does_not_know_is_told_of(self, port: int) -> None:
        told = post(port, "/v1/sample", {"model": "writes", "prime": "龍", "length": 3}).json
        assert told["prime"] == "" and "does not know '龍' (U+9F8D)" in told["warnings"][0]

    def test_what_a_shell_cannot_say_has_no_command(self) -> None:
        assert command("m", SampleAsked.model_validate({"prime": "a\0b"}), 1) is None
        asked = SampleAsked.model_validate({"prime": "a'b", "top_p": 0.5})
        assert command("my run", asked, 1) == """charrnn sample 'my run' --prime='a'"'"'b' --top-p=0.5 --seed=1"""


class TestTasks:
    def test_blanks(self, port: int, models: Path, capsys: pytest.CaptureFixture[str]) -> None:
        told = post(port, "/v1/fill", {"text": "th_ s_n", "top": 3}).json
        said = json.loads(said_to(capsys, "fill", models / "fill.safetensors", "th_ s_n", "--top", 3, "--json").out)
        assert [f["text"] for f in told["fillings"]] == [f["text"] for f in said["fillings"]] and told["model"] == "fill"
        assert [blank["at"] for blank in told["blanks"]] == [2, 5] and len(told["fillings"]) == 3
        assert "does not know '龍'" in post(port, "/v1/fill", {"text": "龍_"}).json["warnings"][0]

    def test_labels(self, port: int, models: Path, capsys: pytest.CaptureFixture[str]) -> None:
        text = "It broke on the first day."
        told = post(port, "/v1/classify", {"text": text}).json
        said = json.loads(said_to(capsys, "classify", models / "classify.safetensors", "--text", text, "--json").out)
        assert told["label"] == said["label"] == told["labels"][0]["label"]
        assert sum(one["probability"] for one in told["labels"]) == pytest.approx(1)

    def test_a_label_for_each_character(self, port: int) -> None:
        told = post(port, "/v1/tag", {"model": "tag", "text": "林小雨\n\n从苏州"}).json
        assert [(line["text"], len(line["labels"])) for line in told["lines"]] == [("林小雨", 3), ("从苏州", 3)] and told["marked"] is None

    def test_marks_are_put_in(self, port: int, models: Path, capsys: pytest.CaptureFixture[str]) -> None:
        text = "母亲种了三样东西\n豆角"
        told = post(port, "/v1/tag", {"model": "marks", "text": text}).json
        assert told["marked"] + "\n" == said_to(capsys, "tag", models / "marks.safetensors", "--text", text).out

    def test_a_picture(self, port: int) -> None:
        picture = (SAMPLE / "shapes/pictures/0050.png").read_bytes()
        told = ask(port, "POST", "/v1/caption?num=2&beam=3", picture, {"Content-Type": "image/png"}).json
        assert len(told["captions"]) == 2 and (told["width"], told["height"]) == (64, 64)
        assert all(len(one["bits"]) == len(one["text"]) for one in told["captions"])

    def test_a_recording(self, port: int) -> None:
        recording = next((SAMPLE / "tones/val").iterdir()).read_bytes()
        told = ask(port, "POST", "/v1/transcribe?beam=2", recording, {"Content-Type": "audio/flac"}).json
        assert told["seconds"] > 0 and len(told["pieces"]) == 1 and told["pieces"][0]["text"] == told["text"]

    @pytest.mark.parametrize("path, name", [("/v1/caption", "picture"), ("/v1/transcribe", "recording")])
    def test_what_is_no_file_of_that_kind(self, port: int, path: str, name: str) -> None:
        for content in (b"x", b"\x89PNG\r\n\x1a\n" + b"\0" * 500, b"RIFF\x24\0\0\0WAVEfmt " + b"\xff" * 64):
            answer = ask(port, "POST", path, content)
            assert answer.status == 400 and answer.json["error"].startswith(f"the {name}: "), answer
            assert "charrnn-" not in answer.json["error"] and "dropped" not in answer.json["error"]  # nothing of where it lay

    def test_pictures_of_too_many_pixels(self, port: int, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(limits, "PIXELS", 64 * 63)
        monkeypatch.setattr(limits, "RECORDING_SECONDS", 0.01)
        picture = (SAMPLE / "shapes/pictures/0050.png").read_bytes()
        assert "64 x 64 pixels; expected at most 4,032" in ask(port, "POST", "/v1/caption", picture).json["error"]
        recording = next((SAMPLE / "tones/val").iterdir()).read_bytes()
        assert "s long; expected at most 0.01" in ask(port, "POST", "/v1/transcribe", recording).json["error"]


WRONG: list[tuple[str, object, int, str]] = [
    ("/v1/sample", {"temperature": -1}, 400, "temperature: input should be greater than or equal to 0; it is -1"),
    ("/v1/sample", {"temperature": "0.8"}, 400, "temperature: input should be a valid number; it is '0.8'"),
    ("/v1/sample", {"length": 1.5}, 400, "length: input should be a valid integer"),
    ("/v1/sample", {"length": limits.LENGTH + 1}, 400, "length: input should be less than or equal to 10000"),
    ("/v1/sample", {"primer": "x"}, 400, "primer: extra inputs are not permitted"),
    ("/v1/sample", {"prime": "x" * (limits.PRIME + 1)}, 400, "prime: string should have at most 10000 characters"),
    ("/v1/sample", {"seed": 1 << 63}, 400, "seed: "),
    ("/v1/sample", {"stop": [""]}, 400, "stop.0: "),
    ("/v1/sample", [], 400, "body: input should be an object"),
    ("/v1/sample", {"top_p": 0}, 400, "top_p: input should be greater than 0"),
    ("/v1/sample", {"form": "9999x1"}, 400, "form '9999x1': unknown; expected 五绝"),
    ("/v1/sample", {"form": "4x5", "lines": 3}, 400, "lines and form are both given"),
    (
        "/v1/sample",
        {"model": "hostile", "lines": 200, "max_line": 500},
        400,
        "lines: the verse can take 100,200 characters; expected at most 10,000",
    ),
    ("/v1/sample", {"acrostic": "a", "stop": ["x"]}, 400, "stop: is given with a verse"),
    ("/v1/sample", {"rhyme": True}, 400, "rhyme without form or lines: expected a number of lines"),
    ("/v1/sample", {"model": "none\n\u202e"}, 404, r"model 'none\n\u202e': not served; expected 'writes' or 'hostile'"),
    ("/v1/sample", {"model": "fill"}, 400, "model 'fill': of task fill, and this needs one of task lm"),
    ("/v1/score", {"text": ""}, 400, "text: string should have at least 1 character"),
    ("/v1/fill", {"text": "none"}, 400, "'none' has no blank"),
    ("/v1/fill", {"text": "_" * 17}, 400, "text: 17 blanks; expected at most 16"),
    ("/v1/classify", {"text": " "}, 400, "text 1: the text is empty"),
    ("/v1/tag", {"text": "\n"}, 400, "text: is empty"),
    ("/v1/caption?beam=99", {}, 400, "beam: input should be less than or equal to 16"),
    ("/v1/caption?bean=9", {}, 400, "bean: extra inputs are not permitted"),
    ("/v1/nothing", {}, 404, "nothing is here"),
    ("/v1/models", {}, 405, "not with POST"),
    ("/" + "x" * 3000, {}, 414, "the address is too long"),
]


class TestRefusals:
    @pytest.mark.parametrize("path, asked, status, message", WRONG)
    def test_a_mistake_is_one_line(self, port: int, path: str, asked: object, status: int, message: str) -> None:
        answer = post(port, path, asked)
        assert (answer.status, "Traceback" in answer.body.decode()) == (status, False)
        line = answer.json["error"]
        assert line.startswith(message) and "\n" not in line and len(line) < 500

    @pytest.mark.parametrize(
        "body", [b"", b"{", b"\xff\xfe", b"[" * 100_000, b'{"prime": "\\ud800"}', b'{"temperature": NaN}', b'{"top_p": 1e999}']
    )
    def test_what_is_no_json(self, port: int, body: bytes) -> None:
        answer = ask(port, "POST", "/v1/sample", body, JSON)
        assert answer.status == 400 and "\n" not in answer.json["error"]

    def test_other_content(self, port: int) -> None:
        for kind in ({}, {"Content-Type": "text/plain"}, {"Content-Type": "application/x-www-form-urlencoded"}):
            answer = ask(port, "POST", "/v1/sample", b"{}", kind)
            assert answer.status == 415 and "expected application/json" in answer.json["error"]

    def test_bodies_that_are_too_large(self, port: int) -> None:
        large = b'{"prime": "' + b"x" * limits.JSON_BYTES + b'"}'
        assert ask(port, "POST", "/v1/sample", large, JSON).status == 413
        connection = http.client.HTTPConnection("127.0.0.1", port)  # one that does not say how large it is
        connection.request("POST", "/v1/sample", iter([large[:100_000]] * 3), JSON, encode_chunked=True)
        assert connection.getresponse().status == 413
        connection.close()
        connection = http.client.HTTPConnection("127.0.0.1", port)  # one that says so and does not come
        connection.putrequest("POST", "/v1/caption")
        connection.putheader("Content-Length", str(1 << 40))
        connection.endheaders()
        assert connection.getresponse().status == 413
        connection.close()
        assert ask(port, "GET", "/v1/healthz").status == 200

    def test_a_body_that_does_not_come(self, port: int, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(limits, "BODY_SECONDS", 0.2)
        with socket.create_connection(("127.0.0.1", port)) as slow:
            slow.sendall(b'POST /v1/sample HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 9\r\n\r\n{"')
            slow.settimeout(20)
            said = b"".join(iter(lambda: slow.recv(1 << 16), b""))  # and it is hung up
        assert said.startswith(b"HTTP/1.1 408 ") and b"body: not there after 0.2 s" in said


class TestAccess:
    @pytest.mark.parametrize(
        "headers, status",
        [
            ({}, 200),
            ({"Host": "evil.example"}, 403),
            ({"Host": "evil.example:80"}, 403),
            ({"Host": "127.0.0.1.evil.example"}, 403),
            ({"Host": "10.0.0.1"}, 403),
            ({"Host": "localhost:9999"}, 200),  # the other end of a tunnel may have another number
            ({"Host": "[::1]:8000"}, 200),
            ({"Origin": "http://evil.example"}, 403),
            ({"Origin": "null"}, 403),
            ({"Origin": "http://localhost", "Host": "localhost"}, 200),
            ({"Origin": "http://localhost:1", "Host": "localhost:2"}, 403),
            ({"Sec-Fetch-Site": "cross-site"}, 403),
            ({"Sec-Fetch-Site": "same-origin"}, 200),
        ],
    )
    def test_other_sites_are_kept_out(self, port: int, headers: dict[str, str], status: int) -> None:
        answer = ask(port, "POST", "/v1/sample", b'{"length": 1}', JSON | headers)
        assert answer.status == status
        assert status == 200 or answer.json["error"].startswith(("Host: ", "Origin: "))

    def test_no_name_but_this_machines(self) -> None:
        here, everywhere = Access(), Access(frozenset(["box"]), loopback=False)
        assert here.knows("localhost") and here.knows("LOCALHOST.:1") and here.knows("127.9.9.9") and here.knows("[::1]")
        assert not any(here.knows(name) for name in ("", ":80", "box", "192.168.1.1", "[::1", "localhost.evil", "::1"))
        assert everywhere.knows("Box:8000") and everywhere.knows("192.168.1.1:8000") and not everywhere.knows("evil.example")

    def test_a_token(self, models: Path) -> None:
        token = "correct-horse-battery"
        with served(models / "writes.safetensors", access=Access(token=token)) as port:
            for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": f"Basic {token}"}, {"Authorization": "Bearer \xff"}):
                answer = ask(port, "GET", "/v1/models", headers=headers)
                assert answer.status == 401 and answer.headers["www-authenticate"] == "Bearer" and token not in answer.body.decode()
            assert ask(port, "GET", "/v1/models", headers={"Authorization": f"bearer {token}"}).status == 200
            assert [ask(port, "GET", path).status for path in ("/", "/?token=wrong", f"/?token={token}")] == [401, 401, 200]
            assert ask(port, "GET", f"/v1/models?token={token}").status == 401  # only the page's may stand in an address
            assert {ask(port, "GET", path).status for path in ("/v1/healthz", "/v1/openapi.json", "/app.js")} == {200}


class TestBounds:
    def open(self, port: int, **asked: object) -> http.client.HTTPConnection:
        """A reader of a text without end, that has read its beginning."""
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
        body = json.dumps({"length": limits.LENGTH, "stream": True, "pace": 20, **asked})
        connection.request("POST", "/v1/sample", body, JSON)
        answer = connection.getresponse()
        assert answer.status == 200
        while not answer.readline().startswith(b"event: piece"):
            pass
        return connection

    def test_one_text_too_many_is_refused_and_a_closed_browser_makes_room(self, models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(limits, "GENERATIONS", 2)
        with served(models / "hostile.safetensors") as port:
            first, second = self.open(port), self.open(port)
            for stream in (True, False):
                refused = post(port, "/v1/sample", {"stream": stream})
                assert refused.status == 429 and refused.headers["retry-after"] == "1"
                assert refused.json["error"].startswith("2 texts of this model at once are as many as this server has")
            first.close()
            until = time.monotonic() + 1
            while (answer := post(port, "/v1/sample", {"length": 5})).status == 429:
                assert time.monotonic() < until, "the text of a closed browser goes on"
            assert answer.status == 200
            second.close()

    def test_a_large_model_has_fewer_seats(self, models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(limits, "DECODERS", (models / "writes.safetensors").stat().st_size * 3)
        with served(models / "writes.safetensors") as port:
            assert ask(port, "GET", "/v1/models").json["models"][0]["at_once"] == 1

    def test_time_is_up(self, port: int, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(limits, "GENERATION_SECONDS", 0.2)
        told = events(post(port, "/v1/sample", {"model": "hostile", "length": 9999, "stream": True, "pace": 40}).body)
        assert told[-1][0] == "end" and told[-1][1]["reason"] == "time" and 0 < told[-1][1]["chars"] < 100

    def test_ends_with_its_readers(self, models: Path) -> None:
        """A server that is to end does not wait for a text that somebody reads."""
        began = time.monotonic()
        with served(models / "hostile.safetensors") as port:
            reader = self.open(port)
        assert time.monotonic() - began < 10
        reader.close()


class TestOpenAPI:
    def test_it_is_valid_and_tells_of_all_there_is(self, port: int) -> None:
        told = ask(port, "GET", "/v1/openapi.json").json
        validate(told)
        for path, operations in told["paths"].items():
            for method in operations:
                assert ask(port, method.upper(), path).status not in (404, 405)
        assert told["components"]["schemas"]["SampleAsked"]["properties"]["prime"]["maxLength"] == limits.PRIME

    @pytest.mark.parametrize(
        "path, asked",
        [
            ("/v1/sample", {"length": 5}),
            ("/v1/score", {"text": "龍ab"}),
            ("/v1/fill", {"text": "a_"}),
            ("/v1/classify", {"text": "good"}),
            ("/v1/tag", {"text": "林"}),
            ("/v1/caption", SAMPLE / "shapes/pictures/0050.png"),
            ("/v1/transcribe", SAMPLE / "tones/val/001.flac"),
            ("/v1/models", None),
            ("/v1/healthz", None),
        ],
    )
    def test_answers_are_as_it_says(self, port: int, path: str, asked: object) -> None:
        method = "GET" if asked is None else "POST"
        body = asked.read_bytes() if isinstance(asked, Path) else json.dumps(asked).encode()
        answer = ask(port, method, path, body if asked is not None else None, JSON)
        assert answer.status == 200
        operation = ask(port, "GET", "/v1/openapi.json").json["paths"][path][method.lower()]
        schema = operation["responses"]["200"]["content"]["application/json"]["schema"]
        Draft202012Validator(schema).validate(answer.json)
        assert set(schema["required"]) <= set(answer.json)


class TestCommand:
    @pytest.mark.parametrize(
        "arguments, message",
        [
            (("--port", 65536), "--port 65536: expected a number from 0 to 65535"),
            (("--token", "short"), "--token: expected at least 16 letters, digits and signs without a space"),
            (("--host", "no.such.name.invalid"), "--host no.such.name.invalid --port 8000: cannot listen there: "),
        ],
    )
    def test_mistakes(self, models: Path, capsys: pytest.CaptureFixture[str], arguments: tuple[object, ...], message: str) -> None:
        said = said_to(capsys, "serve", models / "writes.safetensors", *arguments)
        assert said.code == 2 and said.err.startswith(f"charrnn: error: {message}") and said.err.count("\n") == 1

    def test_a_port_that_is_taken(self, models: Path, capsys: pytest.CaptureFixture[str], port: int) -> None:
        said = said_to(capsys, "serve", models / "writes.safetensors", "--port", port)
        assert said.code == 2 and f"--port {port}: cannot listen there: Address already in use; name another" in said.err

    def test_without_the_extra(self, models: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "uvicorn", None)
        said = said_to(capsys, "serve", models / "writes.safetensors")
        needs = "needs starlette and uvicorn, which are not installed; pip install 'charrnn[web]'"
        assert (said.code, said.err) == (2, f"charrnn: error: charrnn serve: {needs}\n")

    def test_others_need_a_token(self, models: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
        begun = []
        monkeypatch.setattr("charrnn.web.server.run", lambda app, listening: begun.append(app))
        said = said_to(capsys, "serve", models / "writes.safetensors", "--host", "0.0.0.0", "--port", 0)
        assert said.code == 0 and len(begun) == 1 and "is not encrypted" in said.err
        assert re.search(r"charrnn: writes \(lm\) at http://\S+:\d+/\?token=[\w-]{32}\n", said.out)
        said = said_to(capsys, "serve", models / "writes.safetensors", "--port", 0)
        assert "token" not in said.out and said.err == ""

    def test_two_of_one_name_and_ctrl_c(self, models: Path) -> None:
        """In a process of its own, without PyTorch: it is there, and ends with 0 and without a word."""
        model = str(models / "writes.safetensors")
        begun = "import sys, charrnn.cli, signal; signal.signal(signal.SIGINT, signal.default_int_handler); charrnn.cli.main(sys.argv[1:])"
        line = [sys.executable, "-c", begun, "serve", model, model, "--port", "0"]
        with subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None and process.stderr is not None
            told = process.stdout.readline()
            port = int(re.findall(r":(\d+)/", told)[0])
            assert told.startswith("charrnn: writes (lm), writes 2 (lm) at http://127.0.0.1:")
            assert [model["name"] for model in ask(port, "GET", "/v1/models").json["models"]] == ["writes", "writes 2"]
            assert post(port, "/v1/sample", {"model": "writes 2", "length": 9}).status == 200
            process.send_signal(signal.SIGINT)
            assert (process.wait(20), process.stderr.read()) == (0, "")

    def test_hostile_text_goes_through_as_it_is(self, port: int) -> None:
        told = post(port, "/v1/sample", {"model": "hostile", "temperature": 0, "length": 200})
        assert HOSTILE in told.json["text"] and told.headers["content-type"] == "application/json"
