"""Articles as they come with gensim, and the cleaning rules by hand-worked examples."""

import bz2
from importlib import util

import pytest

from calibration.tasks import wikipedia
from calibration.tasks.wikipedia import articles, plain
from crossbar import InputError


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("{{Infobox|a=1}}Text", "Text"),
        ("a{{b{{c}}d}}e", "ae"),  # the second pass takes the outer template
        ("a{{b{{c{{d}}}}}}e", "a{{b}}e"),  # two passes take the two inner ones
        ("{{a\nb}}c", "c"),  # over lines
        ("see [[Plato]] and [[Athens|the city]]", "see Plato and the city"),
        ("[[File:a.jpg|thumb|right|A caption]]", "thumb|right|A caption"),
        ("'''Bold''' and ''italic'' and it's", "Bold and italic and it's"),
        ("fact&lt;ref name=a /&gt;.", "fact."),
        ("fact&lt;ref&gt;Book,\np. 3&lt;/ref&gt;.", "fact."),
        ("a&lt;ref name=x /&gt; b&lt;ref name=y&gt;Book&lt;/ref&gt; c", "a b c"),
        ("a&lt;ref&gt;One&lt;br /&gt;two&lt;/ref&gt;b", "atwo&lt;/ref&gt;b"),  # the note ends at the first of the two
        ("a &lt;references /&gt; b", "a  b"),
        ("x &lt;br&gt; y", "x &lt;br&gt; y"),
        ("== Heading ==\n* item &amp; item", "== Heading ==\n* item &amp; item"),
        ("", ""),
    ],
)
def test_cleaning(body, expected):
    assert plain(body) == expected


def test_the_extract():
    bodies = articles()
    assert len(bodies) == 106
    assert len(set(bodies)) == 106
    assert "\nAnthropology is the study of humans and their societies in the past and present." in plain(bodies[20])
    assert "&amp;" in "".join(bodies)  # entities are XML's own
    assert not any(body.lower().startswith("#redirect") for body in bodies)


def test_redirects_are_left_out(monkeypatch, tmp_path):
    path = tmp_path / "pages.bz2"
    pages = '<page><text xml:space="preserve">One</text></page><page><text>#REDIRECT [[One]]</text></page>'
    pages += "<page><text>#redirect [[One]]</text></page><page><text>Two\nlines</text></page>"
    path.write_bytes(bz2.compress(pages.encode()))
    monkeypatch.setattr(wikipedia, "data_file", lambda name: path)
    assert articles() == ["One", "Two\nlines"]


@pytest.mark.parametrize("data", [b"not bz2", bz2.compress(b"\xff"), bz2.compress(b"text" * 1000)[:40]])
def test_a_damaged_file_is_one_sentence(monkeypatch, tmp_path, data):
    path = tmp_path / "pages.bz2"
    path.write_bytes(data)
    monkeypatch.setattr(wikipedia, "data_file", lambda name: path)
    with pytest.raises(InputError, match=r"is damaged \(.*\): install gensim again"):
        articles()


def test_gensim_without_the_file_is_one_sentence(monkeypatch, tmp_path):
    real = util.find_spec
    spec = type("Spec", (), {"submodule_search_locations": [str(tmp_path)]})
    monkeypatch.setattr(util, "find_spec", lambda name, *a: spec if name == "gensim" else real(name, *a))
    with pytest.raises(InputError, match="the installed gensim has no test_data/enwiki"):
        articles()
