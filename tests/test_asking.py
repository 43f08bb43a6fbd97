"""Answers are kept at once and never asked for again: bad replies, bad servers, kills, two at a time."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from chat_server import Answer, ChatServer, good, make_tiny_llama, refused
from conftest import KEY

from synthgen import asking, claims
from synthgen.asking import Counts, ask, backoff, read_answers, save
from synthgen.data import Category
from synthgen.errors import FolderError, ModelError, WorkError
from synthgen.language_models import open_local, open_server
from synthgen.prompts.questions import Question, make_questions, parse


def questions(count: int) -> list[Question]:
    dog = Category(0, "dog", "dog")
    return make_questions([dog], task="synthclip", model="m", sampling={"max_tokens": 8}, seed=0, count=count)


def put(asked: list[Question], root: Path, **keys: Any) -> Counts:
    return ask(asked, open_server(timeout=2), root=root, stem="t", **{"pause": lambda attempt: 0.01, **keys})


def entries(root: Path) -> list[dict[str, Any]]:
    lines = (root / "texts" / "t.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def test_every_answer_is_kept_with_its_question(server: ChatServer, tmp_path: Path) -> None:
    asked, seen = questions(20), list[Counts]()
    assert put(asked, tmp_path, on_progress=seen.append) == Counts(20, 20, 0, 0, {})
    assert seen[-1].answered == 20
    answers = read_answers([tmp_path / "texts" / "t.jsonl"])
    assert answers.keys() == {question.key for question in asked}
    assert all(parse(question, answers[question.key]).texts for question in asked)
    first = next(entry for entry in entries(tmp_path) if entry["key"] == asked[0].key)
    assert first["question"] == {
        "class_name": "dog",
        "task": "synthclip",
        "number": 0,
        "model": "m",
        "sampling": {"max_tokens": 8},
        "messages": asked[0].messages,
        "schema": asked[0].schema,
    }
    assert first["error"] == ""
    assert first["attempt"] == 0


def test_nothing_is_asked_twice(server: ChatServer, tmp_path: Path) -> None:
    put(questions(5), tmp_path)
    assert put(questions(5), tmp_path) == Counts(0, 0, 5, 0, {})
    assert put(questions(8), tmp_path) == Counts(3, 3, 5, 0, {})
    other = tmp_path / "other"
    saved = [tmp_path / "texts" / "t.jsonl", tmp_path / "no such file"]
    assert put(questions(9) * 2, other, saved=saved) == Counts(1, 1, 8, 0, {})
    assert len(server.requests) == 9


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("A dog on a lawn, what else", "no JSON object"),
        ('{"caption": "A dog on', "JSON that is cut off or broken"),
        ('{"prompts": ["A dog"]}', "JSON with other keys than caption"),
        ("", "an empty reply"),
    ],
)
def test_wrong_replies_are_asked_again_and_kept(
    server: ChatServer, tmp_path: Path, content: str, reason: str
) -> None:
    server.script = lambda request, number: Answer(content) if number < 2 else good(request, number)
    assert put(questions(1), tmp_path, retries=2) == Counts(1, 1, 0, 0, {})
    found = entries(tmp_path)
    assert [entry["error"] for entry in found] == [reason, reason, ""]
    assert [entry["raw"] for entry in found[:2]] == [content, content]
    assert [entry["attempt"] for entry in found] == [0, 1, 2]
    assert len({request["seed"] for request in server.requests}) == 3


def test_questions_that_fail_are_counted_and_asked_by_the_next_call(
    server: ChatServer, tmp_path: Path
) -> None:
    bad = {question.key for question in questions(6)[:2]}
    seeds = {open_seed(question, attempt) for question in questions(2) for attempt in range(9)}
    assert len(bad) == 2
    server.script = lambda request, number: (
        Answer("nonsense") if request["seed"] in seeds else good(request, number)
    )
    assert put(questions(6), tmp_path, retries=3) == Counts(6, 4, 0, 2, {"no JSON object": 2})
    assert len(server.requests) == 4 + 2 * 4
    server.script = good
    assert put(questions(6), tmp_path) == Counts(2, 2, 4, 0, {})


def open_seed(question: Question, attempt: int) -> int:
    """The seed that is sent with an attempt: how the test's server knows the question."""
    from synthgen.language_models import _seed

    return _seed(question.key, attempt)


