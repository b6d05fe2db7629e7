"""What POST .../messages takes, and how messages are shown: text and JSON values as `data`, bytes as `data64`."""

import base64
import json
from dataclasses import dataclass
from typing import Annotated, Any

import msgspec
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, JsonValue

from netd.errors import ControlError
from netd.hub.history import Publication
from netd.net.rest import RequestBody
from netd.wire.messages import Data

_BASE64 = r"^([A-Za-z0-9+/]{4})*([A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}=)?$"


_LARGEST = 2**63
"""Integers from here on are floating point, which is all that RFC 8259 section 6 promises of them."""


def _whole(value: Any) -> Any:
    """1.0 is an integer to JSON Schema."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


class MessageBody(RequestBody):
    """A message. Exactly one of `data` (text, or any JSON value) and `data64` (bytes, in base64) has to be there."""

    model_config = ConfigDict(json_schema_extra={"oneOf": [{"required": ["data"]}, {"required": ["data64"]}]})

    data: JsonValue = None
    data64: Annotated[str, Field(pattern=_BASE64)] = ""
    priority: Annotated[int, Field(ge=0, le=255), BeforeValidator(_whole)] = 128
    """Lower goes first."""
    ephemeral: bool = False
    """It may be dropped for a slow consumer, and no history keeps it."""

    def content(self) -> Data:
        """What the hub is to send. Raises ControlError."""
        given = self.model_fields_set & {"data", "data64"}
        if len(given) != 1:
            raise ControlError("cannot send this message: give either data or data64", path="data")
        if "data64" in given:
            return base64.b64decode(self.data64)
        try:
            return _reachable(self.data)
        except (RecursionError, OverflowError):
            raise ControlError(
                "cannot send this message: its data is too deep, or a number too large", path="data"
            ) from None


def _reachable(data: JsonValue) -> JsonValue:
    """`data` with numbers that every format of ours can say."""
    match data:
        case bool():
            return data
        case int():
            return data if -_LARGEST <= data < 2 * _LARGEST else float(data)
        case list():
            return [_reachable(one) for one in data]
        case dict():
            return {key: _reachable(one) for key, one in data.items()}
    return data


@dataclass(frozen=True)
class Delivered:
    """How many sessions it has reached so far, left out where it is still under way through the backplane. `remark`, if
    there is one: what the sender may not expect."""

    delivered: int | None = None
    remark: str | None = None


class MessageView(BaseModel):
    """A message of a channel. `from` is a session's id, null for the server side; where `data64` is not null the
    message is bytes. `time` is in seconds since the epoch."""

    model_config = ConfigDict(populate_by_name=True)

    sender: str | None = Field(alias="from")
    data: Any = None
    data64: str | None = None
    offset: int | None = None
    epoch: str | None = None
    time: float | None = None


def message_view(publication: Publication) -> MessageView:
    return MessageView(
        sender=publication.sender,
        offset=publication.offset,
        epoch=publication.epoch,
        time=publication.time or None,
        **shown(publication.data),
    )


def shown(data: Data) -> dict[str, Any]:
    """`data` or `data64`, as JSON has it. A value of MessagePack that JSON has no word for becomes one that it has."""
    if isinstance(data, bytes):
        return {"data64": base64.b64encode(data).decode("ascii")}
    if isinstance(data, str):
        return {"data": data}
    try:
        return {"data": json.loads(msgspec.json.encode(data))}
    except (msgspec.MsgspecError, TypeError, ValueError, OverflowError, RecursionError):
        return {"data": repr(data)[:1000]}
