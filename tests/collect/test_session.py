"""What is shown to whom, and what is stored: order, blinding, repeats, overlap, undo."""

from __future__ import annotations

import json
import random
import secrets
import stat
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alignkit.collect.choice import SequentialTest, disagreement, entropy, uncertainty, worth_asking
from alignkit.collect.items import Item, item_sha256, pool_of, present, ticket_of
from alignkit.collect.log import Conflict, EventLog, live, new_id, rankings_from_events, read_events
from alignkit.collect.order import order_text, parse_order
from alignkit.collect.plan import Settings, plan_for
from alignkit.collect.secret import Marks, ensure_secret, secret_file
from alignkit.collect.session import Collection, Session, Submission
from alignkit.data.records import Candidates
from alignkit.errors import DataError, RecipeError
from alignkit.store.visible import visible
from tests.collect_data import collecting, item, items, lines


def vote(session: Session, order: str = "1", **fields: object) -> str:
    shown = session.next()
    assert shown is not None
    answer = Submission(new_id(), shown.ticket, order=order, **fields)  # type: ignore[arg-type]
    return session.submit(answer).event_id


# ------------------------------------------------------------------------------------ the order


@pytest.mark.parametrize(
    ("text", "places", "ranks"),
    [
        ("2>1=3", 3, {2: 1, 1: 2, 3: 2}),
        (" 2 > 1 = 3 ", 3, {2: 1, 1: 2, 3: 2}),
        ("213", 3, {2: 1, 1: 2, 3: 3}),
        ("1", 2, {1: 1, 2: 2}),
        ("2", 2, {2: 1, 1: 2}),
        ("1=2", 2, {1: 1, 2: 1}),
        ("3>*", 4, {3: 1, 1: 2, 2: 2, 4: 2}),
        ("*>2", 3, {1: 1, 3: 1, 2: 2}),
        ("4>1", 5, {4: 1, 1: 2}),
        ("9=8>7", 9, {9: 1, 8: 1, 7: 2}),
    ],
)
def test_an_order_is_read(text: str, places: int, ranks: dict[int, int]) -> None:
    assert parse_order(text, places) == ranks


@pytest.mark.parametrize(
    ("text", "places", "reason"),
    [
        ("", 3, "no order given"),
        ("2", 3, "compares nothing"),
        ("2>2", 3, "2 occurs twice"),
        ("4>1", 3, "'4' is not one of 1 to 3"),
        ("0>1", 3, "'0' is not one of"),
        (">1", 3, "no number before it"),
        ("1>>2", 3, "no number before it"),
        ("1>2>", 3, "ends in '>'"),
        ("1>2>3>*", 3, "every place is named"),
        ("a", 3, "'a' is not one of"),
        ("²>1", 3, "is not one of"),
    ],
)
def test_a_wrong_order_is_explained(text: str, places: int, reason: str) -> None:
    with pytest.raises(DataError, match=reason):
        parse_order(text, places)


@given(st.integers(2, 9).flatmap(lambda k: st.lists(st.integers(1, k), min_size=k, max_size=k)))
def test_every_ranking_can_be_typed(levels: list[int]) -> None:
    dense = {level: rank for rank, level in enumerate(sorted(set(levels)), start=1)}
    ranks = {place: dense[level] for place, level in enumerate(levels, start=1)}
    assert parse_order(order_text(ranks), len(levels)) == ranks


@given(st.text(max_size=30), st.integers(2, 9))
def test_any_text_is_an_order_or_an_explained_mistake(text: str, places: int) -> None:
    try:
        ranks = parse_order(text, places)
    except DataError:
        return
    assert len(ranks) >= 2
    assert set(ranks) <= set(range(1, places + 1))


# ------------------------------------------------------------------------------- what is shown


def test_acting_and_invisible_characters_are_spelled_out() -> None:
    assert visible("a\x1b[2Jb\r\nc\td") == "a⟨U+001B⟩[2Jb\nc\td"
    assert visible("x\u202ey\u2066z\u200b\ud800\U000e0041") == (
        "x⟨U+202E⟩y⟨U+2066⟩z⟨U+200B⟩⟨U+D800⟩⟨U+E0041⟩"
    )
    assert visible("नमस्‍ते 👩‍🚀 é 日本") == "नमस्‍ते 👩‍🚀 é 日本"


