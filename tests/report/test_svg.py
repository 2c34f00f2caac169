"""SVG as the page takes it: only drawing passes, and equal styles share a class."""

import reports
from reports import Page

from nlf.report.svg import Styles, adopt

TEXT = reports.HOSTILE[2]

FOREIGN = f"""<?xml version="1.0"?>
<!DOCTYPE svg [<!ENTITY e "entity">]>
<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" viewBox="0 0 9 9" onload="alert(1)">
<!-- note --><?target do?>
<style>@import url(http://evil/a.css)</style><script>alert(2)</script>
<foreignObject><p xmlns="http://www.w3.org/1999/xhtml">words</p></foreignObject>
<image xlink:href="http://evil/a.png"/><a xlink:href="javascript:alert(3)"><text>link</text></a>
<path id="shape" d="M 0 0" onclick="alert(4)"
  style="fill: #0072b2; stroke: url(http://evil#x); background: url('a'); opacity: .5}} body {{ display: none; -moz-binding: x"/>
<path style="stroke: #00afff; fill: #00a000"/>
<use xlink:href="#shape"/><use href="http://evil/b.svg#shape"/><use xlink:href="http://evil/b.svg#shape"/>
<g clip-path="url(http://evil#shape)"/><g clip-path="url(#shape)"/><animate attributeName="x" values="1"/>
<text x="1">{TEXT.replace("<", "&lt;")} &e; &#x202E;turned</text>
</svg>"""


def test_of_foreign_svg_only_drawing_is_left(tmp_path):
    styles = Styles()
    made = adopt(FOREIGN.encode(), "f1", 'a "plot"', styles)
    (tmp_path / "made.html").write_text(made)
    shown = Page(tmp_path / "made.html")
    assert [(tag, {name for name in attrs if name != "class"}) for tag, attrs in shown.elements] == [
        ("svg", {"role", "aria-label", "viewbox"}),
        ("path", {"id", "d"}), ("path", set()), ("use", {"href"}), ("use", set()), ("use", set()),
        ("g", set()), ("g", {"clip-path"}), ("text", {"x"}),
    ]  # fmt: skip
    assert "evil" not in made and "alert(1)" not in made and "words" not in made
    assert shown.text.strip() == f"{TEXT} entity [U+202E]turned"
    assert styles.css() == ".p0{fill:#0072b2}\n.p1{stroke:#00afff;fill:var(--ink)}"


def test_equal_styles_share_a_class_and_fonts_are_left_out():
    styles = Styles()
    assert styles.name("fill: #00a000; font-family: 'X'") == styles.name("fill: #00a000") == "p0"
    assert styles.css() == ".p0{fill:var(--ink)}"
