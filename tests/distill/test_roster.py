"""Which teachers are held, left out and avoided, without threads, sockets or a clock.

Single situations first, then a machine that lets everything happen at random.
"""

import string

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from edl.distill.roster import Roster
from edl.serving.wire.selftest import SelfTest, difference

LATER = 100.0

USUAL = SelfTest(((3, 5), (4, 5)), ((-0.5, -1.0), (-0.25, -2.0)))
ROUNDED = SelfTest(((3, 5), (4, 5)), ((-0.51, -1.02), (-0.25, -2.01)))
BROKEN = SelfTest(((3, 5), (5, 4)), ((-0.5, -1.0), (-0.1, -4.0)))


def roster_with(models, *, connect=(), balanced=False, limit=None):
    """A roster that has found teachers with the models they declare, and connected to some."""
    roster = Roster("reader", limit, balanced)
    roster.found(models)
    if balanced:
        roster.assigned(models)
    roster.step(0.0)
    for name, model in dict(connect).items():
        roster.connected(name, model, 0.0)
    roster.step(0.0)
    return roster


# --- replicas that compute something else ---------------------------------------------------------


def replicas(tests, connect=None):
    """A roster of teachers that declare one model, connected to those in ``connect``, or all."""
    roster = Roster("reader", None, False)
    roster.found(dict.fromkeys(tests, "m"))
    roster.step(0.0)
    for name in tests if connect is None else connect:
        roster.connected(name, "m", 0.0, tests[name])
    roster.step(0.0)
    return roster


@pytest.mark.parametrize("first", ["broken", "usual"])
def test_a_replica_whose_labels_are_not_those_of_most_is_left_out_with_words(first):
    tests = {"usual": USUAL, "rounded": ROUNDED, "broken": BROKEN}
    order = [first, *(name for name in tests if name != first)]
    roster = replicas(tests, order)
    assert roster.admitted == {"usual", "rounded"}
    assert roster.avoided(0.0) == ("broken",)
    assert roster.left_out() == {
        "broken": "its model is this epoch's, but its labels are others: of the fixed tokens, "
        "number 1 is followed by class 4 with a log-probability of -4.0 here and of -0.25 elsewhere"
    }


def test_replicas_that_are_not_connected_yet_are_waited_for_but_not_for_long():
    tests = {"usual": USUAL, "rounded": ROUNDED, "broken": BROKEN}
    roster = replicas(tests, ["broken"])
    assert not roster.admitted, "the others may outvote it"
    roster.step(2.0)
    assert roster.admitted == {"broken"}
    roster.connected("usual", "m", 2.0, USUAL)
    assert roster.admitted == {"broken"}, "it would be another model in the middle of an epoch"


def test_labels_of_replicas_stay_those_of_the_epoch_though_its_teachers_have_gone():
    roster = replicas({"a": USUAL, "b": BROKEN, "c": USUAL})
    roster.bound = True
    for name in "ac":
        roster.lost(name, "gone", 1.0)
    roster.step(LATER)
    assert not roster.admitted
    roster.bound = False
    roster.step(LATER + 1)
    roster.step(LATER + 3)
    assert roster.admitted == {"b"}, "between epochs there is nothing to keep to"


def test_a_teacher_that_says_nothing_of_its_labels_is_used():
    roster = replicas({"a": USUAL, "b": None})
    assert roster.admitted == {"a", "b"}


# --- which to hold ------------------------------------------------------------------------------


def test_all_fixed_teachers_are_held_and_one_that_is_not_there_any_more_is_left():
    roster = Roster("reader", None, False)
    roster.found({"a": "", "b": ""})
    assert roster.step(0.0).open == ("a", "b")
    roster.found({"a": ""})
    assert roster.step(1.0).end == ("b",)


def test_a_connected_teacher_that_is_not_wanted_stays_until_it_is_lost():
    roster = roster_with({"a": "", "b": ""}, connect={"a": "m", "b": "m"})
    roster.found({"a": ""})
    assert roster.step(1.0).end == ()
    assert roster.held["b"].retiring
    assert "b" in roster.admitted, "tasks may be there, which time out like all others"
    roster.lost("b", "gone", 2.0)
    assert roster.held.keys() == {"a"}


def test_a_teacher_that_is_wanted_again_while_it_retires_is_kept():
    roster = roster_with({"a": ""}, connect={"a": "m"})
    roster.found({})
    roster.step(1.0)
    roster.found({"a": ""})
    roster.step(2.0)
    assert not roster.held["a"].retiring


def test_a_resting_reader_leaves_shared_teachers_and_keeps_its_own():
    for balanced in (True, False):
        roster = roster_with({"a": "m"}, connect={"a": "m"}, balanced=balanced)
        roster.resting = True
        roster.step(1.0)
        assert roster.held["a"].retiring is balanced


def test_without_an_assignment_for_long_it_chooses_for_itself_within_its_limit():
    roster = Roster("reader", 2, True)
    roster.found(dict.fromkeys("abcd", ""))
    assert roster.step(0.0).open == ()
    assert len(roster.step(LATER).open) == 2


