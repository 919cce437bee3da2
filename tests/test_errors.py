from __future__ import annotations

import json
import pickle
import re

import pytest
from pydantic import BaseModel, Field, ValidationError, field_validator

from deployments import errors
from deployments.errors import (
    GenerationTimeout,
    InvalidInput,
    InvalidParameter,
    LimitReached,
    ModelError,
    PlatformError,
    QueueFull,
    ServingError,
    StorageUnavailable,
    Unavailable,
)
from deployments.gateway.platform import error_response as platform_response
from deployments.gateway.wire import error_response

ABSTRACT = (ServingError, PlatformError, ModelError)
TREE = errors.__doc__.split("\n\n")[1]


def subclasses(cls: type[ServingError]) -> list[type[ServingError]]:
    return [cls, *(deeper for child in cls.__subclasses__() for deeper in subclasses(child))]


CLASSES = [cls for cls in subclasses(ServingError) if cls.__module__ == errors.__name__]
CONCRETE = [cls for cls in CLASSES if cls not in ABSTRACT]


class Example(BaseModel):
    number: int = Field(ge=1)
    word: str = ""

    @field_validator("word")
    @classmethod
    def refuse(cls, word: str) -> str:
        raise ValueError("not this word")


def example(cls: type[ServingError]) -> ServingError:
    """An instance with everything that it can hold."""
    if issubclass(cls, InvalidInput):
        with pytest.raises(ValidationError) as caught:
            Example.model_validate({"number": 0, "word": "x"})
        return cls(caught.value.errors())
    if issubclass(cls, ModelError):
        return cls("It went wrong", ("body", "image_url"), {"max_size": 5})
    return cls("It went wrong")


def documented() -> dict[str, tuple[int, str | None, bool]]:
    """Name → (depth, status, retried) from the tree in the module's docstring."""
    found = {}
    for line in TREE.splitlines():
        match = re.match(r"(\W*)(\w+)\s*(\d{3})?(.*)", line)
        assert match, line
        indent, name, status, rest = match.groups()
        found[name] = (len(indent) // 4, status, "another attempt" in rest)
    return found


def test_the_tree_lists_exactly_the_classes_there_are() -> None:
    assert sorted(documented()) == sorted(cls.__name__ for cls in CLASSES)


@pytest.mark.parametrize("cls", CONCRETE)
def test_the_tree_tells_the_status_of_each(cls: type[ServingError]) -> None:
    depth, status, retried = documented()[cls.__name__]

    assert status == str(cls.status)
    assert retried == cls.retryable
    assert depth == documented()["ServingError"][0] + len(cls.__mro__) - len(ServingError.__mro__)


@pytest.mark.parametrize("cls", CONCRETE)
def test_an_error_survives_the_way_between_processes(cls: type[ServingError]) -> None:
    error = example(cls)
    copy = pickle.loads(pickle.dumps(error))

    assert type(copy) is cls
    assert copy.failure() == error.failure()
    assert copy.args == error.args or isinstance(
        error, InvalidInput
    )  # which holds an exception, and those are never equal


@pytest.mark.parametrize("cls", CONCRETE)
def test_a_failure_says_what_its_error_says(cls: type[ServingError]) -> None:
    error = example(cls)
    failure = pickle.loads(pickle.dumps(error.failure()))

    assert (failure.status, failure.type, failure.retryable) == (cls.status, cls.type, cls.retryable)
    assert failure.body == error.body()
    assert failure.message == error.message
    assert failure.message


@pytest.mark.parametrize("cls", [cls for cls in CONCRETE if issubclass(cls, PlatformError)])
def test_a_platform_error_is_a_string_and_a_type(cls: type[ServingError]) -> None:
    assert example(cls).body() == {"detail": "It went wrong", "error_type": cls.type}


@pytest.mark.parametrize(
    "cls", [cls for cls in CONCRETE if issubclass(cls, ModelError) and not issubclass(cls, InvalidInput)]
)
def test_a_model_error_is_fals_list_of_details(cls: type[ServingError]) -> None:
    assert cls.status == (504 if cls is GenerationTimeout else 422)
    assert example(cls).body() == {
        "detail": [
            {
                "loc": ["body", "image_url"],
                "msg": "It went wrong",
                "type": cls.type,
                "url": f"https://docs.fal.ai/errors#{cls.type}",
                "ctx": {"max_size": 5},
            }
        ]
    }


LIMITS = [cls for cls in CONCRETE if issubclass(cls, LimitReached)]


@pytest.mark.parametrize("cls", LIMITS)
def test_a_limit_says_when_to_come_again_also_to_another_process(cls: type[LimitReached]) -> None:
    copy = pickle.loads(pickle.dumps(cls("Enough", 86399.2)))
    assert (copy.retry_after, copy.message) == (86399.2, "Enough")
    assert (error_response(copy).status_code, error_response(copy).headers["retry-after"]) == (429, "86400")
    assert platform_response(copy, "docs").headers["retry-after"] == "86400"


def test_no_two_limits_have_one_type() -> None:
    """But for the family, which is as good as its first member."""
    types = [cls.type for cls in LIMITS if cls is not LimitReached]
    assert len(set(types)) == len(types) == 5


@pytest.mark.parametrize("seconds", [0.0, 0.001, 1.0])
def test_nobody_is_told_to_come_again_at_once(seconds: float) -> None:
    assert error_response(QueueFull("Full", seconds)).headers["retry-after"] == "1"


@pytest.mark.parametrize("cls", CONCRETE)
def test_only_what_passes_says_when_to_come_again(cls: type[ServingError]) -> None:
    passes = issubclass(cls, LimitReached | Unavailable | StorageUnavailable)
    for answer in (error_response(example(cls)), platform_response(example(cls), "docs")):
        assert ("retry-after" in answer.headers) is passes


def test_no_two_model_errors_have_one_type() -> None:
    types = [cls.type for cls in CONCRETE if issubclass(cls, ModelError) and cls is not InvalidParameter]

    assert len(set(types)) == len(types)


def test_an_invalid_input_tells_every_error_in_json() -> None:
    body = json.loads(json.dumps(example(InvalidInput).body()))

    number, word = body["detail"]
    assert (number["loc"], number["type"], number["ctx"]) == (["body", "number"], "greater_than_equal", {"ge": 1})
    assert (word["loc"], word["type"]) == (["body", "word"], "value_error")
    assert "not this word" in word["msg"]
    assert example(InvalidInput).message.startswith("number: ")


@pytest.mark.parametrize(
    ("value", "echoed"),
    [
        ("https://example.com/cat.png?to=me@example.com", True),
        ("https://user:swordfish@example.com/cat.png", False),
        ("//swordfish@example.com", False),
        ({"mask_image_url": "https://user:swordfish@example.com/cat.png"}, False),
    ],
)
def test_a_password_is_not_echoed(value: object, echoed: bool) -> None:
    error = {"loc": ("image_url",), "msg": "Field required", "type": "missing", "input": value}

    (detail,) = InvalidInput([error]).body()["detail"]
    assert ("input" in detail) is echoed
    assert "swordfish" not in json.dumps(detail)


@pytest.mark.parametrize(("length", "echoed"), [(1000, True), (2000, False)])
def test_a_long_value_is_not_echoed(length: int, echoed: bool) -> None:
    error = {"loc": ("prompt",), "msg": "wrong", "type": "value_error", "input": "x" * length}
    [detail] = errors.InvalidInput([error]).body()["detail"]

    assert ("input" in detail) is echoed