@pytest.mark.parametrize(
    "answer", [refused(500, "oh"), refused(503, "busy"), Answer("A dog", drop=True), Answer(body="<html>")]
)
def test_a_bad_server_is_asked_again(server: ChatServer, tmp_path: Path, answer: Answer) -> None:
    server.script = lambda request, number: answer if number % 3 != 2 else good(request, number)
    assert put(questions(4), tmp_path, concurrency=1) == Counts(4, 4, 0, 0, {})
    assert len(server.requests) == 12
    assert len(entries(tmp_path)) == 4  # no reply, no line


def test_retry_after_quiets_all(server: ChatServer, tmp_path: Path) -> None:
    times = list[float]()

    def script(request: dict[str, Any], number: int) -> Answer:
        times.append(time.monotonic())
        return refused(429, "slow", Retry_After="1") if number == 0 else good(request, number)

    server.script = script
    assert put(questions(3), tmp_path, concurrency=1).answered == 3
    assert times[1] - times[0] >= 1


def test_a_server_that_never_replies_is_given_up(server: ChatServer, tmp_path: Path) -> None:
    server.script = lambda request, number: good(request) if number < 3 else refused(500, "oh")
    with pytest.raises(
        WorkError, match=r"given up after 4 questions in a row .*4 x http.*HTTP 500\); 3 are answered"
    ):
        put(questions(100), tmp_path, concurrency=2, retries=1, patience=4)
    assert len(server.requests) < 20
    server.script = good
    assert put(questions(100), tmp_path).already == 3


def test_a_wrong_key_stops_everything_at_once(
    server: ChatServer, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    server.script = lambda request, number: (
        good(request, number) if number < 5 else refused(401, f"Incorrect API key provided: {KEY}")
    )
    with pytest.raises(ModelError, match="the key is refused") as caught:
        put(questions(100), tmp_path, concurrency=2)
    assert KEY not in str(caught.value)
    assert len(server.requests) <= 8
    assert len(read_answers([tmp_path / "texts" / "t.jsonl"])) in (4, 5)  # one may have been in flight
    written = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    assert KEY.encode() not in written
    assert KEY not in "".join(capfd.readouterr())


def test_no_more_questions_are_in_flight_than_allowed(server: ChatServer, tmp_path: Path) -> None:
    server.script = lambda request, number: good(request, number)._replace(seconds=0.02)
    put(questions(60), tmp_path, concurrency=6)
    assert server.peak == 6


def test_one_asks_at_a_time(server: ChatServer, tmp_path: Path) -> None:
    with (
        claims.claim(tmp_path, "texts/t"),
        pytest.raises(FolderError, match=rf"process {os.getpid()} on .* is asking for texts/t; wait"),
    ):
        put(questions(1), tmp_path)
    assert not server.requests
    assert put(questions(1), tmp_path).answered == 1


def test_a_torn_last_line_is_skipped_and_mended(server: ChatServer, tmp_path: Path) -> None:
    put(questions(3), tmp_path)
    path = tmp_path / "texts" / "t.jsonl"
    path.write_bytes(path.read_bytes()[:-40])
    assert len(read_answers([path])) == 2
    assert put(questions(3), tmp_path) == Counts(1, 1, 2, 0, {})
    assert len(read_answers([path])) == 3
    lines = path.read_bytes().split(b"\n")
    assert len(lines) == 5  # three answers, the torn one, and the end
    assert lines[-1] == b""


SCRIPT = """
import signal, sys
from pathlib import Path
from synthgen.engine import Stopped, listen
from synthgen.asking import ask
from synthgen.language_models import open_server
from test_asking import questions
listen(signal.SIGTERM, signal.SIGINT)
try:
    ask(questions(200), open_server(), root=Path(sys.argv[1]), stem="t", concurrency=int(sys.argv[2]))
except Stopped as stopped:
    sys.exit(128 + stopped.number)
"""


def start(root: Path, concurrency: int) -> "subprocess.Popen[bytes]":
    tests = str(Path(__file__).parent)
    path = os.pathsep.join([tests, os.environ.get("PYTHONPATH", "")])
    return subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(root), str(concurrency)],
        env={**os.environ, "PYTHONPATH": path},
        stderr=subprocess.PIPE,
    )