@given(st.text(max_size=200))
def test_nothing_visible_acts_on_a_terminal(text: str) -> None:
    shown = visible(text)
    assert not any(
        (ord(sign) < 32 and sign not in "\n\t") or 0x7F <= ord(sign) <= 0x9F for sign in shown
    )
    assert not any(
        sign in shown for sign in "\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"
    )


def test_identical_answers_are_one_place_and_share_its_rank(tmp_path: Path) -> None:
    with collecting(tmp_path / "r.jsonl", [item(1, ["same", "other", " same\n"])]) as collection:
        session = collection.session("ann")
        shown = session.next()
        assert shown is not None
        assert sorted(shown.slots) == [("c0", "c2"), ("c1",)]
        other = shown.shown.index("c1") + 1
        vote(session, str(other))
    event = read_events(tmp_path / "r.jsonl")[0]
    assert event.ranks == {"c1": 1, "c0": 2, "c2": 2}
    assert event.action == "pair"


def test_no_model_score_gold_or_id_reaches_a_surface(tmp_path: Path) -> None:
    from alignkit.collect.web.server import screen

    record = item(
        "gpt4-secret-id",
        ["x", "y"],
        prompt="?",
        gold={"c0": 1, "c1": 2},
        extra={"k": "secret-extra"},
    )
    with collecting(tmp_path / "r.jsonl", [record]) as collection:
        shown = json.dumps(screen(collection.session("ann")))
    for secret in ("secret", "gpt4", "gold", "c0", "model", "score", "sha256"):
        assert secret not in shown


def test_the_order_depends_on_seed_item_annotator_and_repeat_only() -> None:
    one = pool_of(items(1, 5)).items["item-0"]
    fixed = present(one, Marks(1), annotator="ann").shown
    assert present(one, Marks(1), annotator="ann").shown == fixed
    others = [
        present(one, Marks(2), annotator="ann").shown,
        present(one, Marks(1), annotator="ben").shown,
        present(one, Marks(1), annotator="ann", showing=1).shown,
        present(one, Marks(1, b"secret"), annotator="ann").shown,
    ]
    assert all(sorted(other) == sorted(fixed) for other in others)
    assert any(other != fixed for other in others)


@pytest.mark.parametrize("secret", [b"", b"secret"])
def test_each_place_is_as_likely_for_each_candidate(secret: bytes) -> None:
    pool = pool_of(items(2000))
    marks = Marks(3, secret)
    firsts = Counter(present(i, marks, annotator="ann").shown[0] for i in pool.items.values())
    assert abs(firsts["c0"] - 1000) < 135  # six standard deviations of a fair coin


def test_order_and_tickets_tell_nothing_without_the_secret(tmp_path: Path) -> None:
    """All that an annotator can know (ids, cids, seed, the program) says nothing of who is who."""
    records = items(400)
    logs = [tmp_path / "one.jsonl", tmp_path / "other.jsonl"]
    orders, tickets, plans = [], [], []
    for log in logs:
        secret_file(log).write_text(f"{secrets.token_hex(32)}\n")
        with collecting(log, records, order="random", repeat=0.1) as collection:
            session = collection.session("ann")
            shown = [session.presentation(ticket) for ticket in session.tickets]
            orders.append([presentation.shown for presentation in shown])
            tickets.append(set(session.tickets))
            plans.append(session.plan)
    # Two collections of the same items and seed: as much in common as two fair coins.
    same = sum(one == other for one, other in zip(*orders, strict=True))
    assert abs(same - 400) < 90  # six standard deviations; 800 showings, repeats swapped
    assert not tickets[0] & tickets[1]
    assert plans[0] != plans[1]
    pool = pool_of(records).items
    guessed = {ticket_of(Marks(17), name, "ann", n) for name in pool for n in (0, 1)}
    assert not guessed & tickets[0]