# --- one model ----------------------------------------------------------------------------------


def test_the_first_epoch_has_the_model_that_most_teachers_declare():
    declared = {"a": "x", "b": "y", "c": "y"}
    roster = roster_with(declared, connect={"a": "x"})
    assert roster.model == "", "it waits for b or c"
    roster.connected("c", "y", 0.5)
    assert roster.model == "y"


def test_it_waits_a_second_for_those_who_could_outvote_the_first_and_no_longer():
    for declared in ("", "y"):
        roster = roster_with({"a": "x", "b": declared, "c": declared}, connect={"a": "x"})
        assert roster.model == ""
        roster.step(0.9)
        assert roster.model == ""
        roster.step(1.1)
        assert roster.model == "x"


def test_those_that_fail_are_not_waited_for():
    roster = roster_with({"a": "", "b": ""})
    roster.lost("b", "refused", 0.1)
    roster.connected("a", "x", 0.2)
    assert roster.model == "x"


@given(
    st.dictionaries(st.sampled_from(string.ascii_lowercase), st.sampled_from("xyz"), min_size=1),
    st.randoms(use_true_random=False),
    st.booleans(),
)
@settings(max_examples=60, deadline=None)
def test_students_choose_alike_in_whatever_order_teachers_connect(models, chance, declared):
    chosen = set()
    for reader in "pqr":
        roster = Roster(reader, None, False)
        roster.found(models if declared else dict.fromkeys(models, ""))
        roster.step(0.0)
        for name in chance.sample(sorted(models), len(models)):
            roster.connected(name, models[name], 0.1)
            roster.bound = bool(roster.model)  # the worst case: it is used at once
        chosen.add(roster.model)
    assert len(chosen) == 1
    counts = {model: list(models.values()).count(model) for model in "xyz"}
    assert counts[chosen.pop()] == max(counts.values())


def test_other_models_are_left_out_by_what_they_declare_and_by_what_they_serve():
    roster = roster_with({"a": "x", "b": "x", "c": "y", "d": ""}, connect={"a": "x", "d": "y"})
    assert roster.model == "x"
    assert roster.left_out().keys() == {"c", "d"}
    assert roster.admitted == {"a"}
    assert set(roster.avoided(0.0)) == {"c", "d"}


def test_what_a_connected_teacher_serves_counts_more_than_what_its_entry_says():
    roster = roster_with({"a": "x", "b": "y"}, connect={"a": "x", "b": "x"})
    assert roster.left_out() == {}
    assert roster.admitted == {"a", "b"}


def test_a_left_out_teacher_is_held_although_it_is_not_assigned_any_more():
    roster = roster_with({"a": "", "b": ""}, connect={"a": "x", "b": "y"}, balanced=True)
    (other,) = roster.left_out()
    roster.assigned({"a", "b"} - {other})
    for now in range(1, 10):
        assert roster.step(float(now)).end == ()
    assert not roster.held[other].retiring


@pytest.mark.parametrize("bound", [False, True])
def test_a_model_that_nobody_has_any_more_gives_way_only_between_epochs(bound):
    roster = roster_with({"a": "x"}, connect={"a": "x"})
    roster.bound = bound
    roster.found({"a": "y"})
    roster.lost("a", "restarted", 1.0)
    roster.connected("a", "y", 2.0)
    roster.step(2.0)
    assert roster.models == (["x"] if bound else ["x", "y"])
    assert roster.left_out().keys() == ({"a"} if bound else set())


def test_a_model_that_one_teacher_still_declares_has_a_second_to_come_back():
    roster = roster_with({"a": "x", "b": "x"}, connect={"a": "x", "b": "x"})
    roster.found({"a": "x", "b": "y", "c": "y"})
    roster.step(1.0)
    for name in ("a", "b"):
        roster.lost(name, "restarted", 1.0)
    roster.connected("b", "y", 1.1)
    assert roster.model == "x"
    roster.step(2.5)
    assert roster.model == "y"


def test_between_epochs_nobody_is_avoided_for_a_model_that_is_gone():
    roster = roster_with({"a": "x"}, connect={"a": "x"}, balanced=True)
    roster.resting = True
    roster.found({"b": "y"})
    roster.step(1.0)
    roster.lost("a", "gone", 1.0)
    assert roster.avoided(2.0) == ()
    roster.bound = True
    assert roster.avoided(2.0) == ("b",)


def test_an_epoch_that_was_begun_elsewhere_keeps_to_its_model():
    roster = roster_with({"a": "y"})
    roster.keep_to("x")
    roster.connected("a", "y", 1.0)
    roster.step(LATER)
    assert roster.admitted == set()
    assert "its model is y, this epoch's is x" in roster.left_out()["a"]


