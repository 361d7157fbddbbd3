"""Parse a model's answer: a list of strings from JSON, truncated JSON or a bulleted list, stripped of markup.

Nothing in an answer is executed, followed or trusted: text goes in, short plain strings come out.
"""

from __future__ import annotations

import html
import json
import re
from collections.abc import Iterator, Sequence

from fedprompt.data.labels import readable_name
from fedprompt.text_files import json_text

LONGEST_ANSWER = 50_000  # characters that are parsed
MOST_STRINGS = 500
MOST_TRIES = 50  # positions at which JSON may begin, so that thousands of brackets do not take forever
LONGEST_NAME = 100  # characters of a class name in a request
_THOUGHT = re.compile(r"<think>.*?(?:</think>|\Z)", re.DOTALL)
_BRACKET = re.compile(r"[{\[]")
_STRING = re.compile(r'"((?:[^"\\\n]|\\.){1,400})"')
_BULLET = re.compile(r"^\s*(?:[-*\u2022\u2013]|\d{1,3}[.):]|\([0-9a-z]\))\s*")
_TAG = re.compile(r"<[^<>]{0,200}>")
_LINK = re.compile(r"\]\([^()]{0,100}(?:\([^()]{0,100}\))?[^()]{0,100}\)|\b(?:https?://|www\.)\S+")
_MARK = re.compile(r"[*_`#~|\[\]{}<>\\]+")
_HIDDEN = re.compile("[\x00-\x1f\x7f-\x9f\u200b-\u200f\u202a-\u202e\u2060-\u2069\ufeff]+")
_REFUSAL = re.compile(
    r"\b(?:sorry|apologi[sz]e|as an ai|language model|(?:can(?:no|')t|unable to|not able to) "
    r"(?:help|assist|provide|comply|answer|generate|fulfill|do that))\b"
)


def parse_list(text: str, key: str) -> list[str]:
    """The list in an answer: of valid JSON, else of truncated JSON, else of a bulleted or numbered list."""
    text = _THOUGHT.sub("", text[:LONGEST_ANSWER])
    for found in _objects(text):
        listed = _listed(found, key)
        if listed:
            return listed[:MOST_STRINGS]
    if f'"{key}"' in text:
        return _truncated_list(text.rpartition(f'"{key}"')[2])[:MOST_STRINGS]
    return [_BULLET.sub("", line) for line in text.splitlines() if _BULLET.match(line)][:MOST_STRINGS]


def _objects(text: str) -> Iterator[object]:
    """Every valid JSON object or list in a text, outermost first."""
    decoder, place = json.JSONDecoder(), 0
    for _ in range(MOST_TRIES):
        start = _BRACKET.search(text, place)
        if start is None:
            return
        try:
            found, place = decoder.raw_decode(text, start.start())
            yield found
        except (ValueError, RecursionError):
            place = start.end()


def _listed(found: object, key: str) -> list[str]:
    """The strings under the key; without the key, those of the only list."""
    if isinstance(found, dict):
        lists = [value for value in found.values() if isinstance(value, list)]
        found = found.get(key, lists[0] if len(lists) == 1 else [])
    if not isinstance(found, list):
        return []
    flat = [next(iter(item.values()), "") if isinstance(item, dict) else item for item in found]
    return [item for item in flat if isinstance(item, str)]


def _truncated_list(text: str) -> list[str]:
    """The complete strings of a list that is cut off."""
    inside = text.partition("[")[2].partition("]")[0]
    return [match[1].replace('\\"', '"') for match in _STRING.finditer(inside)]


def clean(text: str, longest: int) -> str:
    """One line of at most `longest` characters without markup, links, control characters or surrounding quotes.

    A longer text gives an empty string.
    """
    text = html.unescape(text[: 4 * longest + 200])
    text = _MARK.sub(" ", _LINK.sub(" ", _TAG.sub(" ", _HIDDEN.sub(" ", text))))
    text = " ".join(text.split()).strip(" \"'\u201c\u201d\u2018\u2019.,;:-")
    return text if len(text) <= longest else ""  # a truncated phrase is worse than none


def excerpt(text: str, longest: int) -> str:
    """The beginning of a text, cleaned, for messages."""
    return clean(text[:longest], longest)


def is_refusal(text: str) -> bool:
    """Whether a model's text declines to answer."""
    return bool(_REFUSAL.search(text[:2000].lower().replace("\u2019", "'")))


# Frequent short words of other languages that are not English words: two thirds of French or German phrases have one.
_FOREIGN = re.compile(
    r"\b(?:avec|des|les|une|est|dans|qui|du|aux|quatre|und|mit|der|das|ein|eine|ist|einen|einem|dem|aus|von|auf|vier"
    r"|el|los|las|una|del|para|por|muy|uno|cuatro|il|gli|della|delle|degli|dello|nel|che|quattro|uma|dois|duas|nao"
    r"|quatro|het|een)\b"
)


def is_foreign(text: str) -> bool:
    """Whether a phrase is not English, by its letters and short words; CLIP was trained on English captions."""
    letters = [letter for letter in text if letter.isalpha()]
    if sum(not letter.isascii() for letter in letters) > 0.2 * len(letters):
        return True
    return bool(_FOREIGN.search(text.lower()))


def line(name: str) -> str:
    """A class name on one line, truncated: it cannot begin a new turn or paragraph of a prompt."""
    return " ".join(_HIDDEN.sub(" ", readable_name(name)).split())[:LONGEST_NAME]


def quoted(names: Sequence[str]) -> str:
    """Names as JSON strings on one line: no content of a name can end the quotation or begin a new line."""
    return " and ".join(json_text(line(name), ascii_only=False) for name in names)
