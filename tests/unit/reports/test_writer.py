"""The page is there when the run is said to be finished, and a run does not fail for want of one."""

import json

import pytest
import yaml

from jevomerge.reports.writer import PageWriter


class Listener:
    """Hears that a run is finished, and whether there is a page by then."""

    def __init__(self):
        self.heard = []

    def stage(self, text):
        self.heard.append(text)

    def note(self, text):
        self.heard.append(text)

    def finished(self, result, folder):
        self.heard.append((result, (folder / "report.html").exists()))

    stages_finished = finished


@pytest.mark.parametrize("event", ["finished", "stages_finished"])
def test_no_page_is_only_a_note(event, tmp_path):
    listener, result = Listener(), {"evaluations": 3}
    getattr(PageWriter(listener), event)(result, tmp_path)  # which is no run
    stage, note, told = listener.heard
    assert stage == "writing the report"
    assert note.startswith("no report: ")
    assert note.endswith(f"`jevomerge report {tmp_path} --debug` tries again")
    assert told == (result, False)


def test_the_page_comes_first(tmp_path):
    config = {"name": "begun", "recipe": {"merge_method": "linear", "models": [{"model": "none"}]}}
    config |= {"genome": {"weight": [0, 1]}, "tasks": [{"name": "t", "search": "s", "heldout": "h"}]}
    config["tasks"][0] |= {"prompt": "{q}", "answer": "{a}", "score": "likelihood"}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    environment = {"genes": ["model/none/weight"], "population": 4, "packages": {}}
    (tmp_path / "environment.json").write_text(json.dumps(environment))
    listener = Listener()
    PageWriter(listener).finished({}, tmp_path)
    assert listener.heard == ["writing the report", ({}, True)]
