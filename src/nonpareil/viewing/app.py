"""The pages as a FastAPI application: GET only, of a `Site`."""

from importlib.resources import files
from urllib.parse import quote

from fastapi import FastAPI, Request
from fastapi.responses import HTMLResponse, JSONResponse, RedirectResponse, Response
from starlette.exceptions import HTTPException

from nonpareil import __version__
from nonpareil.errors import DataError
from nonpareil.viewing.fields import checked_reward
from nonpareil.viewing.guard import Guard
from nonpareil.viewing.links import Links
from nonpareil.viewing.pages import Pages
from nonpareil.viewing.query import read_query, whole_number
from nonpareil.viewing.run_pages import add_run_pages
from nonpareil.viewing.side_by_side import add_compare_page
from nonpareil.viewing.site import (
    GroupSource,
    Site,
    first_reward,
    group_content,
    overview_content,
    table_page,
)

ASSETS = {"view.css": "text/css; charset=utf-8", "view.js": "text/javascript; charset=utf-8"}


def app_of(site: Site, allowed_hosts: list[str] | None = None) -> FastAPI:
    """The application that shows a site; `allowed_hosts` are names it may be asked by, beside its own."""
    import duckdb

    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    pages = Pages(site=site, links=Links(), version=__version__, has_compare=_has_compare(site))
    app.add_middleware(Guard, allowed=allowed_hosts or [])
    _add_home(app, site, pages)
    _add_group_pages(app, site, pages)
    add_run_pages(app, site, pages)
    add_compare_page(app, site, pages)

    @app.exception_handler(HTTPException)
    def missing(request: Request, error: HTTPException) -> Response:
        unknown = error.status_code == 404 and error.detail == "Not Found"
        return _complaint(
            pages, "There is no such page." if unknown else str(error.detail), error.status_code
        )

    @app.exception_handler(DataError)
    def refused(request: Request, error: DataError) -> Response:
        return _complaint(pages, str(error), 404 if "no file is called" in str(error) else 400)

    @app.exception_handler(duckdb.Error)
    def changed(request: Request, error: duckdb.Error) -> Response:
        said = str(error).partition("\n")[0]
        return _complaint(
            pages, f"A file was changed while it was read, or is damaged; reload the page. {said}", 503
        )

    return app


def _complaint(pages: Pages, message: str, status: int) -> Response:
    return HTMLResponse(pages.page("error", message=message, status=status), status_code=status)


def _has_compare(site: Site) -> bool:
    return len(site.groups) > 1 or len(site.runs) > 1


def _add_home(app: FastAPI, site: Site, pages: Pages) -> None:
    @app.get("/", response_model=None)
    def home() -> Response:
        """The list of what is shown, or the only thing."""
        if len(site.groups) == 1 and not site.runs:
            return RedirectResponse("/groups/0", status_code=307)
        if len(site.runs) == 1 and not site.groups:
            return RedirectResponse("/runs/0", status_code=307)
        for source in site.groups:
            source.index.freshen()
        return HTMLResponse(pages.page("home"))

    @app.get("/static/{name}", response_model=None)
    def asset(name: str) -> Response:
        """The style sheet and the script."""
        if name not in ASSETS:
            raise HTTPException(404)
        return Response(asset_bytes(name), media_type=ASSETS[name])


def asset_bytes(name: str) -> bytes:
    """One of `ASSETS`."""
    return (files("nonpareil.viewing") / "static" / name).read_bytes()


def _add_group_pages(app: FastAPI, site: Site, pages: Pages) -> None:
    def source_of(number: int) -> GroupSource:
        if not 0 <= number < len(site.groups):
            raise HTTPException(404, "no such folder of groups is shown")
        site.groups[number].index.freshen()
        return site.groups[number]

    @app.get("/groups/{number:int}", response_model=None)
    def overview(number: int, request: Request) -> Response:
        """What a folder is worth."""
        source = source_of(number)
        reward = request.query_params.get("reward")
        reward = first_reward(source) if reward is None else checked_reward(source.index, reward)
        return HTMLResponse(pages.page("overview", **overview_content(source, reward)))

    @app.get("/groups/{number:int}/state", response_model=None)
    def state(number: int, request: Request) -> Response:
        """Whether there is more to see, for the script."""
        source = source_of(number)
        source.worths.renew()
        of_groups = request.query_params.get("of") == "groups"
        return JSONResponse({"version": source.groups_version if of_groups else source.version})

    @app.get("/groups/{number:int}/table", response_model=None)
    def table(number: int, request: Request) -> Response:
        """The groups."""
        source = source_of(number)
        return HTMLResponse(
            pages.page("table", **table_page(source, read_query(request.query_params, source.index)))
        )

    @app.get("/groups/{number:int}/group/{shard}/{row:int}", response_model=None)
    def group(number: int, shard: str, row: int, request: Request) -> Response:
        """One group."""
        source = source_of(number)
        asked = {
            name: whole_number(request.query_params.get(name), name) for name in ("winner", "loser", "tokens")
        }
        query = read_query(request.query_params, source.index)
        content = group_content(source, query, (shard, row), asked=asked, vocabulary=site.vocabulary)
        return HTMLResponse(pages.page("group", **content))


def address_of(host: str, port: int) -> str:
    """For a browser."""
    shown = (
        "127.0.0.1"
        if host == "0.0.0.0"
        else "[::1]"
        if host == "::"
        else f"[{host}]"
        if ":" in host
        else host
    )
    return f"http://{quote(shown, safe='[]:.-')}:{port}/"
