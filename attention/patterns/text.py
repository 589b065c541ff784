"""The text form of patterns, for the command line and YAML: ``causal(window(256) | sinks(4))``.

Grammar, loosest first::

    union        = intersection { "|" intersection }
    intersection = atom { "&" atom }
    atom         = "(" union ")" | "causal" "(" union ")" | "heads" "(" union { "," union } ")"
                 | family [ "(" [ argument { "," argument } ] ")" ]
    family       = "dense" | "window" | "dilated" | "strided" | ...
    argument     = integer, decimal or word that the family knows | option "=" one of these

Patterns made of tensors or functions (layouts, documents, padding, lists of sequences, mask functions, selections) have
no text; `str` describes them in ``<>``.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from difflib import get_close_matches
from types import MappingProxyType
from typing import NamedTuple

from attention.patterns.base import Pattern
from attention.patterns.block_patterns import BigBird, RandomBlocks
from attention.patterns.heads import PerHead
from attention.patterns.hierarchical import Hierarchical
from attention.patterns.routing import Routing
from attention.patterns.screening import Screened, Spiking
from attention.patterns.selection import BlockTopK, TopK
from attention.patterns.strides import Fixed, Strided
from attention.patterns.tokens import Dense, GlobalTokens, Sinks
from attention.patterns.windows import Dilated, LocalWindow, Neighborhood
from crossbar.errors import InputError, shown


class _Form(NamedTuple):
    """How a family is written.

    Attributes:
        make: what makes it.
        least, most: how many arguments without a name it takes; ``most`` None: any number.
        words: what the last of these may be.
        decimals: whether they may be decimals.
        options: arguments with a name that come after, and what each may be: ``int``, ``float`` or one of some words.
    """

    make: Callable[..., Pattern]
    least: int
    most: int | None
    words: tuple[str, ...] = ()
    decimals: bool = False
    options: Mapping[str, type[int] | type[float] | tuple[str, ...]] = MappingProxyType({})


_GRADIENTS = ("chosen", "straight")


_FAMILIES: dict[str, _Form] = {
    Dense.name: _Form(Dense, 0, 0),
    LocalWindow.name: _Form(LocalWindow, 1, 1),
    Dilated.name: _Form(Dilated, 2, 2),
    Strided.name: _Form(Strided, 1, 2, ("both", "local", "stride")),
    Fixed.name: _Form(Fixed, 2, 3),
    GlobalTokens.name: _Form(lambda *tokens: GlobalTokens(tokens), 0, None),
    Sinks.name: _Form(Sinks, 1, 1),
    RandomBlocks.name: _Form(RandomBlocks, 2, 3),
    BigBird.name: _Form(BigBird, 2, 3),
    Neighborhood.name: _Form(Neighborhood, 1, 2),
    TopK.name: _Form(TopK, 1, 2, _GRADIENTS),
    BlockTopK.name: _Form(BlockTopK, 2, 2),
    Routing.name: _Form(Routing, 2, 3),
    Hierarchical.name: _Form(Hierarchical, 2, 2),
    Screened.name: _Form(
        Screened, 1, 1, options={"bits": int, "per": ("query", "tile"), "gradient": _GRADIENTS, "mismatch": float}
    ),
    Spiking.name: _Form(
        lambda *threshold, **options: Spiking(threshold, **options),
        1,
        None,
        decimals=True,
        options={"bits": int, "beta": float, "gradient": _GRADIENTS, "mismatch": float},
    ),
}
_ALLOWED = (
    "dense, window(64), sinks(4), global(0, 5), dilated(256, 4), strided(64), fixed(128, 8), random(3, 64, 0), "
    "bigbird(64, 3), neighborhood(7), topk(32), blocktopk(64, 8), routing(8, 64), "
    "hierarchical(32, 4), screened(64, bits=4), spiking(1.5), causal(...), heads(..., ...), | and &"
)
_NUMBER = r"-?[0-9]+(?:\.[0-9]+)?(?:e[+-]?[0-9]+)?"
_TOKEN = re.compile(rf"\s*(?:(?P<number>{_NUMBER})|(?P<word>[A-Za-z_]\w*)|(?P<sign>[|&(),=]))")
_DEEPEST = 50
_LONGEST = 10_000  # characters
_DIGITS = 18


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
        raise InputError(f"pattern {shown(text)} is not a text: write one made of {_ALLOWED}")
    return _Parser(text).whole()


class _Parser:
    def __init__(self, text: str) -> None:
        if len(text) > _LONGEST:
            raise InputError(f"pattern {shown(text)} has {len(text):,} characters: give at most {_LONGEST:,}")
        self._text = text
        self._tokens: list[tuple[int, str]] = []  # (where it starts, the token), with an empty token at the end
        self._next = 0
        self._depth = 0
        place, end = 0, len(text.rstrip())
        while place < end:
            match = _TOKEN.match(text, place, end)
            if match is None:
                place += len(text[place:]) - len(text[place:].lstrip())
                if text[place] == "<":
                    raise self._error(place, "a pattern made of tensors or functions has no text: build it in Python")
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
        if word == "heads":
            return self._heads()
        if word not in _FAMILIES:
            raise self._unexpected("a pattern", get_close_matches(word, [*_FAMILIES, "causal", "heads"], 1))
        place, form = self._place(), _FAMILIES[word]
        self._next += 1
        values, options = self._arguments(form) if self._peek() == "(" else ([], {})
        if len(values) < form.least or (form.most is not None and len(values) > form.most):
            wanted = f"{form.least}" if form.least == form.most else f"{form.least} or {form.most}"
            wanted = f"{form.least} or more" if form.most is None else wanted
            kind = "number" if form.decimals else "integer"
            raise self._error(place, f"{word} takes {wanted} {kind}{'' if wanted == '1' else 's'}, not {len(values)}")
        return form.make(*values, **options)

    def _heads(self) -> Pattern:
        self._next += 1
        self._open()
        parts = [self._union()]
        while self._accept(","):
            parts.append(self._union())
        self._close()
        return PerHead(parts)

    def _parenthesised(self) -> Pattern:
        self._open()
        pattern = self._union()
        self._close()
        return pattern

    def _open(self) -> None:
        self._expect("(")
        self._depth += 1
        if self._depth > _DEEPEST:
            raise self._error(self._place(), f"more than {_DEEPEST} parentheses are open")

    def _close(self) -> None:
        self._depth -= 1
        self._expect(")")

    def _arguments(self, form: _Form) -> tuple[list[int | float | str], dict[str, int | float | str]]:
        self._expect("(")
        values: list[int | float | str] = []
        options: dict[str, int | float | str] = {}
        while not self._accept(")"):
            if (values or options) and not self._accept(","):
                more = form.options or form.most is None or len(values) < form.most
                raise self._unexpected("',' or ')'" if more else "')'")
            name = self._peek()
            if name in form.options and name not in options:
                self._next += 1
                self._expect("=")
                kind = form.options[name]
                options[name] = self._value(kind if isinstance(kind, tuple) else (), kind is float)
            elif options or (form.options and len(values) >= form.least and self._peek()[:1].isalpha()):
                left = [option for option in form.options if option not in options]
                raise self._unexpected(f"one of {', '.join(left)}" if left else "')'")
            else:
                words = form.words if len(values) + 1 == form.most else ()
                values.append(self._value(words, form.decimals))
        return values, options

    def _value(self, words: tuple[str, ...], decimal: bool) -> int | float | str:
        """The next argument: one of some words, or, where there are none, a number."""
        text = self._peek()
        if words:
            if text not in words:
                raise self._unexpected(f"one of {', '.join(words)}")
        elif re.fullmatch(r"-?[0-9]+", text):
            if len(text) > _DIGITS:
                raise self._error(self._place(), f"an integer has more than {_DIGITS} digits")
        elif not (decimal and re.fullmatch(_NUMBER, text)):
            raise self._unexpected("a number" if decimal else "an integer")
        self._next += 1
        return text if words else float(text) if decimal else int(text)

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

    def _unexpected(self, wanted: str, meant: list[str] | None = None) -> InputError:
        found = shown(self._peek()) if self._peek() else "the end"
        guess = f" (did you mean {meant[0]!r}?)" if meant else ""
        return self._error(self._place(), f"{wanted} is wanted where {found} stands{guess}")

    def _error(self, place: int, problem: str) -> InputError:
        return InputError(
            f"pattern {shown(self._text, 1000)} is not understood at character {place + 1}: {problem}; "
            f"write a text made of {_ALLOWED}, such as 'causal(window(256) | sinks(4))'"
        )
