"""prunegpt serve: the dashboard."""

from typing import Annotated

import typer

from prunegpt.cli.options import ROOT, app, say
from prunegpt.root import Root


@app.command(epilog="Example: prunegpt serve --open")
def serve(
    root: Root = ROOT,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = ("127.0.0.1"),
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port; 0 takes a free one.")] = 8000,
    token: Annotated[
        str | None,
        typer.Option(
            "--token",
            envvar="PRUNEGPT_TOKEN",
            help="What visitors must know; the root's own where not given.",
            show_default=False,
        ),
    ] = None,
    open_: Annotated[bool, typer.Option("--open", help="Open the dashboard in a browser.")] = False,
    upload_limit: Annotated[
        int, typer.Option(min=1, metavar="MEGABYTES", help="What the uploaded files of one W&B run may take.")
    ] = 1000,
    allow_host: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="Another name that visitors reach it by, such as a proxy's."),
    ] = None,
) -> None:
    """Show sweeps, trials, curves and tables in a browser, live; also the JSON API, and a W&B server for agents.

    It listens on this machine alone unless --host says otherwise. The printed link carries the token that visitors
    need: on this machine to change anything, from elsewhere to see anything.
    """
    from prunegpt.web.app import run

    run(
        root,
        host=host,
        port=port,
        token=token,
        hosts=allow_host or (),
        uploads=upload_limit * 1_000_000,
        open_browser=open_,
        say=say,
    )
