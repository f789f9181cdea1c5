"""The state machines of delivery: by hand, and under a network that loses, repeats and restarts."""

from __future__ import annotations

import random
from collections import Counter

import pytest

from protocol.delivery.credits import Credits, Grants
from protocol.delivery.delivery import Arrival, Outbox, Receipts
from protocol.wire.messages import Backlog


def test_credits_count_what_is_reserved_and_what_is_unacknowledged() -> None:
    credits = Credits(3)
    assert credits.reserve(unacknowledged=1)
    assert credits.reserve(1)
    assert not credits.reserve(1)
    assert credits.free(0) == 1
    credits.give_back()
    assert credits.free(1) == 1
    credits.granted = 0  # the learner holds enough: what runs may end, nothing new starts
    assert credits.free(1) == 0


def test_grants_without_room_are_credits_less_what_is_held() -> None:
    grants = Grants(3)
    assert grants.window("a") == 3
    grants.stored("a")
    assert grants.window("a") == 2
    grants.accepted("a")
    assert grants.window("a") == 3


def test_who_has_few_credits_hears_of_each_and_who_has_most_of_several_together() -> None:
    grants = Grants(16)
    told = grants.window("a")
    for _ in range(16):
        grants.stored("a")
    assert not grants.worth_telling("a", told), "there is nothing more to tell"
    heard = [told := grants.window("a")]
    for _ in range(16):
        grants.accepted("a")
        if grants.worth_telling("a", told):
            heard.append(told := grants.window("a"))
    assert heard == [0, 1, 3, 5, 7, 9, 11, 13, 15]
    single = Grants(1)
    single.stored("a")
    told = single.window("a")
    single.accepted("a")
    assert single.worth_telling("a", told)


def test_room_is_shared_out_and_never_given_twice() -> None:
    grants = Grants(100)
    for actor in ("a", "b", "c"):
        grants.joined(actor)
    assert [grants.window(actor, 10) for actor in ("a", "b", "c")] == [4, 4, 2]
    grants.stored("a")  # it may go on with three, and nobody gets the one that is held
    assert [grants.window(actor, 10) for actor in ("a", "b", "c")] == [3, 4, 2]
    grants.left("b")
    assert grants.window("c", 10) == 5, "half of what is free"
    grants.accepted("a")
    assert grants.window("a", 9) == 4, "it was trained on, so there is room for nine"


def test_grants_never_exceed_the_room_whatever_happens() -> None:
    draw = random.Random(0)
    grants = Grants(20)
    running = dict.fromkeys("abc", 0)
    windows = dict.fromkeys("abc", 0)
    room = waiting = 0
    for actor in running:
        grants.joined(actor)
    for _ in range(5000):
        actor = draw.choice("abc")
        kind = draw.randrange(4)
        if kind == 0 and running[actor] < windows[actor]:
            running[actor] += 1
        elif kind == 1 and running[actor]:
            running[actor] -= 1
            waiting += 1
            grants.stored(actor)
            windows[actor] = grants.window(actor, room)
        elif kind == 2 and grants.waiting(actor):
            waiting -= 1
            room = max(0, room - 1)  # taken
            grants.accepted(actor)
            windows[actor] = grants.window(actor, room)
        elif kind == 3:
            room += draw.choice((0, 0, 0, 8))  # a version was published
            windows[actor] = grants.window(actor, room)
        assert sum(running.values()) + waiting <= room
    assert room > 100


def test_an_outbox_keeps_until_acknowledged() -> None:
    outbox = Outbox(5)
    for _ in range(3):
        outbox.put(5, outbox.number(), b"x")
    outbox.put(4, 7, b"old")
    assert [(e, s) for e, s, _ in outbox.frames()] == [(4, 7), (5, 1), (5, 2), (5, 3)]
    assert outbox.streams() == (Backlog(4, 7), Backlog(5, 1))
    assert outbox.acknowledge(5, 2) == 2
    assert outbox.acknowledge(5, 2) == 0
    assert [s for _, s, _ in outbox.frames(5)] == [3]
    assert outbox.acknowledge(4, 9) == 1
    assert outbox.acknowledge(5, 3) == 1
    assert outbox.streams() == (Backlog(5, 4),), "nothing left, and 4 comes next"


def test_each_is_taken_once_and_in_order() -> None:
    receipts = Receipts()
    assert receipts.offer("a", 1, 1) is Arrival.UNKNOWN
    assert receipts.hello("a", 1, ()) == 0
    assert receipts.offer("a", 1, 2) is Arrival.GAP
    assert receipts.offer("a", 1, 1) is Arrival.NEW
    receipts.add("a", 1, 1)
    assert receipts.offer("a", 1, 1) is Arrival.DUPLICATE
    assert receipts.offer("b", 1, 1) is Arrival.UNKNOWN


def test_what_was_held_is_known_for_ever() -> None:
    """An actor's journal forgets by segments: a later process may bring an old epoch again."""
    receipts = Receipts()
    receipts.hello("a", 1, (Backlog(1, 1),))
    receipts.add("a", 1, 1)
    receipts.hello("a", 2, (Backlog(2, 1),))
    assert receipts.offer("a", 1, 1) is Arrival.UNKNOWN, "this process has not named it"
    restarted = Receipts()
    restarted.load(receipts.table())
    restarted.hello("a", 2, (Backlog(2, 1),))
    restarted.hello("a", 3, (Backlog(1, 1), Backlog(3, 1)))
    assert restarted.offer("a", 1, 1) is Arrival.DUPLICATE


