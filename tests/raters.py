"""Simulated raters of people's pages, over HTTP as a browser would, whose taste is known."""

import base64
import io
import json
import os
import re
import signal
import threading
import time
import urllib.request

import numpy as np

from jevomerge.observers.observer import Observer

COMMON = {"the", "a", "was", "and", "to", "there", "she", "he", "named", "girl", "day", "big", "with", "little", "it"}


def english(output):
    """How many English words a text has."""
    return sum(word.strip(".,!") in COMMON for word in output["text"].lower().split())


def dark(output):
    """How dark a picture is."""
    from PIL import Image

    content = base64.b64decode(output["picture"].removeprefix("data:image/png;base64,"))
    return -float(np.asarray(Image.open(io.BytesIO(content))).mean())


def call(link, path, body=None):
    address, _, token = link.partition("#")
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(address + path, data, {"Authorization": f"Bearer {token}"})
    with urllib.request.urlopen(request, timeout=120) as answer:  # of a busy machine
        return answer.read()


def answer(link, taste=english):
    """Answer a question, if there is one; what was asked."""
    if asked := json.loads(call(link, "question")):
        left, right = taste(asked["left"]), taste(asked["right"])
        choice = "tie" if left == right else "left" if left > right else "right"
        call(link, "vote", {"id": asked["id"], "choice": choice})
    return asked


class Rater(Observer):
    """Watches a run for links, and answers what is asked there until the page is gone; stops it `after` so many."""

    def __init__(self, after=10**6, taste=english):
        self.asked, self.after, self.taste = [], after, taste

    def note(self, text):
        if link := re.search(r"judges at (http\S+)", text):
            threading.Thread(target=self.judge, args=(link[1],)).start()

    def judge(self, link):
        while True:
            try:
                asked = answer(link, self.taste)
            except OSError:
                return
            if asked:
                self.asked.append(asked)
                if len(self.asked) == self.after:
                    os.kill(os.getpid(), signal.SIGINT)
                    return
            else:
                time.sleep(0.02)


def votes_of(folder):
    return [json.loads(line) for line in (folder / "votes.jsonl").read_text().splitlines()]
