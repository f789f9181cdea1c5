"""The page in a real browser: what it shows is what the engine recorded."""

from __future__ import annotations

import json
import os
import re
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import pytest

from actor.tokenizer import load_tokenizer
from dynatok_online import tiny
from dynatok_online.data.storage import read_trajectories
from dynatok_online.requirements import REQUIREMENTS
from dynatok_online.spans.blocks import KINDS, blocks, recomputed_tokens
from dynatok_online.spans.build import audit
from dynatok_online.tasks.task import SlotState
from dynatok_online.trajectory import RESPONSE, Trajectory
from dynatok_online.view.texts import TokenTexts
from dynatok_online.view.verdicts import verdict
from tests.actor.demo.conftest import Demo, FakeDemo, OpenPage, wait_until

if TYPE_CHECKING:
    from playwright.sync_api import Page

pytestmark = [pytest.mark.engine, pytest.mark.browser, pytest.mark.timeout(240)]

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


def announced(page: Page, what: str) -> None:
    """Wait until a screen reader has been told so."""
    wait_until(lambda: page.locator("#announce").text_content() == what, 60)


def start(page: Page, *lanes: str, placement: str = "head", **settings: str) -> None:
    """Choose lanes and settings, and press Start."""
    page.wait_for_selector("#start:not([disabled])", timeout=90_000)
    for name in ("exact", "sticky", "none"):
        page.locator(f"[name=lane][value={name}]").set_checked(name in (lanes or ("exact",)))
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


def save(page: Page, what: str, path: Path) -> Path:
    with page.expect_download() as download:
        page.click(f"#save-{what}")
    download.value.save_as(path)
    return path


def saved_trajectories(page: Page, folder: Path) -> list[Trajectory]:
    return list(read_trajectories(save(page, "trajectory", folder / "session.jsonl")))


BY_TEXT = {one.text: one.name for one in REQUIREMENTS.values()}


def check_lane(lane: dict[str, Any], recorded: Trajectory, states: list[dict[str, str]]) -> None:
    """What a lane shows against what the engine recorded; `states` in order of appearance."""
    assert not audit(recorded)
    tokenizer = load_tokenizer(tiny.resolve("tiny"))
    texts = TokenTexts(tokenizer.decode)
    texts.extend(recorded.response.tolist())
    bounds = [(one.start, one.stop) for one in recorded.passes]
    seen: dict[int, str] = {}
    for k, one in enumerate(recorded.passes):
        slots = {name: SlotState(text, BY_TEXT[text.strip()]) for name, text in one.states.items()}
        found = verdict(texts, bounds, k, slots)
        assert found["scores"] == one.scores
        bad = {i for _, a, b, ok in found["units"] if not ok for i in range(a, b + 1)}
        state = states.index({name: text.strip() for name, text in one.states.items()})
        for i in range(one.start, one.stop):
            text, colour, violated, background = lane["tokens"][i]
            assert text == tokenizer.control.get(int(recorded.response[i]), texts.texts[i])
            assert (colour, violated) == (state % 8, i in bad), f"token {i}"
            assert seen.setdefault(state, background) == background
    assert len(set(seen.values())) == len(seen), "two states have one colour"
    kinds = [[block.kind for block in blocks(recorded, k)] for k in range(len(bounds))]
    assert lane["rows"] == kinds
    flat = [kind for row in kinds for kind in row]
    assert lane["legend"] == {kind: flat.count(kind) for kind in KINDS}
    again = sum(recomputed_tokens(recorded, k) for k in range(len(bounds)))
    cached = sum(one.num_cached_tokens for one in recorded.passes)
    held = sum(recorded.kv_length(k) for k in range(len(bounds)))
    assert lane["figures"]["tokens"] == str(len(recorded.response))
    assert lane["figures"]["recomputed"] == str(again)
    assert lane["figures"]["reuse"] == f"{100 * cached / held:.0f} %"
    for state, _, count, _ in lane["states"]:
        under = [
            one.stop - one.start
            for one in recorded.passes
            if {n: t.strip() for n, t in one.states.items()} == states[state]
        ]
        assert int(count) == sum(under)