def test_the_secret_stands_beside_the_log_for_its_owner_alone(tmp_path: Path) -> None:
    log = tmp_path / "r.jsonl"
    with collecting(log, items(2)) as collection:
        vote(collection.session("ann"), "1")
        first = collection.session("ann").next()
    file = secret_file(log)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert len(bytes.fromhex(file.read_text().strip())) == 32
    with collecting(log, items(2)) as collection:  # the same again after a restart
        again = collection.session("ann").next()
        assert first is not None and again is not None
        assert (again.ticket, again.shown) == (first.ticket, first.shown)
        assert collection.reports == []
    file.chmod(0o644)
    with collecting(log, items(2)) as collection:
        assert collection.reports == [
            f"{file}: other users of this machine can read it; run chmod 600"
        ]
    file.write_text("no secret")
    with pytest.raises(DataError, match="does not contain the secret"), collecting(log, items(2)):
        pass


def test_processes_that_make_the_secret_at_once_agree_on_it(tmp_path: Path) -> None:
    log = tmp_path / "r.jsonl"
    with ThreadPoolExecutor(8) as pool:
        made = list(pool.map(lambda _: ensure_secret(log), range(64)))
    assert len(set(made)) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["r.jsonl.secret"]


def test_a_log_from_before_secrets_goes_on_where_it_was(tmp_path: Path) -> None:
    log, records = tmp_path / "r.jsonl", items(5, 3)
    with EventLog(log) as opened:
        public = Collection(
            pool_of(records), opened, Settings(annotators=("ann",)), marks=Marks(17)
        )
        for order in ("2>1=3", "1>*", "3>2>1"):
            vote(public.session("ann"), order)
    before = [dict(line["ranks"]) for line in lines(log)]
    with collecting(log, records) as collection:
        session = collection.session("ann")
        assert session.progress().done == 3
        session.undo(new_id())
        shown, previous = session.next(), session.previous()
        assert shown is not None and previous is not None
        # The undone answer is offered in the places that its candidates have now.
        ranks = shown.ranks_by_cid(parse_order(previous.order, 3))
        assert ranks == before[2]
        vote(session, "1>2>3")
        assert session.progress().done == 3


@given(st.integers(0, 500), st.integers(2, 9))
@settings(max_examples=60)
def test_a_repeat_never_comes_in_the_first_order(seed: int, answers: int) -> None:
    one = pool_of(items(1, answers)).items["item-0"]
    first = present(one, Marks(seed), annotator="ann")
    again = present(one, Marks(seed), annotator="ann", showing=1)
    assert again.shown != first.shown
    if answers == 2:
        assert again.shown == first.shown[::-1]


def test_items_that_cannot_be_ranked_are_named() -> None:
    pool = pool_of([item(1, ["same", "same "]), item(2), item(2)])
    assert list(pool.items) == ["item-2"]
    assert "only one distinct completion" in pool.left_out[0]
    assert "is a duplicate" in pool.left_out[1]
    with pytest.raises(DataError, match="two different items have the id"):
        pool_of([item(1), item(1, ["a", "b"])])
    with pytest.raises(DataError, match="10 different completions"):
        pool_of(items(1, 10))


def test_the_hash_of_an_item_is_of_its_text() -> None:
    assert item_sha256(item(1)) == item_sha256(item(1, models=["x", "y"]))
    assert item_sha256(item(1)) != item_sha256(item(1, ["yes", "no!"]))


# ------------------------------------------------------------------------------------ the plan


def test_repeats_come_once_and_well_behind_their_first_showing() -> None:
    pool = pool_of(items(100))
    plan = plan_for("ann", pool.items, Settings(repeat=0.05), Marks(17))
    assert Counter(showing for _, showing in plan) == {0: 100, 1: 5}
    for name, showing in plan:
        if showing:
            assert plan.index((name, 1)) - plan.index((name, 0)) >= 10


def test_round_robin_gives_every_item_to_as_many_annotators_as_wanted() -> None:
    pool = pool_of(items(30))
    crew = ("a", "b", "c")
    wanted = Settings(assign="round-robin", overlap=2, annotators=crew)
    shares = {name: plan_for(name, pool.items, wanted, Marks(17)) for name in crew}
    assert [len(share) for share in shares.values()] == [20, 20, 20]
    assert set(Counter(n for share in shares.values() for n, _ in share).values()) == {2}


