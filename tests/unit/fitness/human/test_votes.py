"""The log of votes."""

import io
import json
import resource
import signal

import numpy as np
import pytest
from PIL import Image

from jevomerge.errors import InputError
from jevomerge.fitness.human.output import as_picture, as_text
from jevomerge.fitness.human.votes import Votes, read_votes

VOTE = {
    "task": "style", "split": "search", "round": "sources", "prompt": 0,
    "left": {"by": ["a"], "digest": "1"}, "right": {"by": ["b"], "digest": "2"},
    "choice": "left", "rater": "Ann", "time": "2026-01-01T00:00:00+00:00",
}  # fmt: skip


def test_votes_are_read_again_without_a_line_that_was_cut_short(tmp_path):
    path = tmp_path / "votes.jsonl"
    with Votes(path) as votes:
        votes.add(VOTE)
        votes.add(VOTE | {"split": "heldout", "choice": "tie"})
    whole = path.read_bytes()
    path.write_bytes(whole + json.dumps(VOTE).encode()[:40])
    with Votes(path) as votes:
        assert len(votes.all) == 2
        assert [v["choice"] for v in votes.of("style", "heldout")] == ["tie"]
        assert votes.of("other", "search") == []
    assert path.read_bytes() == whole


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("no JSON", ":2: "),
        (json.dumps(VOTE | {"choice": "both"}), ":2: `choice`: input should be 'left', 'right' or 'tie'; no vote"),
        (json.dumps({k: v for k, v in VOTE.items() if k != "rater"}), ":2: `rater`: field required; no vote"),
    ],
)
def test_what_is_no_vote_is_refused_with_its_line(line, message, tmp_path):
    (tmp_path / "votes.jsonl").write_text(f"{json.dumps(VOTE)}\n{line}\n")
    with pytest.raises(InputError, match="remove the line") as error:
        read_votes(tmp_path / "votes.jsonl")
    assert message in str(error.value)


def test_a_full_disk_leaves_no_half_of_a_vote(tmp_path):
    path = tmp_path / "votes.jsonl"
    with Votes(path) as votes:
        votes.add(VOTE)
        size, limits = path.stat().st_size, resource.getrlimit(resource.RLIMIT_FSIZE)
        handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size + 10, limits[1]))
        try:
            with pytest.raises(OSError, match="File too large"):
                votes.add(VOTE)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
            signal.signal(signal.SIGXFSZ, handler)
        assert (len(votes.all), path.stat().st_size) == (1, size)
        votes.add(VOTE)
    assert len(read_votes(path)[0]) == 2


def test_texts_that_look_the_same_are_the_same():
    assert as_text(" yes\n").digest == as_text("yes").digest != as_text("no").digest


def test_pictures_are_kept_once_to_the_bit_as_long_as_there_is_room(tmp_path, monkeypatch):
    one, other = (np.random.default_rng(seed).integers(0, 256, (5, 7, 3), np.uint8) for seed in (0, 1))
    assert as_picture(one).digest == as_picture(one.copy()).digest
    assert len({as_picture(x).digest for x in (one, other, one.reshape(7, 5, 3))}) == 3
    with Votes(tmp_path / "votes.jsonl") as votes:
        kept = votes.keep(as_picture(one))
        assert kept == votes.keep(as_picture(one)) == {"picture": f"pictures/{as_picture(one).digest}.png"}
        png = (tmp_path / kept["picture"]).read_bytes()
        np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(png))), one)
        monkeypatch.setattr("jevomerge.fitness.human.output.ROOM", len(png) + 10)
        assert votes.keep(as_picture(other)) == {}
        assert votes.keep(as_picture(one)) == kept
    assert [p.name for p in (tmp_path / "pictures").iterdir()] == [f"{as_picture(one).digest}.png"]
    assert Votes().keep(as_picture(one)) == {}
