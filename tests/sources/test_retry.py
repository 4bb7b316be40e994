"""What is asked for again, after how long, and what is said when it is given up."""

import datetime as dt
import email.utils
import errno
import json
import logging
import ssl
import traceback

import pyarrow as pa
import pytest
import requests
import urllib3

import microns_xr as mx
from microns_xr.network import BadAnswer, Refused, describe
from microns_xr.sources.net import attempt, classify, status_of


def http_error(status: int, **headers: str) -> requests.HTTPError:
    response = requests.Response()
    response.status_code = status
    response.headers.update(headers)
    return requests.HTTPError(f"{status} Error", response=response)


class CodeError(Exception):
    """As storage packages raise it: the status in an attribute."""

    def __init__(self, code: int) -> None:
        super().__init__(f"code {code}")
        self.code = code


def aiohttp_error() -> Exception:
    return type("ClientPayloadError", (Exception,), {"__module__": "aiohttp.client_exceptions"})(
        "cut"
    )


TRANSIENT = [
    *[http_error(status) for status in (500, 501, 502, 503, 504, 520, 599, 429, 408, 425)],
    Refused(503),
    CodeError(503),
    BadAnswer("cut"),
    requests.ConnectionError("reset"),
    requests.exceptions.ChunkedEncodingError("cut"),
    requests.exceptions.ContentDecodingError("bad"),
    requests.exceptions.ReadTimeout("slow"),
    requests.exceptions.ConnectTimeout("slow"),
    requests.exceptions.JSONDecodeError("no JSON", "", 0),
    json.JSONDecodeError("no JSON", "", 0),
    pa.ArrowInvalid("no stream"),
    OSError("a record batch breaks off"),
    ConnectionResetError(errno.ECONNRESET, "reset"),
    BrokenPipeError(errno.EPIPE, "gone"),
    TimeoutError("slow"),
    EOFError("cut"),
    urllib3.exceptions.ProtocolError("cut"),
    aiohttp_error(),
    ssl.SSLError("EOF occurred in violation of protocol"),
    ValueError("Unknown response type: text/html"),
]
REFUSED = [
    *[http_error(status) for status in (400, 401, 403, 404, 409, 410, 413)],
    Refused(410),
    CodeError(404),
    requests.exceptions.InvalidURL("no address"),
    requests.exceptions.MissingSchema("no https"),
    requests.exceptions.SSLError("certificate verify failed: self-signed"),
]
LOCAL = [
    mx.errors.SourceError("said before"),
    mx.errors.IncompleteDownloadError("tried before"),
    FileNotFoundError(errno.ENOENT, "no file"),
    PermissionError(errno.EACCES, "not yours"),
    OSError(errno.ENOSPC, "No space left on device"),
    OSError(errno.EROFS, "Read-only file system"),
    ValueError("anything else"),
    TypeError("a mistake in the program"),
    KeyError("name"),
    pa.ArrowTypeError("a mistake in the program"),
    MemoryError(),
]


KINDS = [
    (kind, error)
    for kind, errors in (("transient", TRANSIENT), ("refused", REFUSED), ("local", LOCAL))
    for error in errors
]


@pytest.mark.parametrize(("kind", "error"), KINDS, ids=lambda e: f"{type(e).__name__}-{e!s:.12}")
def test_errors_are_told_apart(kind, error):
    assert classify(error) == kind


def test_status_of_every_kind_of_error():
    assert status_of(http_error(503)) == status_of(CodeError(503)) == status_of(Refused(503)) == 503
    assert status_of(OSError(5, "io")) is None
    assert status_of(CodeError(7)) is None


def test_describe_is_one_short_line():
    assert describe(OSError("a\n  b")) == "OSError: a b"
    assert describe(KeyError()) == "KeyError"
    assert describe(BadAnswer("cut")) == "cut"
    assert len(describe(OSError("x" * 5000))) < 400


# ------------------------------------------------------------------------------------- waiting


def waits_of(*errors: Exception, **options) -> list[float]:
    """Waits of a request that fails with these errors and then succeeds."""
    waits: list[float] = []
    retry = mx.sources.Retry(attempts=len(errors) + 1, sleep=waits.append, **options)
    assert attempt(retry, Service(*errors), "the table x") == "rows"
    return waits