@pytest.mark.parametrize(("ours", "theirs"), [("model:a", "specs:b"), ("specs:b", "model:a")])
def test_where_only_the_specs_are_known_the_reason_says_so_and_names_a_remedy(ours, theirs):
    roster = roster_with({"a": ours, "b": ours, "c": theirs}, connect={"a": ours})
    assert "cannot be told" in roster.left_out()["c"]
    assert "a service of its own" in roster.left_out()["c"]


def test_there_is_no_hope_if_nobody_who_is_there_fits():
    roster = roster_with({"a": "", "b": ""})
    roster.lost("a", "no feed", 1.0, unfit=True)
    assert not roster.hopeless()
    roster.lost("b", "no feed", 1.0, unfit=True)
    assert roster.hopeless()
    assert roster.avoided(LATER) == ()


# --- everything at random -----------------------------------------------------------------------

NAMES = st.sampled_from("abcdefgh")
MODELS = st.sampled_from(["", "x", "y"])


class Machine(RuleBasedStateMachine):
    """Connections live here as the pool would keep them."""

    def __init__(self):
        super().__init__()
        self.roster = Roster("reader", 3, True)
        self.links = set()
        self.now = 0.0
        self.bound_to = ""

    def step(self):
        changes = self.roster.step(self.now)
        assert self.links.isdisjoint(changes.open)
        assert self.links >= set(changes.end)
        self.links = (self.links | set(changes.open)) - set(changes.end)

    @rule(models=st.dictionaries(NAMES, MODELS))
    def find(self, models):
        self.roster.found(models)
        self.step()

    @rule(names=st.sets(NAMES))
    def assign(self, names):
        self.roster.assigned(names)
        self.step()

    @rule(seconds=st.sampled_from([0.1, 1.1, 5.0]), resting=st.booleans())
    def wait(self, seconds, resting):
        self.now += seconds
        self.roster.resting = resting and not self.roster.bound
        self.step()

    @precondition(lambda self: self.links)
    @rule(
        data=st.data(),
        model=st.sampled_from("xy"),
        test=st.sampled_from([None, USUAL, ROUNDED, BROKEN]),
    )
    def connect(self, data, model, test):
        name = data.draw(st.sampled_from(sorted(self.links)))
        self.roster.connected(name, model, self.now, test)
        self.step()

    @precondition(lambda self: self.links)
    @rule(data=st.data(), unfit=st.booleans())
    def lose(self, data, unfit):
        name = data.draw(st.sampled_from(sorted(self.links)))
        self.roster.lost(name, "lost", self.now, unfit=unfit)
        if name not in self.roster.held:
            self.links.discard(name)
        self.step()

    @precondition(lambda self: self.roster.admitted)
    @rule()
    def label(self):
        self.roster.bound, self.bound_to = True, self.roster.model

    @rule()
    def end_the_epoch(self):
        self.roster.bound, self.bound_to = False, ""

    @invariant()
    def one_link_for_each_teacher_that_is_held(self):
        assert self.roster.held.keys() == self.links

    @invariant()
    def an_epoch_keeps_its_model(self):
        assert not self.bound_to or self.roster.model == self.bound_to

    @invariant()
    def whoever_is_admitted_serves_it_and_is_not_left_out(self):
        roster = self.roster
        assert all(roster.held[name].model == roster.model for name in roster.admitted)
        assert roster.admitted.isdisjoint(roster.left_out())

    @invariant()
    def whoever_is_admitted_computes_what_the_others_do(self):
        tests = [self.roster.held[name].test for name in self.roster.admitted]
        tests = [test for test in tests if test is not None]
        assert not [True for one in tests for other in tests if difference(one, other)]

    @invariant()
    def who_is_connected_and_not_admitted_is_left_out_or_the_model_is_open(self):
        roster = self.roster
        connected = {name for name, teacher in roster.held.items() if teacher.connected}
        if roster.bound or roster.admitted:
            assert connected - roster.admitted <= roster.left_out().keys()

    @invariant()
    def with_connected_teachers_a_model_is_found_within_a_second(self):
        roster = self.roster
        if any(teacher.connected for teacher in roster.held.values()) and not roster.bound:
            roster.step(self.now)
            self.now += 1.001  # 4.1 - 3.1 is less than 1.0
            self.step()
            connected = any(teacher.connected for teacher in roster.held.values())
            assert roster.admitted or not connected


TestAnything = Machine.TestCase
TestAnything.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


def test_a_teacher_that_does_not_fit_is_avoided_while_there_may_be_others():
    roster = Roster("student", 1, balanced=True)
    roster.found({"a": "", "b": ""})
    roster.assigned({"a"})
    assert roster.step(0.0).open == ("a",)
    roster.lost("a", "it serves something else", 0.1, unfit=True)
    assert roster.avoided(0.2) == ("a",)
    assert not roster.hopeless(), "the other one may fit"
    roster.assigned({"b"})
    assert "b" in roster.step(0.3).open
    roster.lost("b", "and so does this", 0.4, unfit=True)
    assert roster.hopeless()
