"""Only public unicast addresses may be reached, however they are written, named or led to; 0 connections to anything else."""

import ipaddress
import ssl
import subprocess

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.fetch import Fetcher, Policy
from pipelines.fetch.addresses import blocked
from pipelines.fetch.policy import private_pairs
from pipelines.fetch.urls import parse_url, redact
from pipelines.format.errors import InputError, Reject
from tests.fault_server import Answer, Canary, FaultServer


def words(text):
    return text.split()


# Addresses that a resolver may give, each of another kind of not public.
ADDRESSES = words(
    """
    0.0.0.0 0.1.2.3 10.0.0.1 10.255.255.255 100.64.0.1 100.100.100.200 127.0.0.1 127.0.0.2 127.255.255.254 168.63.129.16 169.254.169.254
    169.254.170.2 172.16.0.1 172.31.255.255 192.0.0.1 192.0.0.8 192.0.0.192 192.0.2.1 192.31.196.1 192.52.193.1 192.88.99.1 192.168.0.1
    192.168.255.255 192.175.48.1 198.18.0.1 198.19.255.255 198.51.100.1 203.0.113.1 224.0.0.1 239.255.255.250 240.0.0.1 255.255.255.255 :: ::1
    ::127.0.0.1 ::10.0.0.1 ::ffff:127.0.0.1 ::ffff:7f00:1 ::ffff:10.0.0.1 ::ffff:169.254.169.254 ::ffff:0:127.0.0.1 64:ff9b::7f00:1
    64:ff9b::10.0.0.1 64:ff9b::a9fe:a9fe 64:ff9b:1::7f00:1 100::1 2001::7f00:1 2001:0:4136:e378:8000:63bf:80ff:fffe 2001:2::1 2001:10::1
    2001:20::1 2001:db8::1 2002:7f00:1:: 2002:a00:1:: 2002:a9fe:a9fe::1 2002:808:808::1 3ffe::1 3fff::1 5f00::1 fc00::1 fd00:ec2::254 fe80::1
    fec0::1 ff02::1 2600::5efe:7f00:1 2600::200:5efe:a00:1 4000::1 8000::1 e000::1
    """
)
# Ways to write loopback and metadata addresses that some resolver or parser understands.
DISGUISED = words(
    """
    127.1 127.0.1 0x7f000001 0x7f.0.0.1 0x7f.1 2130706433 017700000001 0177.0.0.1 0177.1 127.0.0.01 127.000.000.001 0 0x0 0.0.0.0. 127.0.0.1.
    ①②⑦.⓪.⓪.① １２７.０.０.１ 127。0。0。1 127｡0.0.1 %31%32%37.0.0.1 127.0.0.1%00.example.com 127.0.0.1%20 0xa9fea9fe 2852039166 0251.0376.0251.0376
    169.16689662 [::1] [0:0:0:0:0:0:0:1] [::ffff:127.0.0.1] [::127.0.0.1] [::1%25lo] [fe80::1%25eth0] [::ffff:0x7f000001] localhost localhost.
    LOCALHOST 4294967296 4294967297 256.0.0.1 1.2.3.4.5 127.0.0.1:80@ 0x 08.8.8.8 user@127.0.0.1 user:pw@localhost @localhost
    example.com@127.0.0.1
    """
)
PUBLIC = words("1.1.1.1 8.8.8.8 93.184.216.34 192.0.1.1 100.128.0.1 172.32.0.1 2606:4700::1111 2a00:1450::1 64:ff9b::808:808 ::ffff:8.8.8.8")


def host(address):
    return f"[{address}]" if ":" in address else address


@pytest.mark.parametrize("address", ADDRESSES)
def test_the_table_refuses_what_is_not_public(address):
    assert blocked(address)


@pytest.mark.parametrize("address", PUBLIC)
def test_the_table_allows_public_addresses(address):
    assert blocked(address) is None


