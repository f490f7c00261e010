"""What is said of a service, and what to do about it."""

from dataclasses import replace

import pytest

from edl.view.advice import advise, advise_service, enough
from edl.view.snapshot import Service, Snapshot
from tests.view.situations import service, with_teacher


def said(one):
    return [advice.english for advice in advise_service(one)]


def levels(one):
    return [advice.level for advice in advise_service(one)]


def test_students_wait_for_busy_teachers_so_more_are_needed():
    assert said(service(7, busy=0.98, waits=0.31)) == [
        "Students wait 31 % of their time; 3 more teachers like these would be enough."
    ]


def test_one_teacher_is_one():
    assert said(service(1, busy=1.0, waits=0.4)) == [
        "Students wait 40 % of their time; 1 more teacher like this would be enough."
    ]


def test_the_number_is_the_balancers_where_it_says_one():
    assert said(service(7, busy=0.98, waits=0.31, wanted=12)) == [
        "Students wait 31 % of their time; 5 more teachers like these would be enough."
    ]


def test_teachers_that_have_little_to_do_could_go():
    assert said(service(10, busy=0.4, waits=0.01)) == ["Teachers are idle 60 %; 5 could go."]


def test_no_more_could_go_than_the_balancer_says():
    assert said(service(10, busy=0.4, waits=0.01, wanted=6)) == [
        "Teachers are idle 60 %; 4 could go."
    ]


@pytest.mark.parametrize(("teachers", "busy"), [(1, 0.1), (3, 0.8), (4, 0.9)])
def test_the_last_teacher_and_those_that_are_needed_stay(teachers, busy):
    assert levels(service(teachers, busy=busy)) == ["good"]


def test_all_is_well():
    assert said(service(busy=0.82, waits=0.01)) == [
        "Students wait 1 % of their time, teachers are busy 82 %: nothing to do."
    ]


def test_more_teachers_do_not_help_where_those_there_are_have_time():
    (sentence,) = said(service(busy=0.2, waits=0.31))
    assert sentence.startswith(
        "Students wait 31 % of their time though teachers are busy only 20 %: "
        "more teachers would not help"
    )


def test_teachers_that_are_busy_only_at_times_may_be_too_few_at_these():
    (sentence,) = said(service(busy=0.4, waits=0.11))
    assert sentence.startswith(
        "Students wait 11 % of their time though teachers are busy only 40 %: "
        "the demand comes in bursts"
    )


def test_students_that_may_have_no_more_teachers_are_the_reason():
    one = service(4, busy=0.4, waits=0.31)
    students = tuple(replace(each, limit=2, teachers=each.teachers[:2]) for each in one.students)
    (sentence,) = said(replace(one, students=students))
    assert sentence.endswith("2 students may have no more teachers (require_max_teacher).")


def test_a_teacher_that_fails_is_quoted():
    one = with_teacher(service(busy=0.9), errors=0.05, words="out of memory on gpu:0")
    assert (
        said(one)[0] == "Teacher 10.0.0.1:9292 fails 5 % of its requests: out of memory on gpu:0."
    )
    assert levels(one)[0] == "act"


def test_few_errors_and_few_requests_may_be_chance():
    assert levels(with_teacher(service(busy=0.9), errors=0.005)) == ["good"]
    assert levels(with_teacher(service(busy=0.9), errors=0.5, requests=4.0)) == ["good"]


def test_of_many_that_fail_the_worst_are_named():
    one = service(9, busy=0.9)
    failing = tuple(
        replace(teacher, errors=0.1 + number / 100) for number, teacher in enumerate(one.teachers)
    )
    sentences = said(replace(one, teachers=failing))
    assert "10.0.0.9:9292 fails 18 %" in sentences[0]
    assert sentences[3] == "6 more teachers fail."


def test_a_teacher_without_figures_is_named_with_the_reason():
    one = with_teacher(service(busy=0.9), problem="no answer within 2 s", busy=None)
    assert "Teacher 10.0.0.1:9292 gives no figures: no answer within 2 s." in said(one)


def test_students_without_a_teacher():
    assert said(service(0, 3)) == [
        "3 students have no teacher: start one with edl teacher --service resnet."
    ]


def test_teachers_without_a_student():
    assert said(service(2, 0)) == ["No student works with these 2 teachers."]


def test_nobody_at_all():
    assert said(Service("resnet")) == ["Nobody is here."]


def test_students_that_nobody_balances():
    assert said(service(balanced=False))[0].startswith("Nobody balances")


def test_students_that_do_not_say_how_long_they_wait():
    assert said(service(waits=None))[0].startswith("Students do not say how long they wait")


def test_what_is_urgent_comes_first_and_every_service_has_a_sentence():
    urgent = with_teacher(service(10, busy=0.3), errors=0.05)
    assert levels(urgent) == ["act", "note"]
    seen = Snapshot(0.0, (urgent, Service("empty")))
    assert {name: bool(advice) for name, advice in advise(seen).items()} == {
        "resnet": True,
        "empty": True,
    }


@pytest.mark.parametrize("count", [1, 3, 40])
@pytest.mark.parametrize("busy", [0.1, 0.5, 0.9, 1.0, None])
def test_with_enough_teachers_nobody_waits_and_a_student_that_waits_wants_no_fewer(count, busy):
    demand = [enough(count, waits / 100, busy) for waits in range(5, 101)]
    assert demand == sorted(demand)
    for waits, wanted in zip(range(5, 96), demand):
        delivered = count * (1.0 if busy is None else busy)
        assert wanted >= delivered / (1 - waits / 100) - 1e-6 or wanted >= 20 * delivered


def test_sentences_are_there_in_chinese_with_the_same_numbers():
    (advice,) = advise_service(service(7, busy=0.98, waits=0.31))
    assert advice.chinese == "学生等待的时间占 31 %；再增加 3 个同样的教师就够了。"  # noqa: RUF001