@pytest.mark.parametrize("concurrency", [1, 4])
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_a_stopped_run_goes_on_where_it_was(
    server: ChatServer, tmp_path: Path, number: int, concurrency: int
) -> None:
    """Replies from the 21st on never come, so that some are in flight when the signal comes."""
    server.script = lambda request, place: good(request, place)._replace(seconds=60.0 if place >= 20 else 0.0)
    process, path = start(tmp_path, concurrency), tmp_path / "texts" / "t.jsonl"
    deadline = time.monotonic() + 30
    while len(server.requests) < 20 + concurrency or len(read_answers([path])) < 20:
        assert time.monotonic() < deadline
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.02)
    signalled = time.monotonic()
    process.send_signal(number)
    _, errors = process.communicate(timeout=20)
    assert process.returncode == (-9 if number == signal.SIGKILL else 128 + number), errors
    assert time.monotonic() - signalled < 5
    assert errors == b""
    assert len(read_answers([path])) == 20
    first = [request["seed"] for request in server.requests]
    server.script, before = good, len(server.requests)
    assert put(questions(200), tmp_path) == Counts(180, 180, 20, 0, {})
    again = [request["seed"] for request in server.requests[before:]]
    assert len(again) == 180
    assert not set(again) & set(first[:20])  # of those, all were answered
    assert set(first[20:]) <= set(again)  # those were in flight
    assert claims.attempted(tmp_path) == []


def test_ctrl_c_without_our_handler(server: ChatServer, tmp_path: Path) -> None:
    def interrupt(counts: Counts) -> None:
        if counts.answered >= 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        put(questions(50), tmp_path, concurrency=1, on_progress=interrupt)
    answered = len(read_answers([tmp_path / "texts" / "t.jsonl"]))
    assert 3 <= answered < 10
    assert put(questions(50), tmp_path).already == answered


def test_saved_texts_are_the_wanted_ones_in_order(server: ChatServer, tmp_path: Path) -> None:
    root, recipe = tmp_path / "run", tmp_path / "recipe"
    server.script = lambda request, number: (
        Answer("nonsense") if number == 0 else good(request, number)._replace(seconds=0.01 * (number % 3))
    )
    put(questions(12), root)
    wanted = questions(8)
    assert save(wanted, root=root, stem="t", folder=recipe) == 8
    path = recipe / "texts" / "t.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [line["key"] for line in lines] == [question.key for question in wanted]
    assert all("seconds" not in line and not line["error"] for line in lines)
    bytes_before = path.read_bytes()
    assert save(wanted, root=tmp_path / "empty", stem="t", folder=recipe) == 0
    assert path.read_bytes() == bytes_before
    assert save(wanted[:2], root=root, stem="t", folder=recipe) == 0
    assert path.read_bytes() == bytes_before  # what nobody asks for now stays
    assert save(questions(20), root=root, stem="t", folder=recipe) == 4
    assert save(wanted, root=tmp_path / "nothing", stem="u", folder=recipe) == 0
    assert sorted(p.name for p in (recipe / "texts").iterdir()) == ["t.jsonl"]
    assert put(questions(12), tmp_path / "new", saved=[path]) == Counts(0, 0, 12, 0, {})


def test_a_local_model_of_chance_fails_with_reasons(tmp_path: Path) -> None:
    reply, found = open_local(make_tiny_llama(tmp_path / "llama")), list[Counter[object]]()
    for root, concurrency in ((tmp_path / "one", 1), (tmp_path / "two", 2)):
        for calls in (1, 2):
            counts = ask(questions(3), reply, root=root, stem="t", retries=1, concurrency=concurrency)
            assert counts.failed == sum(counts.reasons.values()) == 3
            assert len(entries(root)) == 6 * calls
        found.append(Counter((entry["key"], entry["attempt"], entry["raw"]) for entry in entries(root)))
    assert found[0] == found[1]  # whatever the order of threads
    assert sorted(attempt for _, attempt, _ in found[0]) == sorted([0, 1, 2, 3] * 3)
    assert len({raw for _, _, raw in found[0]}) == 12


def test_one_at_a_time_is_asked_in_the_callers_thread(server: ChatServer, tmp_path: Path) -> None:
    threads = set[threading.Thread]()
    reply = open_server()

    def seen(question: Question, attempt: int) -> str:
        threads.add(threading.current_thread())
        return reply(question, attempt)

    assert ask(questions(5), seen, root=tmp_path, stem="t", concurrency=1).answered == 5
    assert threads == {threading.current_thread()}


def test_waits_grow_and_end() -> None:
    waits = [[backoff(attempt) for _ in range(50)] for attempt in range(12)]
    assert all(0.5 <= wait <= 1 for wait in waits[0])
    assert all(30 <= wait <= 60 for wait in waits[-1])
    assert len(set(waits[3])) > 1
    assert asking.MOST_WAIT_SECONDS == 300
