"""The page in a real browser."""

import contextlib

import pytest
from selenium.webdriver.common.keys import Keys

from edl.discovery import Etcd, Participation, Registration, StudentRecord
from edl.discovery.keys import NODES, STUDENTS, service_prefix
from edl.serving.client.tls import Trust
from edl.view.targets import Access
from edl.view.web import Dashboard, Listen
from tests.support.processes import eventually

pytestmark = pytest.mark.timeout(200)

WAIT = 60.0
HOSTILE = '<img src=x onerror="window.hurt=1"><script>window.hurt=1</script>\u202e"\'&amp;{{1}}'


@contextlib.contextmanager
def opened(chromium, etcd, service=None, period=0.3):
    """The page, in the browser as if for the first time."""
    with Dashboard(etcd, Listen(), service, Access(Trust(), token=""), period) as one:
        chromium.get(one.url)
        chromium.execute_script("localStorage.clear()")
        chromium.refresh()
        eventually(lambda: drawn(chromium), WAIT)
        yield one
    complaints = [
        entry["message"]
        for entry in chromium.get_log("browser")
        if "net::ERR" not in entry["message"]  # it has been stopped
    ]
    chromium.get("about:blank")
    assert complaints == []


def drawn(page):
    return page.execute_script("return Number(document.documentElement.dataset.drawn || 0)")


def text(page, selector):
    return page.execute_script(
        "return [...document.querySelectorAll(arguments[0])]"
        ".filter((one) => one.checkVisibility()).map((one) => one.innerText).join('\\n')",
        selector,
    )


def rows(page, table):
    return page.execute_script(
        "return document.querySelectorAll(`#${arguments[0]} tbody tr[data-key]`).length", table
    )


@pytest.fixture
def played(etcd, service):
    """Seven teachers, of which one fails, and four students that wait."""
    from _played import Mood, Played

    with Played(etcd, service, 7, 4, Mood(busy=0.95, waits=0.31, errors=0.05)) as one:
        yield one


def test_what_to_do_is_on_top_and_everybody_is_shown(chromium, etcd, played):
    with opened(chromium, etcd, played.service):
        eventually(lambda: "would be enough" in text(chromium, "#advice-list"), WAIT)
        advice = text(chromium, "#advice-list")
        assert f"Teacher {played.teacher(0)} fails 5 % of its requests: out of memory" in advice
        assert "Students wait 27 % of their time; " in advice
        assert (rows(chromium, "teachers"), rows(chromium, "students")) == (7, 4)
        shown = text(chromium, "#teachers")
        for part in ("could be 1,200", "gpu:1", "img → logits", "18 ms", "5 %", "50 min"):
            assert part in shown, part
        shown = text(chromium, "#students")
        for part in (played.student(0)[:8], "31 %", "20 %", "of 10,000", "student-0 (2000)"):
            assert part in shown, part
        assert len(chromium.find_elements("css selector", "#map path.link.waits")) == 7
        assert len(chromium.find_elements("css selector", "#curves svg")) == 4
        assert "27 %" in chromium.title


def test_keys_go_through_a_table_sort_filter_and_mark_in_the_picture(chromium, etcd, played):
    with opened(chromium, etcd, played.service):
        eventually(lambda: "gpu:1" in text(chromium, "#teachers"), WAIT)
        press = chromium.switch_to.active_element.send_keys
        press("/")
        chromium.switch_to.active_element.send_keys("gpu:3")
        eventually(lambda: rows(chromium, "teachers") == 1)
        chromium.switch_to.active_element.send_keys(Keys.ESCAPE)
        eventually(lambda: rows(chromium, "teachers") == 7)
        first = chromium.find_element("css selector", "#teachers tbody tr")
        assert first.get_attribute("tabindex") == "0"
        chromium.execute_script("arguments[0].focus()", first)
        chromium.switch_to.active_element.send_keys(Keys.DOWN, Keys.DOWN)
        focused = chromium.switch_to.active_element
        assert focused.get_attribute("data-key") == played.teacher(2)
        assert len(chromium.find_elements("css selector", "#map path.on")) == 1
        seen = drawn(chromium)
        eventually(lambda: drawn(chromium) > seen + 2, WAIT)  # updates take nothing away
        assert chromium.switch_to.active_element == focused
        button = chromium.find_element("css selector", "#teachers th:nth-child(9) button")
        button.send_keys(Keys.ENTER)
        sort = (
            "return document.querySelector('#teachers th:nth-child(9)').getAttribute('aria-sort')"
        )
        assert chromium.execute_script(sort) == "descending"


