"""Requests to a chat-completion server on the loopback interface, with every fault on the way."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import pytest

from chatserver import Reply, chat_server, listed
from fedprompt.descriptions.endpoint import ChatServer, Message, Request, TransientError, checked_url
from fedprompt.descriptions.llm_client import LlmClient, RateLimit
from fedprompt.descriptions.transcript import Transcript
from fedprompt.errors import UserError

QUESTION = Request((Message("system", "be brief"), Message("user", "hello")), "attributes")
NO_LIMIT = RateLimit()
GOOD = Reply(listed("attributes", "four legs"))


def ask(
    script: Any, tmp_path: Path, *, rate_limit: RateLimit = NO_LIMIT, timeout: float = 60.0
) -> tuple[Any, Any, list[float]]:
    """The outcome of one request, the server that got it, and the seconds slept between attempts."""
    slept: list[float] = []
    with chat_server(script) as chat, Transcript(tmp_path / "x.jsonl") as transcript:
        endpoint = ChatServer(chat.url, "toy", timeout=timeout)
        outcome: Any
        try:
            outcome = LlmClient(endpoint, transcript, rate_limit=rate_limit, sleep=slept.append).ask(QUESTION)
        except UserError as error:
            outcome = error
    return outcome, chat, slept


def test_a_request_follows_the_chat_completions_protocol(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    answer, chat, _ = ask(lambda question, number: GOOD, tmp_path)
    assert (answer.text, answer.tokens_in, answer.tokens_out) == (GOOD.text, 11, 7)
    (question,) = chat.asked
    assert question["path"] == "/v1/chat/completions" and question["model"] == "toy"
    assert [message["role"] for message in question["messages"]] == ["system", "user"]
    assert question["response_format"]["json_schema"]["schema"]["required"] == ["reasoning", "attributes"]
    assert chat.headers[0]["Authorization"] == "Bearer sk-secret"
    assert "sk-secret" not in (tmp_path / "x.jsonl").read_text()


FAULTS = {
    "status": Reply(status=503, body="busy"),
    "rate": Reply(status=429, body="slow down"),
    "garbage": Reply(body="<html>502</html>"),
    "half": Reply(body='{"choices": [{"message": {"con'),
    "shape": Reply(body='{"choices": []}'),
    "list": Reply(body="[1, 2]"),
    "number": Reply(body='{"choices": [{"message": {"content": 3}}]}'),
    "depth": Reply(body="[" * 100_000),
    "bytes": Reply(body="\ufffd\x00"),
    "hang up": Reply(hang_up=True),
    "flood": Reply(body="x" * (2 << 20)),
    "slow": Reply(GOOD.text, delay=60.0),
    "trickle": Reply(GOOD.text, trickle=0.05),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_transient_fault_is_retried(fault: str, tmp_path: Path) -> None:
    timeout = 2.0 if fault in ("slow", "trickle") else 60.0
    answer, chat, slept = ask(lambda question, number: FAULTS[fault] if not number else GOOD, tmp_path, timeout=timeout)
    assert answer.text == GOOD.text and len(chat.asked) == 2 and len(slept) == 1 and 0 < slept[0] <= 2
    lines = [json.loads(line) for line in (tmp_path / "x.jsonl").read_text().splitlines()]
    assert ["failed" in line for line in lines] == [True, False]


def test_attempts_are_bounded_and_waits_grow_exponentially(tmp_path: Path) -> None:
    error, chat, slept = ask(lambda question, number: FAULTS["status"], tmp_path, rate_limit=RateLimit(attempts=4))
    assert len(chat.asked) == 4 and len(slept) == 3
    assert all(0.5 * 2**n <= wait <= 1.5 * 2**n for n, wait in enumerate(slept))
    assert "gave no answer in 4 attempts (the last: status 503 (busy))" in str(error) and "same command" in str(error)


@pytest.mark.parametrize(("header", "least", "most"), [("7", 7, 7), ("1e9", 60, 60), ("-3", 0, 2), ("soon", 0.5, 2)])
def test_retry_after_is_respected_within_limits(header: str, least: float, most: float, tmp_path: Path) -> None:
    busy = Reply(status=429, body="", headers={"Retry-After": header})
    _, _, (wait,) = ask(lambda question, number: GOOD if number else busy, tmp_path)
    assert least <= wait <= most


@pytest.mark.parametrize(("status", "cure"), [(401, "OPENAI_API_KEY"), (404, "/v1"), (402, "check the URL")])
def test_a_permanent_error_is_raised_without_a_retry(status: int, cure: str, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    reply = Reply(status=status, body="wrong key sk-secret")
    error, chat, _ = ask(lambda question, number: reply, tmp_path)
    assert isinstance(error, UserError) and cure in str(error) and len(chat.asked) == 1
    assert "sk-secret" not in str(error)


def test_a_redirect_is_not_followed_with_a_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    away = Reply(status=307, body="", headers={"Location": "http://127.0.0.1:9/v1/chat/completions"})
    error, chat, _ = ask(lambda question, number: away, tmp_path)
    assert "status 307" in str(error) and len(chat.asked) == 1


def test_a_server_that_refuses_parameters_is_asked_without_them(tmp_path: Path) -> None:
    def picky(question: dict[str, Any], number: int) -> Reply:
        if "response_format" in question:
            return Reply(status=400, body="unknown field response_format")
        return Reply(status=422, body="no") if "seed" in question else GOOD

    with chat_server(picky) as chat:
        endpoint = ChatServer(chat.url, "toy")
        assert (
            set(endpoint.ask(QUESTION).sent) == {"max_completion_tokens"} and endpoint.ask(QUESTION).text == GOOD.text
        )
    assert [sorted(set(question) & {"seed", "response_format"}) for question in chat.asked] == [
        ["response_format", "seed"],
        ["seed"],
        [],
        [],
    ]


def test_a_renamed_token_limit_is_sent_and_an_invalid_request_changes_nothing(tmp_path: Path) -> None:
    def newer(question: dict[str, Any], number: int) -> Reply:
        if question["messages"][-1]["content"] == "too long":
            return Reply(status=400, body="the prompt has too many tokens")
        return Reply(status=400, body="use max_completion_tokens, not max_tokens") if "max_tokens" in question else GOOD

    with chat_server(newer) as chat:
        endpoint = ChatServer(chat.url, "toy")
        with pytest.raises(UserError, match="status 400"):
            endpoint.ask(Request((Message("user", "too long"),), "x"))
        answer = endpoint.ask(QUESTION)  # what was left out in vain is sent again
    assert sorted(answer.sent) == ["max_completion_tokens", "response_format", "seed", "temperature"]


def test_a_refusal_in_its_own_field_is_read(tmp_path: Path) -> None:
    body = json.dumps({"choices": [{"message": {"content": None, "refusal": "I cannot help."}}]})
    assert ask(lambda question, number: Reply(body=body), tmp_path)[0].text == "I cannot help."


def test_an_unreachable_server_is_a_transient_error(tmp_path: Path) -> None:
    with chat_server(lambda question, number: GOOD) as chat:
        url = chat.url
    with pytest.raises(TransientError, match="ConnectError"):
        ChatServer(url, "toy").ask(QUESTION)


@pytest.mark.parametrize("url", ["", "localhost:8000", "ftp://host/v1", "http://", "http://key@host/v1", "http://[x"])
def test_an_invalid_url_is_refused(url: str) -> None:
    with pytest.raises(UserError, match="not the address of a server"):
        checked_url(url, secret=False)


def test_a_key_is_never_sent_unencrypted() -> None:
    with pytest.raises(UserError, match=r"unencrypted to example\.org"):
        checked_url("http://example.org/v1", secret=True)
    for url in ("https://example.org/v1/", "http://127.0.0.1:1/v1", "http://10.0.0.7/v1", "http://localhost/v1"):
        assert checked_url(url, secret=True) == url.rstrip("/")


def test_a_kept_answer_sends_nothing_and_a_truncated_line_is_requested_again(tmp_path: Path) -> None:
    assert ask(lambda question, number: GOOD, tmp_path)[0].text == GOOD.text
    answer, chat, _ = ask(lambda question, number: Reply("other"), tmp_path)
    assert answer.text == GOOD.text and not chat.asked
    path = tmp_path / "x.jsonl"
    path.write_bytes(path.read_bytes()[:-20])
    answer, chat, _ = ask(lambda question, number: Reply("other"), tmp_path)
    assert answer.text == "other" and len(chat.asked) == 1
    assert ask(lambda question, number: GOOD, tmp_path)[0].text == "other"


def test_two_processes_do_not_share_a_transcript(tmp_path: Path) -> None:
    with Transcript(tmp_path / "x.jsonl"), pytest.raises(UserError, match="in use"), Transcript(tmp_path / "x.jsonl"):
        pass


def test_concurrent_requests_are_capped_and_answers_keep_their_order(tmp_path: Path) -> None:
    three = threading.Barrier(3, timeout=30)  # seconds; never passed if fewer than three are asked at once

    def script(question: dict[str, Any], number: int) -> Reply:
        if number < 3:
            three.wait()
        return Reply(question["messages"][0]["content"], delay=0.02 * (number % 3))

    with chat_server(script) as chat, Transcript(tmp_path / "x.jsonl") as transcript:
        client = LlmClient(ChatServer(chat.url, "toy"), transcript, rate_limit=RateLimit(concurrent=3))
        seen: list[tuple[int, int]] = []
        found = client.each(
            lambda word: client.ask(Request((Message("user", word),), "x")).text,
            [f"word {n}" for n in range(12)],
            lambda done, total: seen.append((done, total)),
        )
    assert found == [f"word {n}" for n in range(12)] and chat.most_at_once == 3
    assert seen == [(n, 12) for n in range(13)]


def test_one_failure_stops_the_rest_and_keeps_what_is_answered(tmp_path: Path) -> None:
    def script(question: dict[str, Any], number: int) -> Reply:
        return Reply(status=401, body="") if number == 3 else GOOD

    with chat_server(script) as chat, Transcript(tmp_path / "x.jsonl") as transcript:
        client = LlmClient(ChatServer(chat.url, "toy"), transcript, rate_limit=RateLimit(concurrent=1))
        words = [f"word {n}" for n in range(50)]
        with pytest.raises(UserError, match="status 401"):
            client.each(lambda word: client.ask(Request((Message("user", word),), "x")), words, lambda *_: None)
        assert len(transcript) == 3 + len(chat.asked) - 4 and len(chat.asked) < 10


def test_the_rate_limit_is_kept(tmp_path: Path) -> None:
    now, slept = [100.0], []

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        now[0] += seconds

    with chat_server(lambda question, number: GOOD) as chat, Transcript(tmp_path / "x.jsonl") as transcript:
        rate_limit = RateLimit(per_minute=30)
        client = LlmClient(
            ChatServer(chat.url, "toy"), transcript, rate_limit=rate_limit, sleep=sleep, clock=lambda: now[0]
        )
        for number in range(4):
            client.ask(Request((Message("user", str(number)),), "x"))
    assert slept == [2.0, 2.0, 2.0]
