"""The fields of a request to a site: the server's version, then which fields there are, their types and ranges."""

from __future__ import annotations

import re
from typing import get_args
from urllib.parse import quote

import fedprompt
from fedprompt.deploy.site_policy import RefusedError
from fedprompt.runtimes.payload import (
    CONSISTENCY_CHECK,
    EVALUATE,
    HELLO,
    MALFORMED,
    MASKED_INPUT,
    MESSAGE,
    SECURE,
    TRAIN,
    UNMASK,
    VALIDATE,
    VERSION,
    Fields,
    Payload,
)
from fedprompt.runtimes.tensor_codec import Upload

# The fields of every request, and the further ones by kind of request.
NEEDED = ("recipe", "run", "trial", "client", "serial")
FURTHER: dict[str, tuple[str, ...]] = {HELLO: (), TRAIN: ("round", "since", "upload")}
FURTHER |= dict.fromkeys((EVALUATE, VALIDATE), ("since",))
FURTHER |= dict.fromkeys(SECURE, ("round", "since", "members", "nonce"))
FURTHER |= dict.fromkeys((MASKED_INPUT, CONSISTENCY_CHECK, UNMASK), (*FURTHER[SECURE[0]], MESSAGE))
TEXTS = ("recipe", "run", "trial", "nonce", MESSAGE)
LONGEST_TRIAL = 200  # characters of a trial's name, quoted as in the names of files
NUMBER = re.compile(r"[0-9A-Za-z.+-]{1,30}")  # a version


def check_fields(request: Payload) -> None:
    """Raise RefusedError for a request of another version, an unknown kind, or with a field that cannot be meant.

    Numbers of messages, rounds and clients have rules of their own, which check their types too.
    """
    fields = request.fields
    if request.kind == MALFORMED:  # it could not be read, so its version is not known
        raise RefusedError("the message is malformed.", rule="request")
    _check_version(fields)
    if request.kind not in FURTHER:
        raise RefusedError("the request is of an unknown kind.", rule="request")
    needed = (*NEEDED, *FURTHER[request.kind])
    if missing := [name for name in needed if name not in fields]:
        raise RefusedError(f"the request lacks {', '.join(missing)}.", rule="request")
    for name in needed:
        if name in TEXTS and not isinstance(fields[name], str):
            raise RefusedError(f"the request's {name} is not a text.", rule="request")
    if len(quote(fields["trial"], safe="")) > LONGEST_TRIAL:
        raise RefusedError("the request's trial has too long a name.", rule="request")
    if "upload" in needed and fields["upload"] not in get_args(Upload):
        raise RefusedError(f"the request's upload is none of {', '.join(get_args(Upload))}.", rule="request")


def check_since(fields: Fields, *, rounds: int) -> None:
    """Raise RefusedError unless the round after which a client's personal state counts is one of the job's, or 0."""
    since = fields.get("since", 0)
    if type(since) is not int or not 0 <= since <= rounds:
        raise RefusedError(f"the request's since is not a round from 0 to {rounds}.", rule="request")


def _check_version(fields: Fields) -> None:
    """Raise RefusedError unless the server has this version: others may know other keys, methods and fields."""
    theirs, ours = fields.get(VERSION), fedprompt.__version__
    if theirs != ours:
        shown = theirs if isinstance(theirs, str) and NUMBER.fullmatch(theirs) else "an unknown version"
        raise RefusedError(
            f"the server has fedprompt {shown}, and this site has {ours}; install the same version at both.",
            rule="version",
        )
