"""Show predictions beside the real volumes, in a page on localhost.

    brasyn view EVALUATION_OR_PREDICTIONS

The page shows inputs, target, synthetic volume and difference with linked crosshairs, in three planes and in
3-D, the tumour as an overlay, and the cases with their scores. It needs a browser with WebGL 2 and no
network. On another computer: `ssh -L 8765:localhost:8765 HOST`, and the same address there.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from typer import Argument, Option

from brasyn_dist.cli.command import Command


@dataclass(frozen=True, kw_only=True)
class ViewOptions:
    """Options of `brasyn view`."""

    folder: Annotated[Path, Argument(metavar="EVALUATION_OR_PREDICTIONS")]
    """Folder of `brasyn evaluate` or `brasyn infer`."""
    cases: Path | None = None
    """Folder of the case folders.  [default: as recorded]"""
    predictions: Path | None = None
    """Predictions of the evaluation.  [default: as recorded]"""
    port: Annotated[int, Option(min=0, max=65535)] = 8765
    """Port on localhost; 0: any free one."""
    open: bool = False
    """Open the page in the browser."""


def run(options: ViewOptions) -> None:
    """Serve the page until interrupted."""
    import webbrowser

    from brasyn_dist.report.viewer import make_server, open_viewer

    data = open_viewer(options.folder, options.cases, options.predictions)
    with make_server(data, options.port) as server:
        address = f"http://localhost:{server.server_port}/"
        print(f"{len(data.predictions)} predictions at {address} (Ctrl+C ends)", flush=True)
        if options.open:
            webbrowser.open(address)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            print()


main = Command("view", ViewOptions, run)