def test_a_newer_process_brings_what_the_older_left() -> None:
    receipts = Receipts()
    receipts.hello("a", 1, ())
    receipts.add("a", 1, 1)
    assert receipts.hello("a", 2, (Backlog(1, 2), Backlog(2, 1))) == 0
    assert receipts.offer("a", 1, 2) is Arrival.NEW
    assert receipts.hello("a", 1, ()) is None, "the old process is refused"
    assert receipts.hello("a", 3, (Backlog(3, 1),)) == 0
    assert receipts.offer("a", 1, 2) is Arrival.UNKNOWN, "a replay of what nobody holds any more"


def test_what_this_side_forgot_is_counted() -> None:
    receipts = Receipts()
    receipts.hello("a", 1, ())
    receipts.add("a", 1, 1)
    assert receipts.hello("a", 1, (Backlog(1, 5),)) == 3
    assert receipts.offer("a", 1, 5) is Arrival.NEW


def test_a_table_is_all_that_receipts_know() -> None:
    receipts = Receipts()
    receipts.hello("a", 1, ())
    receipts.add("a", 1, 9)
    again = Receipts()
    again.load(receipts.table())
    assert again.offer("a", 1, 9) is Arrival.DUPLICATE
    assert again.hello("a", 0, ()) is None


@pytest.mark.parametrize("seed", range(40))
def test_nothing_lost_nothing_twice_on_a_bad_network(seed: int) -> None:
    draw = random.Random(seed)
    receipts, outbox, epoch = Receipts(), Outbox(1), 1
    receipts.hello("a", epoch, outbox.streams())
    disk: list[tuple[int, int, bytes]] = []
    wire: list[tuple[int, int, bytes]] = []
    acknowledgements: list[tuple[int, int]] = []
    sent: list[bytes] = []
    trained: list[bytes] = []
    for step in range(400):
        action = draw.randrange(10) if step < 360 else 4
        if action < 3:
            frame = str(len(sent)).encode()
            outbox.put(epoch, outbox.number(), frame)
            sent.append(frame)
            wire.append((epoch, outbox.sequence, frame))
        elif action == 3 and wire:
            wire.pop(draw.randrange(len(wire)))  # lost on the way
        elif action == 4:
            wire.extend(outbox.frames())  # sent again
        elif action == 5 and acknowledgements:
            acknowledgements.pop(0)
        elif action == 6 and draw.random() < 0.3:  # the actor is killed, its journal stays
            disk = list(outbox.frames())
            epoch += 1
            outbox = Outbox(epoch)
            for one in disk:
                outbox.put(*one)
            wire = wire if draw.random() < 0.5 else []
            receipts.hello("a", epoch, outbox.streams())
        elif action == 7 and draw.random() < 0.3:  # the learner is killed, its journal stays
            table = receipts.table()
            receipts = Receipts()
            receipts.load(table)
            receipts.hello("a", epoch, outbox.streams())
        for one_epoch, sequence, frame in wire[: draw.randint(0, 20)]:
            wire.pop(0)
            if receipts.offer("a", one_epoch, sequence) is Arrival.NEW:
                receipts.add("a", one_epoch, sequence)
                trained.append(frame)
            acknowledgements.append((one_epoch, receipts.last("a", one_epoch)))
        while acknowledgements and draw.random() < 0.8:
            outbox.acknowledge(*acknowledgements.pop(0))
    for one_epoch, sequence, frame in [*wire, *outbox.frames()]:
        if receipts.offer("a", one_epoch, sequence) is Arrival.NEW:
            receipts.add("a", one_epoch, sequence)
            trained.append(frame)
    assert sorted(trained, key=int) == sent, "each exactly once"


def test_more_actors_than_room_take_turns():
    """Each sends as soon as it may: nobody is served twice before all were once."""
    grants = Grants(credits=16)
    names = [f"actor-{number}" for number in range(100)]
    room = 10
    for name in names:
        grants.joined(name)
    granted = {name: grants.window(name, room) for name in names}
    assert sum(granted.values()) == room
    served = Counter(dict.fromkeys(names, 0))
    for _ in range(5):
        for name in [one for one in names if granted[one]]:
            grants.stored(name)
            grants.accepted(name)
            granted[name] = grants.window(name, room)
            served[name] += 1
            for fed in grants.feed(lambda actor: room):
                granted[fed] = grants.window(fed, room)
            assert sum(granted.values()) <= room
    # Rounds of a hundred turns are not whole here: one of difference is fair.
    assert max(served.values()) - min(served.values()) <= 1


def test_one_without_room_does_not_hold_up_those_behind_it():
    """Who serves old weights has less room than others: what it samples would be too old."""
    grants = Grants(credits=4)
    for name in ("old", "new", "busy"):
        grants.joined(name)
    assert grants.window("busy", 1) == 1
    assert grants.window("old", 0) == grants.window("new", 1) == 0
    grants.stored("busy")
    assert grants.feed(lambda actor: 1) == [], "it is stored and not trained on"
    grants.accepted("busy")
    assert grants.feed(lambda actor: 0 if actor == "old" else 1) == ["new"]
    assert grants.window("new", 1) == 1
    grants.left("new")
    assert grants.feed(lambda actor: 1) == ["old"]


def test_running_sums_are_sums():
    """Whatever happens in whatever order, nothing is counted twice or forgotten."""
    draw = random.Random(3)
    grants = Grants(credits=3)
    names = ["a", "b", "c", "d"]
    for _ in range(5000):
        name = draw.choice(names)
        what = draw.choice(("joined", "left", "stored", "accepted", "window", "feed"))
        if what == "window":
            grants.window(name, draw.randrange(6))
        elif what == "feed":
            grants.feed(dict.fromkeys(names, draw.randrange(6)).__getitem__)
        else:
            getattr(grants, what)(name)
        assert grants._stored == sum(grants._waiting.values())
        assert grants._flying == sum(grants._granted.values())
        assert min([0, *grants._granted.values(), *grants._waiting.values()]) == 0
