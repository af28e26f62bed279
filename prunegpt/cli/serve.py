"""prunegpt serve: the dashboard."""

from typing import Annotated

import typer

from prunegpt.cli.options import ROOT, app, say
from prunegpt.root import Root


@app.command(epilog="Example: prunegpt serve --open")
def serve(
    root: Root = ROOT,
    host: Annotated[str, typer.Option(help="Host to bind.")] = ("127.0.0.1"),
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to bind; 0 picks a free one.")] = 8000,
    token: Annotated[
        str | None,
        typer.Option(
            "--token",
            envvar="PRUNEGPT_TOKEN",
            help="Access token; W&B clients take 40 characters or more (default: the root's, in ROOT/serve.token).",
            show_default=False,
        ),
    ] = None,
    open_: Annotated[bool, typer.Option("--open", help="Open the dashboard in a browser.")] = False,
    upload_limit: Annotated[
        int, typer.Option(min=1, metavar="MEGABYTES", help="What the uploaded files of one W&B run may take.")
    ] = 1000,
    artifact_limit: Annotated[
        int, typer.Option(min=1, metavar="MEGABYTES", help="What the artifacts of all W&B runs may take.")
    ] = 100_000,
    allow_host: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="Additional allowed Host name, such as a proxy's."),
    ] = None,
) -> None:
    """Serve the dashboard, its API and a W&B-compatible server.

    Live sweeps, trials, curves and tables.

    Listens on localhost unless --host is given. The printed link contains the access token
    needed to change anything and, from other machines, to view anything.
    """
    from prunegpt.web.app import run

    run(
        root,
        host=host,
        port=port,
        token=token,
        hosts=allow_host or (),
        uploads=upload_limit * 1_000_000,
        artifacts=artifact_limit * 1_000_000,
        open_browser=open_,
        say=say,
    )