def test_waits_grow_up_to_the_cap_and_differ_between_clients():
    waits = [waits_of(*[OSError()] * 12, base=1.0, cap=60.0) for _ in range(5)]
    for number, same in enumerate(zip(*waits, strict=True)):
        full = min(60.0, 2.0**number)
        assert all(full / 2 <= wait <= full for wait in same)
        assert len(set(same)) == len(same)


def in_seconds(seconds: float) -> str:
    return email.utils.format_datetime(dt.datetime.now(dt.UTC) + dt.timedelta(seconds=seconds))


@pytest.mark.parametrize(("value", "least", "most"), [
    ("30", 30, 30), (30, 30, 30), ("3600", 60, 60), ("0", 0, 1), ("-5", 0, 1), ("soon", 0, 1),
    ("nan", 0, 1), (None, 0, 1),
])  # fmt: skip
def test_retry_after_is_heard_and_bounded(value, least, most):
    (wait,) = waits_of(Refused(429, headers={"Retry-After": value}), cap=60.0)
    assert least <= wait <= most


@pytest.mark.parametrize(("seconds", "least", "most"), [(58, 30, 58), (3600, 60, 60), (-58, 0, 1)])
@pytest.mark.parametrize("zone", ["+0000", "-0000"])
def test_retry_after_may_be_a_date(seconds, least, most, zone):
    date = in_seconds(seconds).replace("+0000", zone)
    (wait,) = waits_of(Refused(429, headers={"Retry-After": date}), cap=60.0)
    assert least <= wait <= most


def test_retry_after_of_other_packages():
    assert waits_of(http_error(429, **{"Retry-After": "7"})) == [7]


# --------------------------------------------------------------------------------------- calls


class Service:
    """Fails as told, then answers."""

    def __init__(self, *failures: Exception) -> None:
        self.failures = list(failures)
        self.asked = 0

    def __call__(self) -> str:
        self.asked += 1
        if self.failures:
            raise self.failures.pop(0)
        return "rows"


@pytest.mark.parametrize("error", TRANSIENT, ids=lambda e: f"{type(e).__name__}-{str(e)[:12]}")
def test_asks_until_there_is_an_answer(error):
    waits, service = [], Service(error, error)
    assert attempt(mx.sources.Retry(sleep=waits.append), service, "the table x") == "rows"
    assert service.asked == 3
    assert 0.5 <= waits[0] <= 1 <= waits[1] <= 2


def test_gives_up_after_so_many_attempts():
    waits, service = [], Service(*[requests.ConnectionError("reset")] * 99)
    with pytest.raises(
        mx.errors.IncompleteDownloadError, match=r"the table x: ConnectionError: reset \(4 att"
    ):
        attempt(mx.sources.Retry(attempts=4, sleep=waits.append), service, "the table x")
    assert service.asked == 4
    assert len(waits) == 3
    with pytest.raises(mx.errors.IncompleteDownloadError):
        attempt(mx.sources.Retry(attempts=4, sleep=waits.append), service, "the table x", at_most=1)
    assert service.asked == 5


UNREACHABLE = [
    "Failed to resolve 'nowhere.invalid' ([Errno -2] Name or service not known)",
    "[Errno -3] Temporary failure in name resolution",
    "Failed to establish a new connection: [Errno 111] Connection refused",
    "Failed to establish a new connection: [Errno 101] Network is unreachable",
    'Could not connect to the endpoint URL: "https://nowhere.s3.amazonaws.com/"',
]


@pytest.mark.parametrize("text", UNREACHABLE, ids=lambda text: text[:25])
def test_a_server_that_never_answered_is_not_waited_for(text, caplog):
    waits, service = [], Service(*[requests.ConnectionError(text)] * 99)
    retry = mx.sources.Retry(sleep=waits.append)
    with pytest.raises(mx.errors.IncompleteDownloadError, match="the table x: the server cannot"):
        attempt(retry, service, "the table x")
    assert service.asked == 2
    assert sum(waits) <= 1
    assert not caplog.records  # the error is all that is said
    # One that answered may come back.
    attempt(retry, lambda: "rows", "the list of tables")
    with pytest.raises(mx.errors.IncompleteDownloadError, match=r"\(10 attempts\)"):
        attempt(retry, service, "the table x")


