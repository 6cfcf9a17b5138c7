"""The pages of a training run: its metrics over steps, and the completions of its logged steps."""

from pathlib import Path

from fastapi import FastAPI, Request
from fastapi.responses import HTMLResponse, JSONResponse, Response
from starlette.exceptions import HTTPException

from nonpareil.viewing.charts import line_chart
from nonpareil.viewing.group import messages_of
from nonpareil.viewing.pages import Pages
from nonpareil.viewing.query import whole_number
from nonpareil.viewing.runs import metrics_of, samples_of, stamp_of_run, steps_of
from nonpareil.viewing.site import Site

MOST_CHARTS = 60


def add_run_pages(app: FastAPI, site: Site, pages: Pages) -> None:
    """Add them to an application."""

    def folder_of(number: int) -> tuple[str, Path]:
        if not 0 <= number < len(site.runs):
            raise HTTPException(404, "no such run is shown")
        return site.runs[number]

    @app.get("/runs/{number:int}", response_model=None)
    def run(number: int) -> Response:
        """Metrics over steps."""
        label, folder = folder_of(number)
        stamp, metrics = stamp_of_run(folder), metrics_of(folder)
        names = metrics.names()
        drawn = [line_chart(name, {name: metrics.by_name[name]}, "step") for name in names[:MOST_CHARTS]]
        latest = [(name, metrics.by_name[name][-1][1], int(metrics.by_name[name][-1][0])) for name in names]
        content = {
            "metrics": metrics,
            "charts": drawn,
            "latest": latest,
            "steps": steps_of(folder),
            "stamp": stamp,
        }
        return HTMLResponse(pages.page("run", number=number, label=label, **content))

    @app.get("/runs/{number:int}/state", response_model=None)
    def state(number: int) -> Response:
        """Whether there is more to see, for the script."""
        return JSONResponse({"version": stamp_of_run(folder_of(number)[1])})

    @app.get("/runs/{number:int}/samples", response_model=None)
    def samples(number: int, request: Request) -> Response:
        """Completions of a step."""
        step = whole_number(request.query_params.get("step"), "step")
        label, folder = folder_of(number)
        steps = steps_of(folder)
        if not steps:
            raise HTTPException(404, "the run has logged no completions; train with --log_completions")
        step = steps[-1] if step is None else step
        before = [each for each in steps if each < step]
        after = [each for each in steps if each > step]
        content = {"samples": samples_of(folder, step), "steps": steps, "messages_of": messages_of}
        around = {"before": before[-1] if before else None, "after": after[0] if after else None}
        return HTMLResponse(pages.page("samples", number=number, label=label, step=step, **content, **around))
