"""The page in a real browser on the fake engine: what the model writes can be chosen."""

from __future__ import annotations

import asyncio
import json
import threading
from pathlib import Path

import msgspec
import pytest

from dynatok_online.tasks.task import SlotState
from dynatok_online.trajectory import Trajectory
from tests.actor.demo.backend import CONFIG, CONTROL
from tests.actor.demo.conftest import FakeDemo, OpenPage, wait_until
from tests.actor.demo.driving import (
    chip,
    ended,
    finish,
    save,
    saved_trajectories,
    start,
    tokens,
    wait_for_tokens,
)

pytestmark = [pytest.mark.engine, pytest.mark.browser, pytest.mark.timeout(240)]

HOSTILE = (
    "<script>window.pwned = 1</script><img src=x onerror='window.pwned = 2'> \x1b[31mred\x1b[0m "
    "\u202egnirts\u202c </div><b>bold</b> \u0000 ${window.pwned = 3} &lt;i&gt; "
)


def test_hostile_text_is_shown_as_text(
    fake_demo: FakeDemo, open_page: OpenPage, tmp_path: Path
) -> None:
    engine = fake_demo.backend.engine
    engine.story = HOSTILE
    # Upper case would change the text.
    engine.next_token = lambda whole: ord(HOSTILE[len(whole) % len(HOSTILE)])
    page = open_page(fake_demo.address)
    start(page, "exact", max_tokens="400")
    page.fill("#slot-case", HOSTILE[:12])
    page.press("#slot-case", "Enter")
    ended(page)
    path = save(page, "html", tmp_path / "session.html")
    replay = open_page(path.as_uri())
    replay.wait_for_selector(".lane")
    for shows in (page, replay):
        assert shows.evaluate("window.pwned") is None
        assert shows.locator("#board script, #board img, #board b:not(.legend b)").count() == 0
        text = shows.locator(".text").inner_text()
        assert "<script>window.pwned = 1</script>" in text
        assert "␛[31mred" in text
        assert "⟨U+202E⟩gnirts⟨U+202C⟩" in text
        assert "\u202e" not in shows.locator("#board").inner_text()
        assert "<script>" in shows.locator(".edits").inner_text()
    recorded = saved_trajectories(page, tmp_path)[0]
    assert len(recorded.response) == 400


WIDTHS = (380, 768, 1280, 1920, 2560)

CONTRAST = """() => {
  const canvas = document.createElement('canvas').getContext('2d', {willReadFrequently: true});
  const rgba = colour => {
    canvas.clearRect(0, 0, 1, 1); canvas.fillStyle = colour; canvas.fillRect(0, 0, 1, 1);
    return [...canvas.getImageData(0, 0, 1, 1).data];
  };
  const light = ([r, g, b]) => [r, g, b].map(v => v / 255)
    .map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const behind = node => {
    for (; node; node = node.parentElement) {
      const found = rgba(getComputedStyle(node).backgroundColor);
      if (found[3] === 255) return found;
    }
    return [255, 255, 255];
  };
  const low = [];
  const texts = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (texts.nextNode()) {
    const node = texts.currentNode.parentElement;
    if (!texts.currentNode.textContent.trim() || !node.checkVisibility()) continue;
    if (node.closest(':disabled, [aria-disabled=true], .unseen, script, option')) continue;
    const [a, b] = [light(rgba(getComputedStyle(node).color)), light(behind(node))];
    const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    if (ratio < 4.5) low.push([node.className, node.textContent.slice(0, 20), ratio]);
  }
  return low;
}"""