def test_the_whole_story_is_what_the_engine_recorded(
    demo: Demo, open_page: OpenPage, tmp_path: Path, shots: Path
) -> None:
    page = open_page(demo.address)
    start(page, "exact", "sticky", "none")
    wait_for_tokens(page, 45)
    chip(page, "upper")
    wait_for_tokens(page, 90)
    page.fill("#slot-words", "the forest")
    page.press("#slot-words", "Enter")
    wait_for_tokens(page, 130)
    chip(page, "lower")
    wait_for_tokens(page, 160)
    chip(page, "upper")  # back to the state before
    wait_for_tokens(page, 190)
    page.click("#pause")
    announced(page, "Paused")
    page.wait_for_timeout(300)
    held = [tokens(page, lane) for lane in range(3)]
    page.wait_for_timeout(500)
    assert [tokens(page, lane) for lane in range(3)] == held
    chip(page, "title")
    page.click("#pause")
    wait_for_tokens(page, held[0] + 25)
    page.screenshot(path=shots / "writing.png")
    page.click("#undo")
    wait_for_tokens(page, held[0] + 50)
    finish(page)
    page.screenshot(path=shots / "lanes.png", full_page=True)

    case, words, digits = "lower case", "the sea", "as digits"
    states = []
    for case, words in (
        ("lower case", "the sea"),
        ("UPPER CASE", "the sea"),
        ("UPPER CASE", "the forest"),
        ("lower case", "the forest"),
        ("Title Case", "the forest"),
    ):
        states.append({"case": case, "words": words, "numbers": digits})
    recorded = saved_trajectories(page, tmp_path)
    assert [one.info["reuse"] for one in recorded] == ["exact", "sticky", "none"]
    live = [shown(page, lane) for lane in range(3)]
    for lane, one in zip(live, recorded, strict=True):
        check_lane(lane, one, states)
        order = [states.index({n: t.strip() for n, t in p.states.items()}) for p in one.passes]
        assert order == [0, 1, 2, 3, 2, 4, 2]
        assert [e.text.strip() for e in one.edits] == [
            *("UPPER CASE", "the forest", "lower case", "UPPER CASE", "Title Case", "UPPER CASE"),
        ]
        assert lane["status"] == "finished"
    exact, sticky, none = live
    assert exact["legend"]["kept"] == none["legend"]["kept"] == none["legend"]["reused"] == 0
    assert exact["legend"]["reused"] > 0
    assert sticky["legend"]["kept"] > 0
    assert int(none["figures"]["recomputed"]) > int(exact["figures"]["recomputed"])
    assert int(exact["figures"]["recomputed"]) > int(sticky["figures"]["recomputed"])
    # Exact equals a fresh prompt, so equal seeds wrote the same text until edits met other tokens.
    common = min(one.passes[0].stop for one in recorded)
    assert len({tuple(one.response[:common].tolist()) for one in recorded}) == 1
    edits = page.locator(".edits li")
    assert edits.count() == 6
    assert "“Title Case” → “UPPER CASE”" in edits.first.inner_text()

    replay = open_page(save(page, "html", tmp_path / "session.html").as_uri())
    replay.wait_for_selector(".lane")
    assert [shown(replay, lane) for lane in range(3)] == live
    replay.screenshot(path=shots / "replay.png", full_page=True)


def test_late_slots_leave_the_response_in_the_cache(
    demo: Demo, open_page: OpenPage, tmp_path: Path
) -> None:
    page = open_page(demo.address)
    start(page, "exact", placement="late", max_tokens="200", seed="3")
    wait_for_tokens(page, 60)
    chip(page, "upper")
    wait_for_tokens(page, 110)
    chip(page, "forest")
    ended(page)
    (one,) = saved_trajectories(page, tmp_path)
    assert one.info["placement"] == "late"
    # Each edit moves the slots behind what was written: that stays where it then stands.
    before = one.passes[2].layout[: one.passes[2].layout.index(RESPONSE)]
    head = sum(len(one.pieces[piece]) for piece in before)
    assert one.passes[2].num_cached_tokens >= (head + one.passes[0].stop) // 32 * 32
    assert shown(page)["rows"] == [[b.kind for b in blocks(one, k)] for k in range(3)]


