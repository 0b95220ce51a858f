import grpc
import pytest

from wire import errors
from wire.errors import Busy, EcdiffError, InvalidRequest, NotServing, from_status, to_status


def tree(cls):
    return [cls, *(child for sub in cls.__subclasses__() for child in tree(sub))]


CLASSES = [cls for cls in tree(EcdiffError) if cls is not EcdiffError]


@pytest.mark.parametrize("cls", CLASSES)
def test_every_class_survives_the_journey(cls):
    code, details, metadata = to_status(cls("the height 65 is no multiple of 8"))
    error = from_status(code, details, metadata)
    assert type(error) is cls
    assert str(error) == "the height 65 is no multiple of 8"


@pytest.mark.parametrize("cls", CLASSES)
def test_the_docstring_table_is_the_truth(cls):
    (line,) = (line for line in errors.__doc__.splitlines() if f"── {cls.__name__} " in line)
    assert line.endswith(f" {cls.status.name}")


def test_busy_carries_when_to_come_back():
    code, details, metadata = to_status(Busy("16 sessions, all places taken", retry_after_seconds=0.25))
    assert code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert ("ecdiff-retry-after-ms", "250") in metadata
    assert from_status(code, details, metadata).retry_after_seconds == 0.25


@pytest.mark.parametrize("value", ["", "soon", "-1", "²", "1e9", "9" * 5000, " 5"])
def test_nonsense_in_retry_after_is_one_second(value):
    metadata = (("ecdiff-error", "Busy"), ("ecdiff-retry-after-ms", value))
    assert from_status(grpc.StatusCode.RESOURCE_EXHAUSTED, "full", metadata).retry_after_seconds == 1.0


def test_a_status_without_a_name_is_read_by_its_code():
    assert type(from_status(grpc.StatusCode.UNAVAILABLE, "connection refused", None)) is NotServing
    assert type(from_status(grpc.StatusCode.INVALID_ARGUMENT, "", ())) is InvalidRequest
    assert type(from_status(grpc.StatusCode.UNKNOWN, None, (("ecdiff-error", "SystemExit"),))) is EcdiffError
    assert str(from_status(grpc.StatusCode.UNKNOWN, None, None)) == "unknown"


@pytest.mark.parametrize("char", ["\x1b", "\x07", "\x9b", "\x00", "\u202e", "\ud800"])
def test_what_a_terminal_would_act_on_is_dropped_from_remote_text(char):
    assert str(from_status(grpc.StatusCode.INTERNAL, f"a{char}[31mb", None)) == "a[31mb"
    assert str(from_status(grpc.StatusCode.INTERNAL, char, None)) == "internal"


def test_remote_text_is_cut_at_500_characters():
    assert str(from_status(grpc.StatusCode.INTERNAL, "é" * 10_000, None)) == "é" * 500


def test_details_become_one_line():
    assert str(from_status(grpc.StatusCode.INTERNAL, "first\nsecond", None)) == "first"