WRAPPERS = ["::ffff:{}", "::{}", "64:ff9b::{}", "64:ff9b:1::{}", "::ffff:0:{}", "2600::5efe:{}", "2600::200:5efe:{}"]
PRIVATE = st.sampled_from(["10.0.0.0/8", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12", "192.168.0.0/16", "100.64.0.0/10", "224.0.0.0/4"])


@given(PRIVATE, st.integers(0, 2**32 - 1), st.sampled_from(WRAPPERS))
def test_no_wrapper_makes_a_private_address_public(net, n, wrapper):
    net = ipaddress.ip_network(net)
    v4 = net[n % net.num_addresses]
    assert blocked(str(v4)) and blocked(wrapper.format(v4))
    teredo = f"2001:0:4136:e378:8000:63bf:{(~int(v4) >> 16) & 0xFFFF:x}:{~int(v4) & 0xFFFF:x}"
    assert blocked(str(ipaddress.ip_address((0x2002 << 112) | (int(v4) << 80)))) and blocked(teredo)


@given(st.integers(0, 2**128 - 1))
def test_what_is_allowed_in_ipv6_is_global_unicast(n):
    ip = ipaddress.IPv6Address(n)
    if blocked(str(ip)) is None:
        v4 = ip in ipaddress.ip_network("::ffff:0:0/96") or ip in ipaddress.ip_network("64:ff9b::/96")
        assert v4 or (ip in ipaddress.ip_network("2000::/3") and ip.is_global)


@pytest.fixture(scope="module")
def places():
    """A server that leads anywhere (`/to?URL`), a canary, and a fetcher that allows exactly the server."""
    names = {}

    def lead(seen):
        status, _, to = seen.path.partition("?")
        return Answer(status=int(status.rpartition("/")[2]), headers={"Location": to}) if to else None

    def answers(name):
        known = names.get(name, ["127.0.0.1"])  # any other name is what an attacker would want it to be
        return known(name) if callable(known) else known

    with FaultServer(lead) as server, Canary() as canary:
        policy = Policy(ports=(canary.port,), robots=False, connect=0.5, deadline=2, attempts=1, host_failures=10**6)
        with Fetcher(policy, private=frozenset([server.pair]), resolve=answers) as fetcher:
            yield server, canary, fetcher, names


def refused(fetcher, canary, url):
    before = canary.hits
    found = fetcher.fetch(url)
    assert found.status == "not_allowed" and not found.body, (url, found)
    assert canary.hits == before
    return found


@pytest.mark.parametrize("form", [*map(host, ADDRESSES), *DISGUISED])
def test_no_form_reaches_the_canary_directly_or_by_redirect(places, form):
    server, canary, fetcher, _ = places
    assert refused(fetcher, canary, f"http://{form}:{canary.port}/x").requests == 0
    for status in (301, 302, 303, 307, 308):
        hop = refused(fetcher, canary, server.url(f"/{status}?http://{form}:{canary.port}/x"))
        assert hop.requests == 1


@pytest.mark.parametrize("address", ADDRESSES)
def test_no_name_leads_to_the_canary_nor_one_public_answer_beside_it(places, address):
    server, canary, fetcher, names = places
    names[f"n{len(names)}.test"] = [address]
    names[f"n{len(names)}.test"] = ["93.184.216.34", address]
    for name in list(names)[-2:]:
        assert refused(fetcher, canary, f"http://{name}:{canary.port}/x").requests == 0
        refused(fetcher, canary, server.url(f"/302?http://{name}:{canary.port}/x"))


def test_a_name_that_changes_its_answer_is_never_followed(places):
    _, canary, fetcher, names = places
    turns = iter(range(10**6))
    names["rebind.test"] = lambda name: [["127.0.0.1"], ["93.184.216.34", "127.0.0.1"]][next(turns) % 2]
    before = canary.hits
    for i in range(1000):
        assert fetcher.fetch(f"http://rebind.test:{canary.port}/{i}").status == "not_allowed"
    assert canary.hits == before and next(turns) >= 1000


def test_a_vetted_address_is_the_one_connected_to_though_the_name_has_moved_on():
    with FaultServer(lambda seen: Answer(b"good")) as server, Canary() as canary:
        asked = []

        def answers(name):
            asked.append(name)
            return ["127.0.0.1"] if len(asked) == 1 else ["127.0.0.2"]

        with Fetcher(Policy(robots=False), private=frozenset([server.pair]), resolve=answers) as fetcher:
            assert [fetcher.fetch(server.url(f"/{i}", "once.test")).body for i in range(3)] == [b"good"] * 3
        assert asked == ["once.test"] and {h for h, _ in server.log} == {"once.test"} and canary.hits == 0


CHAINED = words(
    """
    file:///etc/passwd ftp://x.test/a gopher://127.0.0.1:6379/_x data:image/png;base64,AAAA javascript:alert(1) simplecache::http://x.test/a
    zip://a.png::http://x.test/a.zip reference:://x local:/etc/passwd memory://a s3://bucket/key gs://b/k hf://datasets/x pipe:cat pipe:curl%20x
    - /etc/passwd ../../etc/passwd //x.test/a http:/x.test/a http:x.test http:// http:///a https://?q ht!tp://x unix:/run/docker.sock dict://x:1
    jar:http://x!/y blob:http://x.test/1 view-source:http://x.test about:blank ws://x.test/ git://x.test/a ssh://x.test tcp://x.test:1
    http+unix://x httpx://x.test http://x.test:0/ http://x.test:99999/ http://x.test:-1/ http://x.test:22/ http://x.test:6379/
    https://x.test:2375/ http://[::1 http://[x]/ http://x.test\\@y/ http://x_.-/ http://-x.test/ http://x..test/ http://.x.test/ http://xn--/
    http://x.test%2f@y.test/
    """
)


ODD = ["", " ", "http://a\nb.test/", "http://x.test/\r\nHost: y", "http://x.test/\0", "http://" + "a" * 9000, "http://" + "a." * 200]


@pytest.mark.parametrize("url", [*CHAINED, *ODD])
def test_odd_and_chained_urls_are_refused_before_any_request(places, url):
    _, canary, fetcher, _ = places
    assert refused(fetcher, canary, url).requests == 0


def test_urls_are_normalised_and_relative_redirects_resolved():
    t = parse_url("HTTP://BÜCHER.example:80/ä b?q=ü&x=%2F#frag")
    assert (t.url, t.authority) == ("http://xn--bcher-kva.example/%C3%A4%20b?q=%C3%BC&x=%2F", "xn--bcher-kva.example")
    assert parse_url("../c?d", parse_url("https://h.test:8443/a/b/e")).url == "https://h.test:8443/a/c?d"
    assert parse_url("//o.test", t).url == "http://o.test/"
    assert parse_url("http://[2606:4700:0::1111]/").authority == "[2606:4700::1111]"


def test_a_redirect_from_https_to_http_is_refused_and_back_is_not(tmp_path):
    key, cert = tmp_path / "k.pem", tmp_path / "c.pem"
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", key, "-out", cert, "-days", "2", "-subj", "/CN=s.test"]
    made = subprocess.run([*command, "-addext", "subjectAltName=DNS:s.test"], capture_output=True)
    if made.returncode:
        pytest.skip("no openssl command")
    inside = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    inside.load_cert_chain(cert, key)
    trust = ssl.create_default_context(cafile=str(cert))

    def script(seen):
        return Answer(status=302, headers={"Location": plain.url("/x")}) if seen.path == "/down" else Answer(b"secure")

    def up(seen):
        return Answer(status=302, headers={"Location": f"https://s.test:{secure.port}/ok"}) if seen.path == "/up" else Answer(b"plain")

    with FaultServer(script) as secure, FaultServer(up) as plain:
        secure.socket = inside.wrap_socket(secure.socket, server_side=True)
        pairs = frozenset([secure.pair, plain.pair])
        make = lambda tls: Fetcher(Policy(robots=False, attempts=1), private=pairs, resolve=lambda name: ["127.0.0.1"], tls=tls)
        with make(trust) as fetcher:
            assert fetcher.fetch(plain.url("/up")).body == b"secure"
            found = fetcher.fetch(f"https://s.test:{secure.port}/down")
            assert (found.status, plain.asked("/x")) == ("not_allowed", 0)
            wrong = fetcher.fetch(f"https://other.test:{secure.port}/ok")
            assert wrong.status == "fetch_permanent" and "certificate" in wrong.detail
        with make(None) as fetcher:  # the machine's own certificates do not know this one
            assert fetcher.fetch(f"https://s.test:{secure.port}/ok").status == "fetch_permanent"
        assert secure.asked("/ok") == 1


def test_proxies_and_credentials_of_the_environment_are_not_used(monkeypatch):
    with FaultServer(lambda seen: Answer(b"direct")) as server, Canary() as canary:
        for name in ("http_proxy", "HTTP_PROXY", "https_proxy", "ALL_PROXY"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{canary.port}")
        with Fetcher(Policy(robots=False), private=frozenset([server.pair])) as fetcher:
            assert fetcher.fetch(server.url("/a")).body == b"direct"
        assert canary.hits == 0


def test_private_pairs_come_from_the_environment_exactly():
    assert private_pairs({"HEADWATER_FETCH_PRIVATE": "10.0.0.1:8080, [fd00::1]:80"}) == {("10.0.0.1", 8080), ("fd00::1", 80)}
    assert private_pairs({}) == frozenset()
    with pytest.raises(InputError):
        private_pairs({"HEADWATER_FETCH_PRIVATE": "10.0.0.1"})
    with pytest.raises(Reject):
        parse_url("http://10.0.0.1:8080@x/")


@pytest.mark.parametrize(
    ("text", "secret"),
    [
        ("http://user:hunter2@h.test/p", "hunter2"),
        ("https://h.test/p?X-Amz-Signature=abcdef0123&x=1", "abcdef0123"),
        ("https://h.test/p?token=t0p#frag", "t0p"),
        ("failed: s3://AKIAABCDEFGHIJKLMNOP:wJalrXUt@bucket/key?x=1", "wJalrXUt"),
        ("key AKIAABCDEFGHIJKLMNOP", "AKIAABCDEFGHIJKLMNOP"),
        ("ghp_0123456789abcdefghijABCDEFGHIJ456789", "ghp_0123456789abcdefghij"),
        ("hf_abcdefghijklmnopqrstuvwxyzABCDEFGH", "hf_abcdefghijklmnopqrst"),
        ("Authorization: Bearer abc.def", "abc.def"),
        ("Cookie: session=12345", "12345"),
        ("eyJhbGciOiJI.eyJzdWIiOiIx.sflKxwRJSM", "eyJzdWIiOiIx"),
        ("sig=Zm9vYmFy&se=2030", "Zm9vYmFy"),
        ("password = letmein", "letmein"),
    ],
)
def test_secrets_are_not_shown(text, secret):
    assert secret in text and secret not in redact(text)
    assert redact("GET http://h.test/a/b.jpg failed: HTTP 404") == "GET http://h.test/a/b.jpg failed: HTTP 404"


def test_the_canary_does_count_who_is_let_through():
    with Canary() as canary, Fetcher(Policy(robots=False, attempts=1), private=frozenset([("127.0.0.1", canary.port)])) as fetcher:
        assert fetcher.fetch(f"http://127.0.0.1:{canary.port}/").status == "fetch_transient" and canary.hits == 1
        assert fetcher.fetch(f"http://127.0.0.2:{canary.port}/").status == "not_allowed" and canary.hits == 1
