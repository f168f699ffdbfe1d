"""The page over HTTP: who gets in, and what becomes of answers."""

import json
import threading
import urllib.error
import urllib.request

import pytest

from jevomerge.errors import InputError
from jevomerge.fitness.human.output import as_text
from jevomerge.fitness.human.page import Page
from jevomerge.fitness.human.round import Round
from jevomerge.fitness.human.votes import Votes


def call(link, path="", body=None, **headers):
    """(status, body) of a request with the token of a link."""
    address, _, token = link.partition("#")
    data = None if body is None else body if isinstance(body, bytes) else json.dumps(body).encode()
    request = urllib.request.Request(address + path, data, {"Authorization": f"Bearer {token}", **headers})
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


def question(link):
    return json.loads(call(link, "question")[1])


@pytest.fixture
def asked():
    """A page of two raters who are asked about three candidates and one prompt, in a thread: page, votes, thread."""
    votes = Votes()
    made = {name: [as_text(f"text of {i}")] for i, name in enumerate("abc")}
    round = Round("generation 0", "style", "search", [as_text("Say something")], made, votes, asked="Which is kinder?")
    with Page(["Ann", "Ben"]) as page:
        thread = threading.Thread(target=page.ask, args=(round,))
        thread.start()
        yield page, votes, thread
        thread.join(10)


def test_raters_are_asked_different_things_and_the_round_ends(asked):
    page, votes, thread = asked
    ann, ben = page.links.values()
    first = question(ann)
    assert {**first, "id": "", "left": "", "right": ""} == {
        "id": "", "asked": "Which is kinder?", "prompt": {"text": "Say something"}, "left": "", "right": "",
        "votes": 0, "limit": None,
    }  # fmt: skip
    assert question(ann) == first  # also when the page is opened again
    other = question(ben)
    assert {first["left"]["text"], first["right"]["text"]} != {other["left"]["text"], other["right"]["text"]}
    assert call(ben, "vote", {"id": first["id"], "choice": "left"})[0] == 409  # it is not his
    for link, id, choice in ((ann, first["id"], "tie"), (ben, other["id"], "left")):
        assert call(link, "vote", {"id": id, "choice": choice})[0] == 204
    assert call(ann, "vote", {"id": first["id"], "choice": "tie"})[0] == 409  # answered
    last, same = question(ann), question(ben)  # what nobody else has is nothing: both have the last one
    assert call(ann, "vote", {"id": last["id"], "choice": "right"})[0] == 204
    thread.join(10)
    assert not thread.is_alive()
    assert question(ann) == {}
    assert call(ben, "vote", {"id": same["id"], "choice": "left"})[0] == 204  # he was asked, so it counts
    assert [(v["rater"], v["choice"]) for v in votes.all] == [
        ("Ann", "tie"), ("Ben", "left"), ("Ann", "right"), ("Ben", "left"),
    ]  # fmt: skip


def test_who_has_no_token_gets_nothing(asked):
    page, votes, _ = asked
    ann, ben = page.links.values()
    address = ann.partition("#")[0]
    assert ann.startswith("http://127.0.0.1:")
    assert len({ann, ben}) == 2
    status, html = call(ann)
    assert status == 200
    assert "text of" not in html
    for wrong in (address, f"{address}#guess"):
        assert call(wrong, "question") == (401, "")
        assert call(wrong, "vote", {"id": "", "choice": "left"})[0] == 401
    assert call(ann, "question", Host="attacker.example")[0] == 400  # a name that leads here
    for body in (b"no JSON", [1], {"id": 1}, {"id": question(ann)["id"], "choice": ["left"]}):
        assert call(ann, "vote", body)[0] in (400, 409)
    assert call(ann, "vote")[0] == 405
    assert votes.all == []
    for link in (ann, ben, ann):
        call(link, "vote", {"id": question(link)["id"], "choice": "left"})


def test_a_port_that_is_taken_is_refused():
    with Page(["Ann"]) as page:
        port = int(page.links["Ann"].split(":")[2].split("/")[0])
        with pytest.raises(InputError, match=f"port {port} cannot be used"):
            Page(["Ann"], port)
