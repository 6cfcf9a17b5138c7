"""Workflows, issue forms, metadata: what they name exists, and says the same everywhere."""

import re
import tomllib
from pathlib import Path

import pytest
import yaml

from nonpareil import __version__

ROOT = Path(__file__).parents[1]
GITHUB = ROOT / ".github"
WORKFLOWS = sorted((GITHUB / "workflows").glob("*.yml"))
FORMS = sorted(path for path in (GITHUB / "ISSUE_TEMPLATE").glob("*.yml") if path.stem != "config")


@pytest.fixture(scope="module")
def project():
    return tomllib.loads((ROOT / "pyproject.toml").read_text())


def jobs() -> dict[str, dict]:
    """Every job of every workflow, by name."""
    found = {
        name: job for path in WORKFLOWS for name, job in yaml.safe_load(path.read_text())["jobs"].items()
    }
    assert len(found) >= 6
    return found


def commands(job: dict) -> str:
    return "\n".join(step.get("run", "") for step in job["steps"])


def test_the_tests_run_on_every_python_that_the_classifiers_name(project):
    tested = {case["python"] for case in jobs()["tests"]["strategy"]["matrix"]["include"]}
    classified = {
        text.rsplit(" ", 1)[1]
        for text in project["project"]["classifiers"]
        if re.fullmatch(r"Programming Language :: Python :: 3\.\d+", text)
    }
    assert tested == classified == set(jobs()["build"]["strategy"]["matrix"]["python"])
    assert project["project"]["requires-python"] == f">={min(tested, key=lambda v: int(v.split('.')[1]))}"


def test_lowest_and_newest_dependencies_are_tested():
    cases = jobs()["tests"]["strategy"]["matrix"]["include"]
    wanted = {"constraints.txt", "constraints-floor.txt", "constraints-newest.txt"}
    assert {case["constraints"] for case in cases} == wanted


def test_workflows_install_and_run_what_is_there(project):
    text = "\n".join(commands(job) for job in jobs().values())
    files = re.findall(r"-c (constraints[\w-]*\.txt)|python (\.ci/\w+\.py)", text)
    assert len(files) >= 5
    assert all((ROOT / (constraints or script)).is_file() for constraints, script in files)
    extras = {name for group in re.findall(r'"\.\[([\w,]+)\]"', text) for name in group.split(",")}
    assert {"dev", "ray", "test"} <= extras <= set(project["project"]["optional-dependencies"])


def test_every_mark_but_that_for_gpus_runs_in_a_workflow(project):
    declared = {mark.split(":")[0] for mark in project["tool"]["pytest"]["ini_options"]["markers"]}
    text = "\n".join(commands(job) for job in jobs().values())
    assert "make slow" in text
    assert "pytest -m slow" in (ROOT / "Makefile").read_text()
    run = {name for mark in re.findall(r'pytest -m ("[\w ]+"|\w+)', text) for name in mark.strip('"').split()}
    assert run - {"or"} | {"slow"} == declared - {"gpu"}


def test_workflows_run_the_readmes_tests():
    (tests,) = re.findall(r"^tests='(.+)'$", (ROOT / ".ci" / "run").read_text(), re.MULTILINE)
    assert tests in commands(jobs()["tests"]).splitlines()


def test_issue_forms_have_what_a_form_needs():
    assert len(FORMS) == 2
    for path in FORMS:
        form = yaml.safe_load(path.read_text())
        assert {"name", "description", "body"} <= set(form)
        ids = [field["id"] for field in form["body"]]
        assert len(ids) == len(set(ids)) >= 3
        assert all(field["attributes"]["label"] for field in form["body"])


def test_the_citation_is_of_this_version(project):
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == __version__
    assert citation["license"] == project["project"]["license"]
    papers = {re.search(r"\d{4}\.\d{5}", entry["url"])[0] for entry in citation["references"]}
    assert papers == {"2407.14622", "2406.00832", "2407.06057"}


def test_the_readmes_links_to_files_lead_somewhere():
    pages = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
    assert len(pages) > 10
    dead = [
        f"{page.relative_to(ROOT)}: {target}"
        for page in pages
        for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", page.read_text())
        if "://" not in target and not (page.parent / target).exists()
    ]
    assert not dead
