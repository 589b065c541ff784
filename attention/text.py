"""The text form of patterns, for the command line and YAML: ``causal(window(256) | sinks(4))``.

Grammar, loosest first::

    union        = intersection { "|" intersection }
    intersection = atom { "&" atom }
    atom         = "(" union ")" | "causal" "(" union ")" | family [ "(" [ integer { "," integer } ] ")" ]
    family       = "dense" | "window" | "sinks" | "global"
"""

from __future__ import annotations

import re
from collections.abc import Callable

from attention.patterns import Dense, GlobalTokens, LocalWindow, Pattern, Sinks
from crossbar.errors import InputError

_FAMILIES: dict[str, tuple[int | None, Callable[..., Pattern]]] = {  # number of integers (None: any) and what they make
    Dense.name: (0, Dense),
    LocalWindow.name: (1, LocalWindow),
    Sinks.name: (1, Sinks),
    GlobalTokens.name: (None, lambda *tokens: GlobalTokens(tokens)),
}
_ALLOWED = "dense, window(64), sinks(4), global(0, 5), causal(...), | and &"
_TOKEN = re.compile(r"\s*(?:(?P<integer>-?[0-9]+)|(?P<word>[A-Za-z_]\w*)|(?P<sign>[|&(),]))")
_DEEPEST = 50


def parse(text: str) -> Pattern:
    """The pattern that a text describes; ``parse(str(pattern)) == pattern``.

    Raises:
        InputError: for a text outside the grammar, naming the place, and for parameters that a family refuses.

    >>> parse("causal(window(9) | sinks(4))") == (LocalWindow(9) | Sinks(4)).causal()
    True
    >>> str(parse("(window(8)|dense)&sinks( 2 )"))
    '(window(8) | dense) & sinks(2)'
    """
    if not isinstance(text, str):
        raise InputError(f"pattern {text!r} is not a text: write one made of {_ALLOWED}")
    return _Parser(text).whole()


class _Parser:
    def __init__(self, text: str) -> None:
        self._text = text
        self._tokens: list[tuple[int, str]] = []  # (where it starts, the token), with an empty token at the end
        self._next = 0
        self._depth = 0
        place, end = 0, len(text.rstrip())
        while place < end:
            match = _TOKEN.match(text, place, end)
            if match is None:
                place += len(text[place:]) - len(text[place:].lstrip())
                raise self._error(place, f"{text[place]!r} has no meaning here")
            self._tokens.append((match.start(match.lastgroup or 0), match[match.lastgroup or 0]))
            place = match.end()
        self._tokens.append((end, ""))

    def whole(self) -> Pattern:
        pattern = self._union()
        if self._peek():
            raise self._unexpected("'|', '&' or the end")
        return pattern

    def _union(self) -> Pattern:
        pattern = self._intersection()
        while self._accept("|"):
            pattern = pattern | self._intersection()
        return pattern

    def _intersection(self) -> Pattern:
        pattern = self._atom()
        while self._accept("&"):
            pattern = pattern & self._atom()
        return pattern

    def _atom(self) -> Pattern:
        word = self._peek()
        if word == "(":
            return self._parenthesised()
        if word == "causal":
            self._next += 1
            return self._parenthesised().causal()
        if word not in _FAMILIES:
            raise self._unexpected("a pattern")
        place = self._place()
        self._next += 1
        values = self._arguments() if self._peek() == "(" else []
        wanted, make = _FAMILIES[word]
        if wanted is not None and len(values) != wanted:
            raise self._error(place, f"{word} takes {wanted} integer{'' if wanted == 1 else 's'}, not {len(values)}")
        return make(*values)

    def _parenthesised(self) -> Pattern:
        self._expect("(")
        self._depth += 1
        if self._depth > _DEEPEST:
            raise self._error(self._place(), f"more than {_DEEPEST} parentheses are open")
        pattern = self._union()
        self._depth -= 1
        self._expect(")")
        return pattern

    def _arguments(self) -> list[int]:
        self._expect("(")
        values: list[int] = []
        while not self._accept(")"):
            if values:
                self._expect(",")
            if not re.fullmatch(r"-?[0-9]{1,18}", self._peek()):
                raise self._unexpected("an integer")
            values.append(int(self._peek()))
            self._next += 1
        return values

    def _peek(self) -> str:
        return self._tokens[self._next][1]

    def _place(self) -> int:
        return self._tokens[self._next][0]

    def _accept(self, sign: str) -> bool:
        found = self._peek() == sign
        self._next += found
        return found

    def _expect(self, sign: str) -> None:
        if not self._accept(sign):
            raise self._unexpected(repr(sign))

    def _unexpected(self, wanted: str) -> InputError:
        found = repr(self._peek()) if self._peek() else "the end"
        return self._error(self._place(), f"{wanted} is wanted where {found} stands")

    def _error(self, place: int, problem: str) -> InputError:
        return InputError(
            f"pattern {self._text!r} is not understood at character {place + 1}: {problem}; "
            f"write a text made of {_ALLOWED}, such as 'causal(window(256) | sinks(4))'"
        )
