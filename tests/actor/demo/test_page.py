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
from transformers import AutoModelForCausalLM

from actor.tokenizer import load_tokenizer
from dynatok_online import attention, tiny
from dynatok_online.adherence.stale import swallowed
from dynatok_online.requirements import REQUIREMENTS
from dynatok_online.spans.blocks import KINDS, blocks, recomputed_tokens
from dynatok_online.spans.build import audit
from dynatok_online.tasks.task import SlotState
from dynatok_online.trajectory import RESPONSE, Trajectory
from dynatok_online.view.texts import TokenTexts
from dynatok_online.view.verdicts import verdict
from tests.actor.demo.conftest import Demo, OpenPage
from tests.actor.demo.driving import (
    announced,
    chip,
    ended,
    finish,
    save,
    saved_trajectories,
    shown,
    start,
    tokens,
    wait_for_tokens,
    write_on,
)

if TYPE_CHECKING:
    from playwright.sync_api import Page

pytestmark = [pytest.mark.engine, pytest.mark.browser, pytest.mark.timeout(240)]

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


def check_stale(page: Page, recorded: list[Trajectory]) -> None:
    """What the page says that old KV swallowed, in the lanes that keep any."""
    model = AutoModelForCausalLM.from_pretrained(tiny.resolve("tiny")).eval()
    attention.prepare(model)
    page.click("#measure")
    known = 0
    for number in (1, 2):
        lines = page.locator(".lane").nth(number).locator(".swallowed li")
        lines.nth(1).wait_for()
        told = lines.evaluate_all("all => all.map(one => one.dataset.share)")
        found = swallowed(model, recorded[number])
        assert len(told) == 1 + len(found) == 7
        for share, part in zip(told[1:], found, strict=True):
            if share:
                assert float(share) == pytest.approx(part.share, rel=0.01, abs=0.01)
                known += 1
            else:
                assert abs(part.fresh) < 1.01
    assert known, "every edit has too little effect"
    assert page.locator(".lane").nth(0).locator(".swallowed").is_hidden()


def test_the_whole_story_is_what_the_engine_recorded(
    demo: Demo, open_page: OpenPage, tmp_path: Path, shots: Path
) -> None:
    page = open_page(demo.address)
    start(page, "exact", "sticky", "refresh:32", "none")
    wait_for_tokens(page, 45)
    chip(page, "upper")
    write_on(page, 25)
    page.fill("#slot-words", "the forest")
    page.press("#slot-words", "Enter")
    write_on(page, 25)
    chip(page, "lower")
    write_on(page, 25)
    chip(page, "upper")  # back to the state before
    write_on(page, 25)
    page.click("#pause")
    announced(page, "Paused")
    page.wait_for_timeout(300)
    held = [tokens(page, lane) for lane in range(4)]
    page.wait_for_timeout(500)
    assert [tokens(page, lane) for lane in range(4)] == held
    chip(page, "title")
    page.click("#pause")
    write_on(page, 25)
    page.screenshot(path=shots / "writing.png")
    page.click("#undo")
    write_on(page, 25)
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
    assert [one.info["reuse"] for one in recorded] == ["exact", "sticky", "refresh:32", "none"]
    live = [shown(page, lane) for lane in range(4)]
    for lane, one in zip(live, recorded, strict=True):
        check_lane(lane, one, states)
        order = [states.index({n: t.strip() for n, t in p.states.items()}) for p in one.passes]
        assert order == [0, 1, 2, 3, 2, 4, 2]
        assert [e.text.strip() for e in one.edits] == [
            *("UPPER CASE", "the forest", "lower case", "UPPER CASE", "Title Case", "UPPER CASE"),
        ]
        assert lane["status"] == "finished"
    exact, sticky, refreshed, none = live
    assert exact["legend"]["kept"] == none["legend"]["kept"] == none["legend"]["reused"] == 0
    assert exact["legend"]["reused"] > 0
    assert sticky["legend"]["kept"] > refreshed["legend"]["kept"] > 0
    assert int(none["figures"]["recomputed"]) > int(exact["figures"]["recomputed"])
    by_cost = [int(one["figures"]["recomputed"]) for one in (exact, refreshed, sticky)]
    assert by_cost == sorted(set(by_cost), reverse=True)
    # Exact equals a fresh prompt, so equal seeds wrote the same text until edits met other tokens.
    common = min(one.passes[0].stop for one in recorded)
    assert len({tuple(one.response[:common].tolist()) for one in recorded}) == 1
    check_stale(page, recorded)
    edits = page.locator(".edits li")
    assert edits.count() == 6
    assert "“Title Case” → “UPPER CASE”" in edits.first.inner_text()

    replay = open_page(save(page, "html", tmp_path / "session.html").as_uri())
    replay.wait_for_selector(".lane")
    assert [shown(replay, lane) for lane in range(4)] == live
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