def test_pointing_ties_blocks_and_tokens(demo: Demo, open_page: OpenPage, tmp_path: Path) -> None:
    page = open_page(demo.address)
    start(page, "exact", max_tokens="120")
    wait_for_tokens(page, 60)
    chip(page, "forest")
    ended(page)
    (one,) = saved_trajectories(page, tmp_path)
    first = one.passes[1].start
    page.locator(".token").nth(first).hover()
    detail = page.locator(".detail").inner_text()
    assert f"token {first} " in detail
    assert f"id {one.response[first]} " in detail
    logprob = re.search(r"logprob (-?[0-9.]+)", detail)
    assert logprob is not None
    assert float(logprob[1]) == pytest.approx(one.logprobs[first], abs=1e-3)
    assert "pass 1 · state 1 · weights 0" in detail
    tied = page.evaluate(
        "[...document.querySelectorAll('.cells i.tied')].map(cell => cell.at)",
    )
    assert tied == [[1, one.fed_length(1) // 32]]
    # The block that holds this token's position in pass 1 holds these response tokens.
    page.locator(".row").nth(1).locator("i").nth(tied[0][1]).hover()
    start_at = tied[0][1] * 32 - (one.fed_length(1) - first)
    expected = list(range(max(0, start_at), min(start_at + 32, len(one.response))))
    found = page.evaluate("[...document.querySelectorAll('.token.tied')].map(token => token.index)")
    assert found == expected
    assert "positions" in page.locator(".detail").inner_text()


def test_the_keyboard_alone_is_enough(demo: Demo, open_page: OpenPage, tmp_path: Path) -> None:
    page = open_page(demo.address)
    page.wait_for_selector("#start:not([disabled])", timeout=90_000)

    def tab_to(selector: str) -> None:
        for _ in range(60):
            if page.evaluate("s => document.activeElement?.matches(s)", selector):
                outline = page.evaluate(
                    "getComputedStyle(document.activeElement).outlineStyle",
                )
                assert outline != "none", f"{selector} shows no focus"
                return
            page.keyboard.press("Tab")
        raise AssertionError(f"Tab does not reach {selector}")

    page.keyboard.press("Control+Enter")
    wait_for_tokens(page, 10)
    tab_to("[data-requirement=upper]")
    page.keyboard.press("Space")
    wait_for_tokens(page, 40)
    tab_to("#slot-words")
    page.keyboard.press("Control+A")
    page.keyboard.type("the city")
    page.keyboard.press("Enter")
    wait_for_tokens(page, 70)
    tab_to(".response")
    page.keyboard.press("Home")
    page.keyboard.press("ArrowRight")
    assert "token 1 " in page.locator(".detail").inner_text()
    tab_to(".strip")
    page.keyboard.press("ArrowRight")
    assert "block 0" in page.locator(".detail").inner_text()
    page.keyboard.press("Shift+Tab")
    for _ in range(60):
        if page.evaluate("document.activeElement.id") == "stop":
            break
        page.keyboard.press("Shift+Tab")
    page.keyboard.press("Enter")
    ended(page)
    (one,) = saved_trajectories(page, tmp_path)
    assert [edit.text.strip() for edit in one.edits] == ["UPPER CASE", "the city"]


def test_a_reload_in_the_middle_and_a_second_tab_lose_nothing(
    demo: Demo, open_page: OpenPage, tmp_path: Path
) -> None:
    page = open_page(demo.address)
    start(page, "exact", max_tokens="200", seed="5")
    wait_for_tokens(page, 30)
    chip(page, "upper")
    wait_for_tokens(page, 60)
    page.reload()
    second = open_page(demo.address)
    wait_for_tokens(second, 90)
    chip(second, "lower")
    page.context.set_offline(True)
    page.wait_for_timeout(300)
    page.context.set_offline(False)
    ended(page)
    ended(second)
    (one,) = saved_trajectories(page, tmp_path)
    assert len(one.response) == tokens(page) == tokens(second)
    assert shown(page) == shown(second)
    assert shown(page)["rows"] == [[b.kind for b in blocks(one, k)] for k in range(len(one.passes))]


def test_an_address_carries_prompt_slots_and_settings(demo: Demo, open_page: OpenPage) -> None:
    page = open_page(demo.address)
    page.wait_for_selector("#start:not([disabled])", timeout=90_000)
    if not page.locator("#template").is_visible():
        page.click("summary")
    page.fill("#template", "Write {{tone}} & <b>bold</b>.\n{{case}}")
    page.fill("#slot-tone", "10 % = löwe + #1")
    page.press("#slot-tone", "Enter")
    page.fill("#seed", "77")
    page.press("#seed", "Tab")
    link = page.evaluate("location.href")
    assert "token=" not in link
    other = open_page(demo.address + "#" + link.partition("#")[2])
    other.wait_for_selector("#slot-tone", state="attached")
    # A session that was written before stands in every tab; the address is what Start takes.
    assert other.input_value("#template") == "Write {{tone}} & <b>bold</b>.\n{{case}}"
    assert other.input_value("#slot-tone") == "10 % = löwe + #1"
    assert other.input_value("#seed") == "77"


def test_a_dead_engine_is_said_and_comes_back(
    demo: Demo, open_page: OpenPage, tmp_path: Path
) -> None:
    page = open_page(demo.address)
    start(page, "exact", max_tokens="200", seed="9")
    wait_for_tokens(page, 30)
    chip(page, "upper")
    wait_for_tokens(page, 60)
    (core,) = [
        child
        for child in psutil.Process(demo.process.pid).children(recursive=True)
        if "EngineCore" in " ".join(child.cmdline()) or "EngineCore" in child.name()
    ]
    before = [text for text, *_ in shown(page)["tokens"]]
    core.kill()
    page.wait_for_selector("#engine[data-state=dead]", timeout=30_000)
    assert "has died" in page.inner_text("#engine")
    assert page.is_disabled("#start")
    page.wait_for_selector("#engine[data-state=ready]", timeout=120_000)
    ended(page)
    (one,) = saved_trajectories(page, tmp_path)
    assert len(one.response) == tokens(page) == 200 or one.passes[-1].finish_reason == "stop"
    assert not audit(one)
    # What had been written under the first state stands; the pass that died was sampled again.
    first = one.passes[0].stop
    assert [text for text, *_ in shown(page)["tokens"]][:first] == before[:first]
    assert [edit.text.strip() for edit in one.edits] == ["UPPER CASE"]


# On the fake engine: what the model writes can be chosen.

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
    page.fill("#slot-case", HOSTILE[:60].replace("\x00", ""))
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
    start(page, "exact", "sticky", "none", max_tokens="700")
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


@pytest.mark.slow
def test_an_edit_is_on_the_screen_in_time(demo: Demo, open_page: OpenPage) -> None:
    """From the key press to the frame that shows the first token; wants a quiet machine."""
    page = open_page(demo.address)
    start(page, "exact", max_tokens="850")
    for number in range(40):
        page.wait_for_timeout(400)
        chip(page, ("upper", "lower", "title")[number % 3])
    page.wait_for_timeout(500)
    finish(page)
    seen = page.evaluate(
        "[...document.querySelectorAll('[data-edit]')].map(one => Number(one.dataset.seenMs))"
    )
    assert len(seen) == 40
    seen.sort()
    print(json.dumps({"median_ms": seen[20], "p95_ms": seen[37], "worst_ms": seen[-1]}))
    assert seen[37] < 150


@pytest.mark.skipif("DYNATOK_PICTURE" not in os.environ, reason="draws the picture of the README")
def test_picture(demo: Demo, open_page: OpenPage) -> None:
    """DYNATOK_PICTURE=docs/demo.png python -m pytest -m browser -k picture"""
    page = open_page(demo.address, viewport={"width": 1500, "height": 960}, device_scale_factor=1.3)
    start(page, "exact", "sticky", "none", max_tokens="400", seed="4")
    for requirement, count in (("upper", 60), ("forest", 120), ("lower", 175), ("upper", 230)):
        wait_for_tokens(page, count)
        chip(page, requirement)
    wait_for_tokens(page, 290)
    page.click("#pause")
    time.sleep(0.5)
    page.locator(".lane").nth(1).locator(".row").nth(3).locator("i").nth(6).hover()
    page.screenshot(path=os.environ["DYNATOK_PICTURE"])
    finish(page)
