import pytest
from hypothesis import given
from hypothesis import strategies as st

from attention import (
    BigBird,
    BlockTopK,
    Dense,
    Dilated,
    Fixed,
    GlobalTokens,
    Hierarchical,
    LocalWindow,
    Neighborhood,
    PerHead,
    RandomBlocks,
    Routing,
    Screened,
    Sinks,
    Spiking,
    Strided,
    TopK,
    parse,
)
from crossbar.errors import InputError


@pytest.mark.parametrize(
    ("text", "pattern"),
    [
        ("dense", Dense()),
        ("dense()", Dense()),
        (" window( 64 )|sinks(4) ", LocalWindow(64) | Sinks(4)),
        ("global(5, 0)", GlobalTokens((0, 5))),
        ("window(8) | sinks(4) & dense", LocalWindow(8) | (Sinks(4) & Dense())),
        ("(window(8) | sinks(4)) & dense", (LocalWindow(8) | Sinks(4)) & Dense()),
        ("causal(window(9) | sinks(4))", (LocalWindow(9) | Sinks(4)).causal()),
        ("causal(causal(dense))", Dense().causal()),
        ("causal(window(9)) | dense", LocalWindow(9).causal() | Dense()),
        ("dilated(256, 4)", Dilated(256, 4)),
        ("strided(64)", Strided(64)),
        ("strided(64, local)", Strided(64, part="local")),
        ("fixed(128, 8)", Fixed(128, 8)),
        ("fixed(128, 8, 2)", Fixed(128, 8, 2)),
        ("random(3, 64)", RandomBlocks(3, 64, 0)),
        ("random(3, 64, 7)", RandomBlocks(3, 64, 7)),
        ("bigbird(64, 3)", BigBird()),
        ("bigbird(32, 2, 7)", BigBird(32, 2, 7)),
        ("neighborhood(7)", Neighborhood(7)),
        ("neighborhood(7, 2)", Neighborhood(7, 2)),
        ("topk(32)", TopK(32)),
        ("topk(32, straight)", TopK(32, "straight")),
        ("routing(8, 64)", Routing(8, 64)),
        ("routing(8, 64, 3)", Routing(8, 64, 3)),
        ("hierarchical(32, 4)", Hierarchical(32, 4)),
        ("blocktopk(64, 8)", BlockTopK(64, 8)),
        ("screened(64)", Screened(64)),
        ("screened(64, bits=4) | sinks(4)", Screened(64, bits=4) | Sinks(4)),
        (
            "screened(8, per=tile, mismatch=0.02, gradient=straight)",
            Screened(8, per="tile", mismatch=0.02, gradient="straight"),
        ),
        ("spiking(2)", Spiking(2.0)),
        ("spiking(-1.5, 0, 2e-3, bits=6, beta=0.9)", Spiking((-1.5, 0.0, 0.002), bits=6, beta=0.9)),
        ("heads(dense, window(4) | sinks(1))", PerHead([Dense(), LocalWindow(4) | Sinks(1)])),
    ],
)
def test_texts(text, pattern):
    assert parse(text) == pattern


@pytest.mark.parametrize(
    ("text", "place", "problem"),
    [
        ("", 1, "a pattern is wanted where the end stands"),
        ("widow(64)", 1, "a pattern is wanted where 'widow' stands (did you mean 'window'?)"),
        ("window(4) | bigbrid(64, 3)", 13, "a pattern is wanted where 'bigbrid' stands (did you mean 'bigbird'?)"),
        ("qwertz", 1, "a pattern is wanted where 'qwertz' stands;"),
        ("dilated(256)", 1, "dilated takes 2 integers, not 1"),
        ("dense | strided", 9, "strided takes 1 or 2 integers, not 0"),
        ("bigbird(1, 2, 3, 4)", 1, "bigbird takes 2 or 3 integers, not 4"),
        ("strided(64, loca)", 13, "one of both, local, stride is wanted where 'loca' stands"),
        ("strided(64, 3)", 13, "one of both, local, stride is wanted where '3' stands"),
        ("strided(local)", 9, "an integer is wanted where 'local' stands"),
        ("heads()", 7, "a pattern is wanted where ')' stands"),
        ("heads(dense, window(4)", 23, "')' is wanted where the end stands"),
        ("dense & <layout of 4 x 4 blocks of 64>", 9, "a pattern made of tensors or functions has no text"),
        ("window(64) | ", 13, "a pattern is wanted where the end stands"),
        ("window(64) sinks(4)", 12, "'|', '&' or the end is wanted where 'sinks' stands"),
        ("window(64", 10, "')' is wanted where the end stands"),
        ("strided(64", 11, "',' or ')' is wanted where the end stands"),
        ("global(0, 5", 12, "',' or ')' is wanted where the end stands"),
        ("window(64, 3)", 1, "window takes 1 integer, not 2"),
        ("window(64 3)", 11, "')' is wanted where '3' stands"),
        ("window(4.5)", 8, "an integer is wanted where '4.5' stands"),
        ("screened(64, bits=4.5)", 19, "an integer is wanted where '4.5' stands"),
        ("screened(64, bit=4)", 14, "one of bits, per, gradient, mismatch is wanted where 'bit' stands"),
        ("screened(64, bits 4)", 19, "'=' is wanted where '4' stands"),
        ("screened(64, bits=4, bits=3)", 22, "one of per, gradient, mismatch is wanted where 'bits' stands"),
        ("screened(64, per=row)", 18, "one of query, tile is wanted where 'row' stands"),
        ("spiking()", 1, "spiking takes 1 or more numbers, not 0"),
        ("spiking(x)", 9, "a number is wanted where 'x' stands"),
        ("window(x)", 8, "an integer is wanted where 'x' stands"),
        ("window(999999999999999999999)", 8, "an integer has more than 18 digits"),
        ("window", 1, "window takes 1 integer, not 0"),
        ("dense | sinks(4, 5)", 9, "sinks takes 1 integer, not 2"),
        ("dense(1)", 1, "dense takes 0 integers, not 1"),
        ("causal dense", 8, "'(' is wanted where 'dense' stands"),
        ("(dense", 7, "')' is wanted where the end stands"),
        ("{0}", 1, "'{' has no meaning here"),
        ("dense % sinks(4)", 7, "'%' has no meaning here"),
        ("(" * 60 + "dense" + ")" * 60, 52, "more than 50 parentheses are open"),
    ],
)
def test_bad_texts_name_the_place_and_what_is_allowed(text, place, problem):
    with pytest.raises(InputError) as error:
        parse(text)
    message = str(error.value)
    assert message.startswith(f"pattern {text!r} is not understood at character {place}: {problem}")
    assert "window(64), sinks(4), global(0, 5)" in message


def test_parameters_out_of_range_are_refused_by_the_family():
    with pytest.raises(InputError, match="window = 0 is not allowed"):
        parse("window(0)")


def test_not_a_text():
    with pytest.raises(InputError, match="not a text"):
        parse(64)


@given(text=st.text(alphabet="dense window(64)|&sink,-0.causlgobrtk<τ²٣", max_size=30))
def test_any_text_parses_or_is_refused(text):
    try:
        pattern = parse(text)
    except InputError:
        return
    assert parse(str(pattern)) == pattern
