"""`nlf report`: one self-contained page about runs, which opens from disk and needs no network.

The page holds no script, and its Content-Security-Policy blocks scripts and loading, so hostile model output can do
nothing. Texts that may offend are blurred until clicked, by CSS alone. The same input gives the same bytes. The first
run is shown in full; tables and plots compare it with the other runs.
"""

from collections.abc import Sequence
from importlib import resources
from pathlib import Path

from nlf.config import ReportOptions
from nlf.data.files import refuse_other, write_text
from nlf.data.locks import locked_files
from nlf.data.run_folder import model_folder
from nlf.report.contents import contents
from nlf.report.page import fill
from nlf.report.plots import Drawing
from nlf.report.reading import read_runs

FILE = "report.html"
POLICY, HEAD = "default-src &#39;none&#39;; style-src &#39;sha256-", 1000  # in the first characters of each page


def report_command(options: ReportOptions) -> str:
    """`nlf report`: write the page and return a line that says where it is."""
    output = Path(options.output) if options.output else None
    path = write_report([Path(run) for run in options.runs], output, options.num_samples, options.seed)
    return f"wrote {path} ({path.stat().st_size / 1e6:.1f} MB); open it in a browser"


def write_report(runs: Sequence[Path], output: Path | None = None, num_samples: int = 30, seed: int = 0) -> Path:
    """Write the page of one or more runs.

    Args:
        runs: Run folders or evaluation folders; the first is shown in full.
        output: The page; None writes report.html in the first run.
        num_samples: Number of prompts whose samples are shown, over all prompt sources.
        seed: Seed of the choice of these prompts.

    Returns:
        The path of the page.

    Raises:
        UserError: A run cannot be read (the message names the broken file), or the page cannot be written or is a file of
            another program.
    """
    paths = [Path(model_folder(str(run))) for run in runs]
    drawing = Drawing()
    found = read_runs(paths)
    path = output or (paths[0] if paths[0].is_dir() else paths[0].parent) / FILE
    refuse_other(path, lambda text: POLICY in text[:HEAD])
    with locked_files(path):
        shown = contents(found, num_samples, seed, drawing)
        template = resources.files("nlf.report").joinpath("page.html.j2").read_text(encoding="utf-8")
        write_text(path, fill(template, vars(shown) | {"sections": shown.sections}, drawing.styles))
    return path
