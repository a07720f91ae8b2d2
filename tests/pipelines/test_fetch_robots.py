"""robots.txt as RFC 9309 says, opt-outs in heads as their owners mean them, and both before a file is asked for."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.fetch import Ask, Fetcher, Policy
from pipelines.fetch.opt_out import opt_out
from pipelines.fetch.robots import Known, Rules, matches, normal, parse
from pipelines.fetch.wire import Head
from tests.fault_server import Answer, FaultServer

RULES = """
User-agent: foobot
Disallow: *.gif$
Disallow: /example/
Allow: /publications/

User-agent: barbot
User-agent: bazbot
Disallow: /example/page.html

User-agent: quxbot

User-agent: *
Disallow: *.gif$
Allow: /example/
Disallow: /
"""  # the groups of RFC 9309's own example, section 5.1, with a group for everybody


@pytest.mark.parametrize(
    ("agent", "path", "allowed"),
    [
        ("foobot", "/a.gif", False),
        ("foobot", "/a.gif?x", True),
        ("foobot", "/example/x", False),
        ("FooBot", "/other", True),
        ("barbot", "/example/page.html", False),
        ("bazbot", "/example/other.html", True),
        ("quxbot", "/anything.gif", False),  # an empty group runs on into the next
        ("unknown", "/example/x", True),
        ("unknown", "/x", False),
        ("unknown", "/example/a.gif", True),  # /example/ is longer than *.gif$
        ("unknown", "/robots.txt", True),
    ],
)
def test_the_groups_of_the_standard(agent, path, allowed):
    assert (parse(RULES.encode(), agent).forbidding(path) is None) == allowed


@pytest.mark.parametrize(
    ("pattern", "path", "hit"),
    [
        ("/", "/x", True),
        ("/fish", "/fish.html", True),
        ("/fish", "/catfish", False),
        ("/fish*", "/fishheads/yummy", True),
        ("/fish/", "/fish", False),
        ("/*.php", "/folder/any.php.file", True),
        ("/*.php$", "/a.php?x", False),
        ("/*.php$", "/a.php", True),
        ("/fish*.php", "/fishheads/catfish.php?p", True),
        ("/fish*.php", "/Fish.PHP", False),
        ("/a*b*c$", "/aXbYc", True),
        ("/a*b*c$", "/aXbYcZ", False),
        ("/ab$", "/ab", True),
        ("/a*a$", "/a", False),
        ("*", "/x", True),
        ("$", "/x", False),
    ],
)
def test_patterns(pattern, path, hit):
    assert matches(pattern, path) == hit


@given(st.text("ab*$/", max_size=8), st.text("ab/", max_size=12))
def test_patterns_agree_with_their_definition(pattern, path):
    import re

    plain = pattern.removesuffix("$").replace("$", "")
    pattern = plain + "$" * pattern.endswith("$")
    definition = "".join(".*" if c == "*" else re.escape(c) for c in plain) + ("$" if pattern.endswith("$") else "")
    assert matches(pattern, path) == bool(re.match(definition, path))


def test_encodings_of_one_path_are_one():
    assert normal("/a%7eb%2fc/ü") == normal("/a~b%2Fc/%C3%BC") == "/a~b%2Fc/%C3%BC"
    rules = parse("User-agent: *\nDisallow: /é/\nDisallow: /%7Ejoe/".encode(), "x")
    assert rules.forbidding("/%c3%a9/1") and rules.forbidding("/~joe/a") and not rules.forbidding("/e/1")
    assert normal("/100%") == "/100%" and normal("/%zz%4") == "/%zz%4"


@pytest.mark.parametrize(
    ("text", "allowed"),
    [
        (b"", True),
        (b"\xef\xbb\xbfuser-agent:*\rdisallow:/a", False),
        (b"Disallow: /a", True),  # belongs to no group
        (b"User-agent: *\nDisallow:", True),
        (b"User-agent: * # all\nDisallow: /a # no", False),
        (b"User-agent: *\nSitemap: x\nUser-agent: z\nDisallow: /a", False),
        (b"User-agent: headwater-images\nDisallow: /", True),  # another agent
        (b"User-agent: headwater/2.0\nDisallow: /", False),
        (b"User-agent: *\nDisallow: /a\nAllow: /a", True),  # of equals, the one that allows
        (b"User-agent: *\nDisallow: /\n\nUser-agent: headwater\nAllow: /x", True),  # its own group alone
        (b"User-agent: headwater\nDisallow: /z\n\nUser-agent: y\nDisallow: /\n\nUser-agent: headwater\nDisallow: /a", False),  # both of its groups
        (b"User-agent: *\nContent-Signal: search=yes, ai-train=no\nAllow: /", False),
        (b"User-agent: *\nContent-Usage: train-ai=n\nAllow: /", False),
        (b"User-agent: *\nContent-Usage: /b train-ai=n\nAllow: /", True),
        (b"User-agent: *\nContent-Signal: ai-train=yes", True),
        (b"<html>not found</html>", True),
        (b"\0" * 1000, True),
    ],
)
def test_files_as_people_write_them(text, allowed):
    assert (parse(text, "headwater").forbidding("/a") is None) == allowed


def test_rules_are_believed_for_a_day(monkeypatch):
    now = [0.0]
    monkeypatch.setattr("pipelines.fetch.robots.time.monotonic", lambda: now[0])
    known, rules = Known(), Rules()
    known.keep("http://a.test", rules)
    assert known.get("http://a.test") is rules and known.get("http://b.test") is None
    now[0] = 86_401.0
    assert known.get("http://a.test") is None


@given(st.binary(max_size=300), st.text(max_size=30))
def test_no_file_is_too_odd_to_read(data, path):
    parse(b"User-agent: *\nDisallow: " + data, "x").forbidding("/" + path)


def said(*fields, **policy):
    return opt_out(Head(200, [(k.lower(), v) for k, v in fields]), Policy(**policy))


TAG = "X-Robots-Tag"


@pytest.mark.parametrize(
    ("fields", "refused"),
    [
        ([], False),
        ([(TAG, "noai")], True),
        ([(TAG, "noimageai, nofollow")], True),
        ([(TAG, "NOINDEX")], True),
        ([(TAG, "none")], True),
        ([(TAG, "noml")], True),
        ([(TAG, "all")], False),
        ([(TAG, "nofollow"), (TAG, "noai")], True),
        ([(TAG, "otherbot: noai, noindex")], False),
        ([(TAG, "otherbot: noai, headwater: all")], False),
        ([(TAG, "otherbot: all, Headwater: noai")], True),
        ([(TAG, "unavailable_after: 25 Jun 2030 15:00:00 PST")], False),
        ([(TAG, "unavailable_after: 25 Jun 2030 15:00:00 PST, noindex")], True),  # the date is no agent
        ([(TAG, "max-image-preview: large, noai")], True),
        ([("TDM-Reservation", "1")], True),
        ([("TDM-Reservation", "0")], False),
        ([("Content-Usage", "train-ai=n")], True),
        ([("Content-Usage", "search=y")], False),
    ],
)
def test_directives(fields, refused):
    assert bool(said(*fields)) == refused


def test_the_recipe_says_which_directives_count():
    assert not said((TAG, "noindex"), opt_outs=("noai",)) and not said(("TDM-Reservation", "1"), tdm_reservation=False)
    assert said((TAG, "mybot: noai"), agent="mybot")


def fetch(answer, path="/a", **policy):
    with FaultServer(lambda seen: answer if seen.path == "/robots.txt" else Answer(b"file")) as server:
        quick = {"backoff": 0.01, "attempts": 3, **policy}
        with Fetcher(Policy(**quick), private=frozenset([server.pair]), known=Known()) as fetcher:
            found = list(fetcher.ordered([Ask(server.url(f"{path}{i}")) for i in range(5)]))
        return found, server.asked("/robots.txt"), len(server.log)


@pytest.mark.parametrize("status", [400, 401, 403, 404, 410])
def test_without_a_file_there_are_no_rules(status):
    found, robots, _ = fetch(Answer(b"", status))
    assert {r.status for r in found} == {"ok"} and robots == 1


@pytest.mark.parametrize("answer", [Answer(b"", 500), Answer(b"", 429), Answer(b"x" * 100, how="short"), Answer(how="reset")])
def test_a_file_that_cannot_be_reached_forbids_for_now(answer):
    found, robots, requests = fetch(answer)
    assert {r.status for r in found} == {"fetch_transient"} and all("robots.txt" in r.detail for r in found)
    assert requests == robots == 3


def test_the_rule_is_the_evidence_and_no_file_is_asked_for():
    found, robots, requests = fetch(Answer(b"User-agent: *\nDisallow: /a3\n"))
    assert [r.status for r in found] == ["ok"] * 3 + ["opt_out", "ok"] and (robots, requests) == (1, 5)
    assert "Disallow: /a3" in found[3].detail and found[0].evidence["robots"] == "allowed"
    found, robots, requests = fetch(Answer(b"User-agent: *\nDisallow: /a3\n"), robots=False)
    assert [r.status for r in found] == ["ok"] * 5 and robots == 0


def test_only_the_start_of_a_giant_file_is_read():
    start = b"User-agent: *\nDisallow: /a0\n" + b"# filler\n" * 80_000
    found, _, _ = fetch(Answer(start + b"Disallow: /a1\n"), deadline=20)
    assert [r.status for r in found] == ["opt_out"] + ["ok"] * 4 and len(start) > 600_000


def test_redirects_end_where_they_are_forbidden():
    def script(seen):
        if seen.path == "/robots.txt":
            return Answer(b"User-agent: *\nDisallow: /secret\n")
        return Answer(status=302, headers={"Location": "/secret/b"})

    with FaultServer(script) as server, Fetcher(Policy(), private=frozenset([server.pair]), known=Known()) as fetcher:
        found = fetcher.fetch(server.url("/a"))
        assert (found.status, server.asked("/secret/b")) == ("opt_out", 0)


def test_a_reservation_on_a_redirect_counts():
    def script(seen):
        return Answer(b"file") if seen.path == "/b" else Answer(status=302, headers={"Location": "/b", "TDM-Reservation": "1"})

    with FaultServer(script) as server, Fetcher(Policy(robots=False), private=frozenset([server.pair])) as fetcher:
        assert (fetcher.fetch(server.url("/a")).status, server.asked("/b")) == ("opt_out", 0)