def test_settings_that_cannot_work_are_refused() -> None:
    with pytest.raises(RecipeError, match="did you mean 'random'"):
        Settings(order="randm")
    with pytest.raises(RecipeError, match="too few for an overlap"):
        Settings(assign="round-robin", overlap=3, annotators=("a",))
    with pytest.raises(RecipeError, match="between 0 and 1"):
        Settings(repeat=5)


def test_with_an_overlap_of_one_no_item_is_ranked_twice(tmp_path: Path) -> None:
    draw = random.Random(1)
    with collecting(tmp_path / "r.jsonl", items(20), "a", "b", "c", overlap=1) as collection:
        sessions = [collection.session(name) for name in "abc"]
        for session in sessions:
            session.next()  # all three look at an item at once
        while any(session.next() for session in sessions):
            session = draw.choice(sessions)
            if session.next():
                vote(session)
        assert collection.session("a").progress().done == 20
    votes = Counter(event.item for event in read_events(tmp_path / "r.jsonl"))
    assert votes == Counter({f"item-{n}": 1 for n in range(20)})


# ---------------------------------------------------------------------------------- the session


def test_a_session_goes_on_where_it_was(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    with collecting(path, items(5)) as collection:
        session = collection.session("ann")
        vote(session)
        vote(session, "1=2", strength=2, comment="close")
        after = session.next()
    with collecting(path, items(5)) as collection:
        again = collection.session("ann").next()
        assert after and again
        assert again.ticket == after.ticket
        assert collection.session("ann").progress().done == 2


def test_undo_supersedes_and_offers_the_answer_again(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    with collecting(path, items(3, 3)) as collection:
        session = collection.session("ann")
        vote(session, "2>1")
        second = vote(session, "3>1=2", strength=4, comment="why not")
        receipt = session.undo(new_id())
        assert receipt and receipt.event_id == second
        previous = session.previous()
        assert previous and (previous.order, previous.strength) == ("3>1=2", 4)
        shown = session.next()
        assert shown and shown.item.id == "item-1"
        assert session.progress().done == 1
    with collecting(path, items(3, 3)) as collection:  # and after a restart
        session = collection.session("ann")
        shown = session.next()
        assert shown and shown.item.id == "item-1"
        vote(session, "1>2>3")
    events = read_events(path)
    assert [event.action for event in events] == ["rank", "rank", "undo", "rank"]
    assert events[2].supersedes == second and events[2].ranks is None
    assert [event.item for event in live(events)] == ["item-0", "item-1"]
    assert len(rankings_from_events(events)) == 2


def test_undo_goes_back_as_far_as_one_likes_and_then_says_so(tmp_path: Path) -> None:
    with collecting(tmp_path / "r.jsonl", items(3)) as collection:
        session = collection.session("ann")
        for _ in range(3):
            vote(session)
        assert [session.undo(new_id()) is not None for _ in range(4)] == [True, True, True, False]
        assert session.progress().done == 0
        first = session.next()
        assert first and first.item.id == "item-0"


def test_an_undo_sent_twice_takes_one_answer_back(tmp_path: Path) -> None:
    with collecting(tmp_path / "r.jsonl", items(3)) as collection:
        session = collection.session("ann")
        vote(session)
        target = vote(session)
        for _ in range(2):
            session.undo(new_id(), target)
        assert session.progress().done == 1


def test_the_same_answer_sent_again_is_stored_once(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    with collecting(path, items(2)) as collection:
        session = collection.session("ann")
        shown = session.next()
        assert shown
        answer = Submission(new_id(), shown.ticket, order="1", active_ms=5)
        assert session.submit(answer).stored == "saved"
        late = Submission(answer.key, shown.ticket, order="1", active_ms=900)
        assert session.submit(late).stored == "duplicate"
        with pytest.raises(Conflict):
            session.submit(Submission(answer.key, shown.ticket, order="2"))
        with pytest.raises(Conflict):  # another tab, the same item
            session.submit(Submission(new_id(), shown.ticket, order="1"))
    with collecting(path, items(2)) as collection:  # a retry that outlived the server
        assert collection.session("ann").submit(answer).stored == "duplicate"
    assert len(lines(path)) == 1


def test_skip_flag_and_all_bad(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    with collecting(path, items(4, 3)) as collection:
        session = collection.session("ann")
        vote(session, "", action="skip", reason=" no idea ")
        with pytest.raises(DataError, match="needs a reason"):
            vote(session, "", action="flag", reason="  ")
        vote(session, "", action="flag", reason="personal data")
        vote(session, "", all_bad=True)
        vote(session, "2>1=3", all_bad=True)
    events = read_events(path)
    assert [event.action for event in events] == ["skip", "flag", "rank", "rank"]
    assert [event.reason for event in events] == ["no idea", "personal data", None, None]
    assert events[0].ranks is None and events[1].ranks is None
    assert set((events[2].ranks or {}).values()) == {1}
    assert sorted((events[3].ranks or {}).values()) == [1, 2, 2]
    assert [event.all_bad for event in events] == [False, False, True, True]
    assert len(rankings_from_events(events)) == 2


def test_a_repeat_names_what_it_repeats_and_a_skipped_item_is_not_repeated(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    with collecting(path, items(4), repeat=1.0) as collection:
        session = collection.session("ann")
        vote(session, "", action="skip")
        votes = []
        while session.next():
            votes.append(vote(session))
    events = read_events(path)
    repeats = [event for event in events if event.repeat_of]
    assert len(votes) == 6 and len(repeats) == 3
    for again in repeats:
        first = next(event for event in events if event.id == again.repeat_of)
        assert first.item == again.item and first.shown == again.shown[::-1]
    assert len(rankings_from_events(events)) == 3


def test_what_cannot_be_stored_is_refused(tmp_path: Path) -> None:
    with collecting(tmp_path / "r.jsonl", items(2)) as collection:
        session = collection.session("ann")
        for fields, reason in [
            ({"strength": 5}, "1 to 4"),
            ({"comment": "x" * 10_001}, "longer than"),
            ({"comment": "\udc80"}, "UTF-8"),
        ]:
            with pytest.raises(DataError, match=reason):
                vote(session, **fields)  # type: ignore[arg-type]
        with pytest.raises(DataError, match="not one of yours"):
            session.submit(Submission(new_id(), "0" * 24, order="1"))
        shown = session.next()
        assert shown
        with pytest.raises(DataError, match="UUID"):
            session.submit(Submission("../../x", shown.ticket, order="1"))
        with pytest.raises(RecipeError, match="is not a valid annotator name"):
            collection.session("ann\x1b[2J")
    assert lines(tmp_path / "r.jsonl") == []


def test_votes_on_texts_that_changed_count_for_nothing_and_are_reported(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    with collecting(path, items(2)) as collection:
        vote(collection.session("ann"))
    changed = [item(0, ["quite", "different"]), *items(2)[1:]]
    with collecting(path, changed) as collection:
        shown = collection.session("ann").next()
        assert shown and shown.item.id == "item-0"
        assert "item-0" in collection.reports[0]


def test_events_carry_what_makes_them_rankings(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    with collecting(path, [item(1, gold={"c0": 1, "c1": 2})], seed=5) as collection:
        session = collection.session("ann")
        shown = session.next()
        vote(session, "2", active_ms=-3, wall_ms=10**12, comment="c")
    event = read_events(path)[0]
    assert shown and event.shown == shown.shown
    assert event.seed == 5 and event.gold and event.item_sha256 == shown.item.sha256
    assert (event.active_ms, event.wall_ms) == (0, 24 * 3600 * 1000)
    ranking = rankings_from_events([event])[0]
    assert ranking.prompt[0].content == "question 1?"
    assert ranking.ranks == {shown.shown[1]: 1, shown.shown[0]: 2}
    bare = event.model_copy(update={"extra": {}})
    assert rankings_from_events([bare], [item(1)])[0].ranks == ranking.ranks
    with pytest.raises(DataError, match="is not in any candidates file"):
        rankings_from_events([bare])


# ------------------------------------------------------------------------------- active choice


def scored(number: int, first: float, second: float, **extra: object) -> Item:
    record = item(number, extra=extra)
    for candidate, score in zip(record.candidates, (first, second), strict=True):
        candidate.score = score
    return Item(record, item_sha256(record))


def test_uncertainty_is_the_entropy_of_the_vote() -> None:
    assert entropy(0.5) == 1.0 and entropy(0.0) == 0.0
    assert uncertainty(scored(1, 2.0, 2.0)) == 1.0
    # sigmoid(log 19) is 0.95; H(0.95) is 0.2864 bits
    assert uncertainty(scored(1, 2.944439, 0.0)) == pytest.approx(0.286397, abs=1e-5)
    assert uncertainty(scored(1, 1e9, -1e9)) == 0.0
    assert worth_asking([scored(1, 0, 0), scored(2, 9, 0)]) == 1


def test_disagreement_is_what_the_ensemble_does_not_share() -> None:
    agree = scored(1, 0, 0, scores={"a": {"c0": 1, "c1": 1}, "b": {"c0": 2, "c1": 2}})
    differ = scored(2, 0, 0, scores={"a": {"c0": 40, "c1": 0}, "b": {"c0": 0, "c1": 40}})
    assert disagreement(agree) == pytest.approx(0.0)
    assert disagreement(differ) == pytest.approx(1.0, abs=1e-6)
    with pytest.raises(DataError, match="fewer than two"):
        disagreement(scored(3, 0, 1))


def test_uncertain_items_come_first() -> None:
    sure, open_, middle = scored(1, 8, 0), scored(2, 0, 0), scored(3, 1, 0)
    pool = {each.id: each for each in (sure, open_, middle)}
    plan = plan_for("ann", pool, Settings(order="uncertain"), Marks(17))
    assert [name for name, _ in plan] == ["item-2", "item-3", "item-1"]
    with pytest.raises(DataError, match="without a score"):
        plan_for("ann", pool_of(items(2)).items, Settings(order="uncertain"), Marks(17))


def test_the_duel_between_equals_is_decided_wrongly_at_most_as_often_as_promised() -> None:
    draw = random.Random(7)
    wrong = 0
    for _ in range(400):
        test = SequentialTest("a", "b")
        for _ in range(200):
            test.add(float(draw.random() < 0.5))
            if test.decided:
                wrong += 1
                break
    assert wrong <= 30  # 5 % of 400 is 20; four standard deviations above is 37


def test_the_duel_finds_a_real_difference_and_says_how_far_it_is() -> None:
    test = SequentialTest("a", "b")
    assert test.more_votes() is None
    estimates = []
    while not test.decided:
        test.add(float(test.n % 5 != 0))  # 80 % for a
        estimates.append(test.more_votes())
    assert 15 <= test.n <= 60
    assert test.mean > 0.7 and test.more_votes() == 0
    assert all(later is None or later <= 60 for later in estimates[10:])


def test_collecting_ends_when_the_votes_decide(tmp_path: Path) -> None:
    records = [item(n, [f"good {n}", f"bad {n}"], models=["new", "old"]) for n in range(200)]
    kwargs = {"order": "random", "stop_when_decided": True}
    with collecting(tmp_path / "r.jsonl", records, **kwargs) as collection:
        session = collection.session("ann")
        while (shown := session.next()) is not None:
            vote(session, str(shown.shown.index("c0") + 1))
        done = session.progress().done
        assert 5 < done < 30 and collection.enough
        assert "new wins 100%" in collection.summary()[-1]
        session.undo(new_id())
        assert collection.test and collection.test.n == done - 1
    with (
        pytest.raises(RecipeError, match="--order random"),
        collecting(tmp_path / "s.jsonl", records, stop_when_decided=True),
    ):
        pass


def test_plans_do_not_depend_on_who_asks_first() -> None:
    pool = pool_of(items(50))
    one = Settings(order="random", repeat=0.1)
    assert plan_for("ann", pool.items, one, Marks(17)) == plan_for(
        "ann", pool.items, one, Marks(17)
    )
    assert plan_for("ann", pool.items, one, Marks(17)) != plan_for(
        "ben", pool.items, one, Marks(17)
    )
    assert all(a != b for a, b in pairwise(plan_for("ann", pool.items, one, Marks(17))))


def test_a_record_without_an_id_gets_one_from_its_text() -> None:
    record = item(1).model_dump() | {"id": ""}
    pool = pool_of([Candidates.model_validate(record)])
    assert list(pool.items) == [item_sha256(item(1))[:16]]
