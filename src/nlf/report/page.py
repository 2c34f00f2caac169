"""Fill a template: a self-contained page that opens from disk, runs no script and loads nothing."""

import base64
import hashlib
from collections.abc import Mapping
from importlib import resources

from markupsafe import Markup

from nlf.report.svg import Styles
from nlf.report.wording import clean


def fill(template: str, values: Mapping[str, object], styles: Styles) -> str:
    """Fill a Jinja template and return the page.

    Args:
        template: The template. Its `style` element must hold `style`, and its Content-Security-Policy `policy`, which
            allows this style and nothing else.
        values: The variables of the template. Their markup is escaped and invisible characters become visible.
        styles: The CSS classes of the page's plots.
    """
    from jinja2 import Environment, StrictUndefined

    environment = Environment(
        autoescape=True, finalize=clean, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    style = resources.files("nlf.report").joinpath("page.css").read_text(encoding="utf-8") + styles.css()
    allowed = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    policy = f"default-src 'none'; style-src 'sha256-{allowed}'; base-uri 'none'; form-action 'none'"
    made = environment.from_string(template).render(values, style=Markup(style), policy=policy)
    return made.strip() + "\n"
