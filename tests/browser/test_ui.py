"""What a user of `make up` sees, in a real browser."""

import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import Page, expect, sync_playwright

from stack_fixture import DAG_ID, SandboxStack

pytestmark = pytest.mark.slow

#: A first page compiles nothing, but two busy cores take their time.
PATIENCE_MS = 30_000


@pytest.fixture(scope="module")
def browser_page() -> Iterator[Page]:
    chromium = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("there is no chromium on this machine (Debian: apt-get install chromium), and CHROMIUM names none")
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking"]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=flags)
        page = browser.new_page(viewport={"width": 1500, "height": 950})
        page.set_default_timeout(PATIENCE_MS)
        expect.set_options(timeout=PATIENCE_MS)
        yield page
        browser.close()


def test_the_dag_page_shows_green_runs_and_the_documentation(browser_page: Page, stack: SandboxStack, tmp_path: Path) -> None:
    page, url = browser_page, stack.api().url
    run = stack.wait_for_green_runs(1)[0]
    asked: set[str | None] = set()
    page.on("request", lambda request: asked.add(urlsplit(request.url).hostname))

    page.goto(f"{url}/dags/{DAG_ID}")
    for task in ("freeze", "push", "mark_billed", "check_conservation"):
        expect(page.get_by_role("link", name=re.compile(rf"^{task}\b")).first).to_be_visible()
    grid_run = page.locator(f"a[href*='/dags/{DAG_ID}/runs/']").first
    expect(grid_run).to_be_visible()
    page.screenshot(path=tmp_path / "dag.png")

    page.get_by_role("button", name="Dag Docs").click()
    expect(page.get_by_role("dialog")).to_contain_text("each report is sent to Stripe exactly once")
    page.screenshot(path=tmp_path / "docs.png")

    page.goto(f"{url}/dags/{DAG_ID}/runs")
    expect(page.get_by_role("link", name=run)).to_be_visible()
    expect(page.get_by_text("Success").first).to_be_visible()
    page.screenshot(path=tmp_path / "runs.png")

    page.goto(f"{url}/")
    expect(page.get_by_role("heading", name="Token billing (sandbox)")).to_be_visible()
    page.screenshot(path=tmp_path / "home.png")

    assert asked - {None} == {"127.0.0.1"}  # the pages tell nobody else of their user; data: and blob: have no host
    print(f"screenshots: {tmp_path}")
