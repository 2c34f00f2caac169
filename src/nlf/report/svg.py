"""Put Matplotlib's SVG into a page, with the page's colours and CSS classes, and without anything that can run.

Matplotlib writes inline `style` attributes with fixed colours. The page's Content-Security-Policy forbids inline
styles, and fixed colours suit one theme only. So each distinct style becomes a class, and each colour of `INKS` a CSS
variable. An XML parser and writer keeps names in plots as text. Elements, attributes and styles that do not draw are
dropped, so the SVG of a file is as safe as ours.
"""

import io
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

from markupsafe import Markup

from nlf.report.wording import clean

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# The CSS variables of plots, and the colour that stands for each in matplotlib's output.
VARIABLES = ("ink", "muted", "rule", "paper", *(f"s{i}" for i in range(1, 7)), *(f"t{i}" for i in range(1, 8)))
INKS = {name: f"#00a{i:03x}" for i, name in enumerate(VARIABLES)}
SIZE = 10  # of text, in units of the view box
SETTINGS: Any = {  # matplotlib's type names each of its 300 keys
    "svg.fonttype": "none",  # text stays text: small, selectable, in the page's font
    "svg.hashsalt": "nlf",  # the same input gives the same bytes
    "text.parse_math": False,  # a name with $ in it is a name
    "text.color": INKS["ink"],
    "font.size": SIZE,
    "axes.edgecolor": INKS["rule"],
    "axes.labelcolor": INKS["muted"],
    "axes.labelsize": SIZE,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "grid.color": INKS["rule"],
    "grid.linewidth": 0.5,
    "xtick.color": INKS["rule"],
    "ytick.color": INKS["rule"],
    "xtick.labelcolor": INKS["muted"],
    "ytick.labelcolor": INKS["muted"],
    "xtick.labelsize": SIZE - 1,
    "ytick.labelsize": SIZE - 1,
    "axes.unicode_minus": True,
}
DRAWING = {"svg", "g", "defs", "use", "path", "rect", "clipPath", "text"}
PLACED = {"d", "x", "y", "width", "height", "transform"}
INK_NAMES = {ink: name for name, ink in INKS.items()}
PLAIN_STYLE = re.compile(  # no font of its own, no url(), no quotes, no braces
    r"((?:fill|stroke)(?:-[a-z]+)?|opacity|font-(?:size|style|weight)|text-anchor)\s*:\s*([\w#.,% -]+)", re.ASCII
)
SVG, XLINK = "{http://www.w3.org/2000/svg}", "{http://www.w3.org/1999/xlink}"


class Styles:
    """The CSS classes of a page's plots."""

    def __init__(self) -> None:
        self._names: dict[str, str] = {}

    def name(self, style: str) -> str:
        """The class for an inline style; equal styles share a class."""
        parts = [found.groups() for part in style.split(";") if (found := PLAIN_STYLE.fullmatch(part.strip()))]
        kept = ";".join(f"{key}:{_themed(value.strip())}" for key, value in parts)
        return self._names.setdefault(kept, f"p{len(self._names)}")

    def css(self) -> str:
        """The rules of all classes."""
        return "\n".join(f".{name}{{{style}}}" for style, name in self._names.items())


def _themed(value: str) -> str:
    return f"var(--{INK_NAMES[value]})" if value in INK_NAMES else value


@contextmanager
def settings() -> Iterator[None]:
    """Inside the `with` block, use the page's matplotlib settings; afterwards the earlier settings are restored."""
    import matplotlib

    with matplotlib.rc_context(), warnings.catch_warnings():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(SETTINGS)
        warnings.filterwarnings("ignore", "Glyph .* missing from", UserWarning)  # the browser has the fonts
        yield


def embed(figure: "Figure", prefix: str, label: str, styles: Styles) -> Markup:
    """Convert a figure to an SVG element of the page.

    Args:
        prefix: Start of the element's ids; distinct for each figure of a page.
        label: Description for people who cannot see the figure.
    """
    out = io.BytesIO()
    figure.savefig(out, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    return adopt(out.getvalue(), prefix, label, styles)


def adopt(svg: bytes, prefix: str, label: str, styles: Styles, kind: str = "plot") -> Markup:
    """Convert an SVG file to an element of the page, without elements and styles that do not draw.

    Args:
        kind: CSS classes of the element.

    Raises:
        xml.etree.ElementTree.ParseError, ValueError: The bytes are no SVG.
    """
    source = ElementTree.fromstring(svg)
    if source.tag != f"{SVG}svg":
        raise ValueError(f"expected svg, found {source.tag:.40}")
    root = _converted(source, styles, _Ids(source, prefix))
    root.attrib = {"class": kind, "role": "img", "aria-label": label, "viewBox": source.get("viewBox", "")}
    return Markup(ElementTree.tostring(root, encoding="unicode"))


class _Ids:
    """New names for the ids that the SVG refers to."""

    def __init__(self, source: ElementTree.Element, prefix: str) -> None:
        used = [each.get(f"{XLINK}href", "") + each.get("clip-path", "") for each in source.iter()]
        found = dict.fromkeys(name for text in used for name in re.findall(r"#([\w-]+)", text))
        self.names = {old: f"{prefix}-{i}" for i, old in enumerate(found)}

    def replace(self, text: str) -> str | None:
        """Rename a reference to an id; None for a reference to anything else."""
        found = re.fullmatch(r"(url\()?#([\w-]+)(\))?", text)
        return f"{found[1] or ''}#{self.names[found[2]]}{found[3] or ''}" if found else None


def _converted(source: ElementTree.Element, styles: Styles, ids: _Ids) -> ElementTree.Element:
    """Copy an element and its children without namespaces and undrawn parts, with classes for styles."""
    made = ElementTree.Element(source.tag.removeprefix(SVG))
    made.text = str(clean(source.text)) if made.tag == "text" and source.text else None
    for name, value in source.attrib.items():
        if name == "style":
            made.set("class", styles.name(value))
        elif name == "id":
            if value in ids.names:
                made.set("id", ids.names[value])
        elif name in ("clip-path", f"{XLINK}href"):
            if reference := ids.replace(value):
                made.set(name.removeprefix(XLINK), reference)
        elif name in PLACED and not (name == "transform" and value.startswith(("rotate(-0 ", "rotate(0 "))):
            made.set(name, _rounded(value))
    for child in source:
        if isinstance(child.tag, str) and child.tag.startswith(SVG) and child.tag.removeprefix(SVG) in DRAWING:
            made.append(_converted(child, styles, ids))
    return made


def _rounded(value: str) -> str:
    """Round coordinates to a hundredth."""
    return re.sub(r"-?\d+\.\d{3,}", lambda found: f"{float(found[0]):.2f}", " ".join(value.split()))
