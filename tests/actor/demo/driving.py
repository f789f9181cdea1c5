"""Drives the page in a browser, and reads what it shows."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from dynatok_online.data.storage import read_trajectories
from dynatok_online.trajectory import Trajectory
from tests.actor.demo.conftest import wait_until

if TYPE_CHECKING:
    from playwright.sync_api import Page

SHOWN = """lane => ({
  tokens: [...lane.querySelectorAll('.token')].map(one => [
    one.textContent,
    Number([...one.classList].find(name => /^s\\d$/.test(name)).slice(1)),
    one.classList.contains('violated'),
    getComputedStyle(one).backgroundColor,
  ]),
  rows: [...lane.querySelectorAll('.row')].map(row =>
    [...row.querySelectorAll('.cells i')].map(cell => cell.className.split(' ')[0])),
  legend: Object.fromEntries([...lane.querySelectorAll('.legend li')].map(item =>
    [item.dataset.kind, Number(item.querySelector('b').textContent)])),
  figures: Object.fromEntries([...lane.querySelectorAll('[data-figure]')].map(one =>
    [one.dataset.figure, one.textContent])),
  states: [...lane.querySelectorAll('.states tbody tr')].map(row =>
    [Number(row.dataset.state), ...[...row.cells].map(cell => cell.textContent)]),
  status: lane.querySelector('.status').textContent,
})"""


def shown(page: Page, lane: int = 0) -> dict[str, Any]:
    """What a lane shows."""
    found: dict[str, Any] = page.locator(".lane").nth(lane).evaluate(SHOWN)
    return found


def tokens(page: Page, lane: int = 0) -> int:
    return int(page.locator(".lane").nth(lane).locator("[data-figure=tokens]").inner_text())


def wait_for_tokens(page: Page, count: int) -> None:
    """`page.wait_for_function` would need eval, which the page's policy forbids."""
    page.wait_for_selector("[data-figure=tokens]")
    wait_until(lambda: tokens(page) >= count, 60)


def write_on(page: Page, count: int) -> None:
    """Wait until every lane has written so many more tokens than it has now."""
    lanes = range(page.locator(".lane").count())
    goals = [tokens(page, lane) + count for lane in lanes]
    wait_until(lambda: all(tokens(page, lane) >= goals[lane] for lane in lanes), 60)


def announced(page: Page, what: str) -> None:
    """Wait until a screen reader has been told so."""
    wait_until(lambda: page.locator("#announce").text_content() == what, 60)


def start(page: Page, *lanes: str, placement: str = "head", **settings: str) -> None:
    """Choose lanes and settings, and press Start."""
    page.wait_for_selector("#start:not([disabled])", timeout=90_000)
    for name in ("exact", "sticky", "none"):
        page.locator(f"[name=lane][value={name}]").set_checked(name in (lanes or ("exact",)))
    refresh = [lane.removeprefix("refresh:") for lane in lanes if lane.startswith("refresh:")]
    for last in refresh:
        page.fill("#refresh-last", last)  # which also chooses the lane
    page.locator("#refresh").set_checked(bool(refresh))
    page.select_option("#placement", placement)
    # The fields show the session that was written last; every test begins in one state.
    for requirement in ("lower", "sea", "digits"):
        for one in page.locator(f"[data-requirement={requirement}]").all():
            one.click()
    for name, value in settings.items():
        page.fill(f"#{name.replace('_', '-')}", value)
    page.click("#start")
    announced(page, "Writing")


def chip(page: Page, requirement: str) -> None:
    page.click(f"[data-requirement={requirement}]")


def finish(page: Page) -> None:
    """Stop, and wait until every lane has ended."""
    page.click("#stop")
    ended(page)


def ended(page: Page) -> None:
    announced(page, "Finished")
    said = page.locator(".lane:has(.status.failed) .detail").all_inner_texts()
    assert said == [], f"a lane failed: {said}"


def save(page: Page, what: str, path: Path) -> Path:
    with page.expect_download() as download:
        page.click(f"#save-{what}")
    download.value.save_as(path)
    return path


def saved_trajectories(page: Page, folder: Path) -> list[Trajectory]:
    return list(read_trajectories(save(page, "trajectory", folder / "session.jsonl")))