SHIFTS = """() => {
  // A growing word that wraps is text being written; anything else that moves is a fault.
  window.shifts = [];
  const moved = node => {
    const found = node?.nodeType === Node.TEXT_NODE ? node.parentElement : node;
    return found?.closest('.text') ? null : found?.className || found?.nodeName;
  };
  new PerformanceObserver(list => {
    for (const entry of list.getEntries().filter(one => !one.hadRecentInput))
      window.shifts.push(...entry.sources.map(source => moved(source.node)).filter(Boolean));
  }).observe({type: 'layout-shift', buffered: false});
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_fits_is_readable_and_nothing_shifts(
    scheme: str, fake_demo: FakeDemo, open_page: OpenPage, shots: Path
) -> None:
    page = open_page(fake_demo.address, color_scheme=scheme)
    page.wait_for_selector("#start:not([disabled])")
    page.screenshot(path=shots / f"empty-{scheme}.png")
    start(page, "exact", "sticky", "refresh:64", "none", max_tokens="700")
    wait_for_tokens(page, 10)
    page.evaluate(SHIFTS)
    for requirement, count in (("upper", 80), ("forest", 160), ("lower", 240), ("sea", 320)):
        wait_for_tokens(page, count)
        page.locator(".response").first.evaluate("node => node.scrollTop = node.scrollHeight")
        chip(page, requirement)
    ended(page)
    assert page.evaluate("window.shifts") == []
    page.locator(".token").nth(300).hover()
    assert page.evaluate(CONTRAST) == []
    for width in WIDTHS:
        page.set_viewport_size({"width": width, "height": 900})
        page.wait_for_timeout(100)
        wide = page.evaluate("document.documentElement.scrollWidth")
        assert wide <= width, f"{wide} pixels wide in a window of {width}"
        page.screenshot(path=shots / f"{scheme}-{width}.png", full_page=True)


def test_five_thousand_tokens(fake_demo: FakeDemo, open_page: OpenPage, tmp_path: Path) -> None:
    fake_demo.backend.engine.seconds = 0.0005
    page = open_page(fake_demo.address)
    start(page, "exact", max_tokens="5000")
    wait_for_tokens(page, 2000)
    chip(page, "upper")
    ended(page)
    assert tokens(page) == 5000
    assert page.locator(".token").count() == 5000
    (one,) = saved_trajectories(page, tmp_path)
    text = "".join(map(chr, one.response.tolist()))
    assert page.locator(".text").evaluate("node => node.textContent") == text


FRAMES = """() => {
  window.frames_ms = [];
  let last = performance.now();
  const tick = now => {
    window.frames_ms.push(now - last);
    last = now;
    requestAnimationFrame(tick);
  };
  requestAnimationFrame(tick);
  window.long_tasks = [];
  new PerformanceObserver(list => window.long_tasks.push(...list.getEntries().map(e => e.duration)))
    .observe({type: 'longtask', buffered: false});
}"""


@pytest.mark.slow
def test_five_thousand_tokens_stay_smooth(fake_demo: FakeDemo, open_page: OpenPage) -> None:
    """No task of the page holds a frame for more than 50 ms; wants a quiet machine."""
    fake_demo.backend.engine.seconds = 0.003
    page = open_page(fake_demo.address)
    page.wait_for_selector("#start:not([disabled])")
    page.evaluate(FRAMES)
    start(page, "exact", max_tokens="5000")
    wait_for_tokens(page, 2500)
    chip(page, "upper")
    ended(page)
    frames, tasks = page.evaluate("[window.frames_ms, window.long_tasks]")
    late = [round(ms) for ms in frames if ms > 50]
    print(json.dumps({"frames": len(frames), "late": late, "long_tasks": tasks}))
    assert tasks == []
    assert len(late) <= 0.001 * len(frames)


def test_control_tokens_are_marked(fake_demo: FakeDemo, open_page: OpenPage) -> None:
    engine = fake_demo.backend.engine
    engine.next_token = lambda whole: CONTROL if len(whole) % 10 == 0 else ord("x")
    page = open_page(fake_demo.address)
    start(page, "exact", max_tokens="400")
    ended(page)
    marked = page.locator(".token.control")
    assert marked.count() == 40
    assert marked.first.inner_text() == "<|end|>"
    marked.first.hover()
    assert page.locator(".detail").inner_text().startswith("control token ")


def test_tokens_that_were_taken_back_and_sampled_anew_within_one_frame(
    fake_demo: FakeDemo, open_page: OpenPage
) -> None:
    """As in a page that the browser does not draw while it is hidden."""
    backend, engine = fake_demo.backend, fake_demo.backend.engine
    engine.next_token = lambda whole: ord("a")
    page = open_page(fake_demo.address)
    start(page, "exact", max_tokens="5000")
    wait_for_tokens(page, 30)
    page.evaluate(
        """() => {
          window.draw = window.requestAnimationFrame;
          window.waiting = [];
          window.requestAnimationFrame = (call) => window.waiting.push(call);
        }"""
    )
    engine.failure = RuntimeError("the engine is dead")
    wait_until(lambda: not backend.ready)
    engine.next_token = lambda whole: ord("b")
    engine.failure = None
    fake_demo.do(lambda: backend.servings[0].open(0, backend.servings[0].new_salt(0)))
    page.wait_for_timeout(1500)
    page.evaluate(
        """() => {
          window.requestAnimationFrame = window.draw;
          window.waiting.forEach((call) => call(performance.now()));
        }"""
    )
    finish(page)
    assert set(page.locator(".text").inner_text()) == {"b"}


def test_a_proxy_with_a_path_of_its_own(fake_demo: FakeDemo, open_page: OpenPage) -> None:
    page = open_page(fake_demo.proxied)
    assert "/user/anna/proxy/" in page.url
    start(page, "exact", max_tokens="400")
    ended(page)
    with page.expect_download() as download:
        page.click("#save-trajectory")
    assert download.value.suggested_filename.endswith(".jsonl")


def test_a_name_that_is_not_known_is_told_what_to_write(
    fake_demo: FakeDemo, open_page: OpenPage
) -> None:
    page = open_page(fake_demo.address.replace("127.0.0.1", "node7"))
    assert "--hosts '[\"node7:" in page.inner_text("body")
    # A proxy that asks by a name of its own: the page comes, its socket does not, and it says why.
    fake_demo.rewritten_host = "localhost:1"
    page = open_page(fake_demo.proxied)
    wait_until(lambda: "--hosts '[\"127.0.0.1:" in page.inner_text("#engine"))


def test_a_send_says_how_far_it_is(fake_demo: FakeDemo, open_page: OpenPage) -> None:
    room = threading.Event()

    async def send(trajectory: Trajectory) -> None:
        while not room.is_set():
            await asyncio.sleep(0.01)

    fake_demo.backend.send = send  # type: ignore[method-assign]
    page = open_page(fake_demo.address)
    start(page, "exact", max_tokens="400")
    ended(page)
    button = page.locator("#send")
    button.click()
    wait_until(lambda: button.inner_text() == "Sending…")
    assert button.is_disabled()
    room.set()
    wait_until(lambda: button.inner_text() == "Sent")


def test_a_line_says_what_old_kv_swallowed(
    fake_demo: FakeDemo, open_page: OpenPage, tmp_path: Path, shots: Path
) -> None:
    page = open_page(fake_demo.address)
    start(page, "exact", "sticky", max_tokens="5000")
    wait_for_tokens(page, 20)
    assert page.locator("#measure").is_disabled()
    chip(page, "upper")
    wait_for_tokens(page, 60)
    chip(page, "lower")
    wait_for_tokens(page, 90)
    finish(page)
    page.click("#measure")
    sticky = page.locator(".lane").nth(1)
    wait_until(lambda: sticky.locator(".swallowed li").count() == 3)
    assert page.locator(".lane").nth(0).locator(".swallowed").is_hidden()
    assert page.locator("#measure").is_disabled()
    recorded = saved_trajectories(page, tmp_path)[1]
    stops = [one.stop for one in recorded.passes]
    levels = sticky.evaluate(
        "lane => [...lane.querySelectorAll('.token')].map(one =>"
        " [...one.classList].find(name => /^(w\\d|unknown)$/.test(name)) ?? '')"
    )
    assert levels == [
        "w1" if i >= stops[0] and i < stops[1] else "unknown" if i >= stops[1] else ""
        for i in range(len(recorded.response))
    ]
    page.screenshot(path=shots / "stale.png", full_page=True)
    texts = sticky.locator(".swallowed li").all_inner_texts()
    assert "25 % (3.0 of 4.0 nats left)" in texts[1]
    assert "too little effect" in texts[2]
    # An exported page shows it, too.
    other = open_page(save(page, "html", tmp_path / "session.html").as_uri())
    assert other.locator(".swallowed li").all_inner_texts()[1:] == texts[1:]


TAUGHT = (SlotState("capitals", "upper"), SlotState("as you like"))


@pytest.mark.parametrize(
    "fake_demo", [msgspec.structs.replace(CONFIG, choices={"case": TAUGHT})], indirect=True
)
def test_the_buttons_say_it_in_the_words_of_the_settings(
    fake_demo: FakeDemo, open_page: OpenPage, tmp_path: Path
) -> None:
    fake_demo.backend.engine.seconds = 0.02
    page = open_page(fake_demo.address)
    start(page, "exact", max_tokens="200")
    chips = page.locator("[data-slot=case] .chip")
    assert chips.all_inner_texts() == [state.text for state in TAUGHT]
    assert len(page.locator("[data-slot=words] .chip").all_inner_texts()) > 2
    wait_for_tokens(page, 10)
    chips.nth(1).click()
    wait_for_tokens(page, 40)
    page.fill("#slot-case", "capitals")
    page.press("#slot-case", "Enter")
    assert chips.nth(0).get_attribute("aria-pressed") == "true"  # typed, and known by its text
    wait_for_tokens(page, 80)
    finish(page)
    one = saved_trajectories(page, tmp_path)[0]
    assert [edit.text.strip() for edit in one.edits] == ["as you like", "capitals"]