def test_a_download_that_had_begun_waits_for_the_network():
    unreachable = requests.ConnectionError(UNREACHABLE[0])
    service = Service(OSError("cut"), *[unreachable] * 8)
    assert attempt(mx.sources.Retry(sleep=lambda s: None), service, "the file") == "rows"


@pytest.mark.parametrize("error", [Refused(410, "gone"), http_error(410), CodeError(410)])
def test_a_refusal_raises_at_once_with_what_to_do(error):
    service = Service(error)
    with pytest.raises(
        mx.errors.SourceError, match=r"the table x: .*410.*: look in the archive"
    ) as caught:
        attempt(
            mx.sources.Retry(sleep=pytest.fail),
            service,
            "the table x",
            advice={410: "look in the archive"},
        )
    assert service.asked == 1
    assert not isinstance(caught.value, mx.errors.IncompleteDownloadError)


@pytest.mark.parametrize("error", [
    mx.errors.SchemaError("ids are floats"), mx.errors.SourceError("said"), TypeError("a mistake"), KeyError("x"),
    FileNotFoundError(errno.ENOENT, "no file"), OSError(errno.ENOSPC, "full"),
])  # fmt: skip
def test_what_is_no_matter_of_the_network_is_raised_as_it_is(error):
    with pytest.raises(type(error)) as caught:
        attempt(mx.sources.Retry(sleep=pytest.fail), Service(error), "the table x")
    assert caught.value is error


def test_an_address_without_sense_is_the_source_s_error():
    with pytest.raises(mx.errors.SourceError, match="MissingSchema"):
        attempt(
            mx.sources.Retry(sleep=pytest.fail),
            Service(requests.exceptions.MissingSchema("x")),
            "the table x",
        )


def test_an_interrupt_goes_through():
    with pytest.raises(KeyboardInterrupt):
        attempt(mx.sources.Retry(sleep=pytest.fail), Service(KeyboardInterrupt()), "the table x")


@pytest.mark.parametrize("status", [401, 503])
def test_secrets_are_cleaned_and_frames_are_left_behind(status, caplog):
    def ask() -> None:
        token = "deadbeef01"
        raise Refused(status, f"token {token} is wrong")

    caplog.set_level(logging.DEBUG)
    with pytest.raises(mx.errors.SourceError) as caught:
        attempt(
            mx.sources.Retry(attempts=2, sleep=lambda s: None),
            ask,
            "the table x",
            clean=lambda text: text.replace("deadbeef01", "<token>"),
        )
    shown = traceback.TracebackException.from_exception(caught.value, capture_locals=True)
    assert "deadbeef01" not in "".join(shown.format())
    assert "token <token> is wrong" in str(caught.value)
    assert caught.value.__context__ is None
    assert "deadbeef01" not in caplog.text
    assert len(caplog.records) == (1 if status == 503 else 0)


def test_every_new_attempt_is_logged_with_its_wait(caplog):
    attempt(
        mx.sources.Retry(attempts=5, sleep=lambda s: None),
        Service(Refused(503, "busy"), Refused(503, "busy")),
        "the table x",
    )
    assert [record.levelname for record in caplog.records] == ["WARNING", "WARNING"]
    assert "the table x: HTTP 503: busy; retrying in" in caplog.text
    assert "(attempt 3 of 5)" in caplog.text


def test_attempts_that_make_progress_do_not_count():
    waits, service = [], Service(*[OSError("cut")] * 7)
    progress = [True, True, False, True, True, False, True]
    retry = mx.sources.Retry(attempts=2, sleep=waits.append)
    assert attempt(retry, service, "the file", progressed=lambda: progress.pop(0)) == "rows"
    assert all(wait <= 1 for wait in waits)
    with pytest.raises(mx.errors.IncompleteDownloadError, match="2 attempts"):
        attempt(retry, Service(*[OSError("cut")] * 7), "the file")


@pytest.mark.parametrize(
    "wrong", [{"attempts": 0}, {"attempts": 2.5}, {"attempts": "3"}, {"base": "1"}, {"cap": None}]
)
def test_what_is_no_retry(wrong):
    with pytest.raises(mx.errors.SchemaError, match=f"{next(iter(wrong))} is"):
        mx.sources.Retry(**wrong)
    for source in (mx.sources.ArchiveSource, mx.sources.CaveSource):
        with pytest.raises(mx.errors.SchemaError, match=r"expected mx\.sources\.Retry"):
            source(1507, retry=5)