def test_light_and_dark_english_and_chinese(chromium, etcd, played):
    def background():
        return chromium.execute_script("return getComputedStyle(document.body).backgroundColor")

    with opened(chromium, etcd, played.service):
        light = background()
        chromium.find_element("id", "theme").click()
        assert chromium.execute_script("return document.documentElement.dataset.theme") == "dark"
        assert background() != light
        chromium.find_element("id", "language").click()
        eventually(lambda: "学生等待的时间占" in text(chromium, "#advice-list"), WAIT)
        assert text(chromium, "#map-title") == "谁为谁工作"
        assert "busy" not in text(chromium, "main")
        chromium.refresh()
        eventually(lambda: text(chromium, "#map-title") == "谁为谁工作", WAIT)
        assert background() != light


def test_nobody_is_a_page_too_and_who_comes_appears(chromium, etcd, service):
    with opened(chromium, etcd, service):
        assert "Nothing is registered" in text(chromium, "#empty")
        teacher = Registration(etcd, service, "10.0.0.1:9292", "{}")
        teacher.start()
        eventually(lambda: rows(chromium, "teachers") == 1, WAIT)
        assert not text(chromium, "#empty")
        assert "No student works with this teacher." in text(chromium, "#advice-list")
        assert "No student" in text(chromium, "#students")
        teacher.stop()
        eventually(lambda: "Nothing is registered" in text(chromium, "#empty"), WAIT)


def test_a_real_teacher_and_a_student_in_the_registry(
    chromium, etcd_server, etcd, service, sums_teacher
):
    entry = '{"protocol": "baidu_std", "device": "cpu"}'
    teacher = Registration(etcd, service, sums_teacher.endpoint, entry)
    teacher.start()
    assigned = []
    with Etcd(etcd_server.endpoint) as own:
        record = StudentRecord(rows_per_second=321.0)
        student = Participation(own, service, "student1", record, assigned.append)
        student.start()
        with opened(chromium, etcd, service):
            eventually(lambda: "321" in text(chromium, "#students"), WAIT)
            eventually(lambda: "0 %" in text(chromium, "#teachers"), WAIT)  # busy, from /metrics
            eventually(lambda: chromium.find_elements("css selector", "#map path.link.off"), WAIT)
        student.close()
    teacher.stop()


def test_what_strangers_wrote_is_shown_and_never_obeyed(chromium, etcd, service):
    prefix = service_prefix(service)
    wrong = '{"device": %s, "hostname": "__proto__", "fingerprint": "</script>", "since": 1e999}'
    quoted = '"' + HOSTILE.replace("\\", "\\\\").replace('"', '\\"') + '"'
    entries = {
        NODES + HOSTILE.replace("/", "|"): wrong % quoted,
        NODES + "__proto__": wrong % quoted,
        NODES + "constructor": wrong % quoted,
        NODES + "x" * 3000: '{"rate": 1e300, "feeds": {"<b>": 1}, "fetches": {"<i>": 2}}',
        STUDENTS + "__proto__": f'{{"hostname": {quoted}, "metrics": "169.254.1.1:80/x"}}',
    }
    for key, value in entries.items():
        etcd.call(lambda client, key=key, value=value: client.put(prefix + key, value))
    with opened(chromium, etcd, service):
        eventually(lambda: rows(chromium, "teachers") == 4, WAIT)
        seen = drawn(chromium)
        eventually(lambda: drawn(chromium) > seen + 2, WAIT)
        shown = text(chromium, "#teachers")
        assert '<img src=x onerror="window.hurt=1">' in shown
        assert "__proto__" in shown
        assert rows(chromium, "students") == 1
        assert chromium.execute_script("return window.hurt ?? null") is None
        assert not chromium.find_elements("css selector", "main img, main script, main b b")
        fits = "return document.documentElement.scrollWidth <= window.innerWidth"
        assert chromium.execute_script(fits)
    etcd.call(lambda client: client.delete_prefix(prefix))


def test_five_hundred_teachers_and_a_hundred_students_are_all_there(chromium, etcd, service):
    from _played import Played

    with Played(etcd, service, 500, 100) as crowd, opened(chromium, etcd, service):
        eventually(lambda: rows(chromium, "teachers") == 500, WAIT)
        assert rows(chromium, "students") == 100
        assert len(chromium.find_elements("css selector", "#map path.link")) == 500
        fits = "return document.documentElement.scrollWidth <= window.innerWidth"
        assert chromium.execute_script(fits)
        last = chromium.execute_script(
            "return document.querySelector('#teachers tbody tr:last-child').dataset.key"
        )
        assert last == max(crowd.teacher(number) for number in range(500))


def test_a_dashboard_that_is_gone_is_said(chromium, etcd, service):
    one = Dashboard(etcd, Listen(), service, Access(Trust(), token="")).start()
    chromium.get(one.url)
    eventually(lambda: text(chromium, "#status-text") == "live", WAIT)
    one.stop()
    eventually(lambda: "no connection" in text(chromium, "#status-text"), WAIT)
    chromium.get("about:blank")
    chromium.get_log("browser")
