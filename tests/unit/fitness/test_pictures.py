"""Pictures in rows of data, as their files give them; what is in the pictures is tests/unit/models/vision's."""

import base64
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from jevomerge.checkpoint.source import Checkpoint
from jevomerge.errors import InputError
from jevomerge.fitness.data import load_examples, refuse_overlap
from jevomerge.fitness.pictures import Eyes
from jevomerge.fitness.schema import Task
from jevomerge.tokenizers.load import load_tokenizer
from tests.composites import write_vlm
from tests.seeing import picture
from tests.unit.models.vision.test_pictures import FILES, header_only, stored


@pytest.fixture(scope="module")
def sees(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sees")
    write_vlm(folder, 2)
    tokenizer = load_tokenizer(folder)
    return tokenizer, Eyes(Checkpoint(folder), tokenizer)


def examples_of(path, sees, **task):
    data = {"name": "t", "search": str(path), "heldout": str(path), "prompt": "<image> w1", "answer": "w2"}
    return load_examples(Task.model_validate(data | task), "search", *sees)[1]


def in_parquet(path, values, column="image"):
    pq.write_table(pa.table({column: values, "n": list(range(len(values)))}), path)
    return path


def test_all_that_pillow_reads_is_a_picture(tmp_path, sees):
    tiny = stored(Image.new("RGB", (1, 1)), "png")
    moving = stored(picture(9, 9), "gif", save_all=True, append_images=[picture(9, 9, 1)])
    files = [*FILES.values(), tiny, stored(Image.new("L", (1, 90)), "png"), moving]
    path = in_parquet(tmp_path / "rows.parquet", [{"bytes": content, "path": None} for content in files])
    examples = examples_of(path, sees, image="{image}")
    assert [e.features for e in examples] == [4] * len(files)
    assert [e.pictures[0].content for e in examples] == files
    assert sees[1].look(examples[-3].pictures[0]).shape == (4, 24)


def test_base64_in_a_table(tmp_path, sees):
    large = stored(picture(300, 300), "bmp")
    large = stored(Image.frombytes("RGB", (300, 300), large[54:]), "png")  # longer than Python's csv takes by itself
    files = [FILES["jpeg"], FILES["gif"], FILES["webp"], large]
    texts = [base64.b64encode(content).decode() for content in files]
    assert len(texts[-1]) > 131072
    texts[0] = f"data:image/jpeg;base64,{texts[0]}"
    (tmp_path / "rows.tsv").write_text("index\timage\n" + "".join(f"{i}\t{t}\n" for i, t in enumerate(texts)))
    assert [e.pictures[0].content for e in examples_of(tmp_path / "rows.tsv", sees, image="{image}")] == files


def test_an_image_folder(tmp_path, sees):
    for name in ("a.png", "deeper/b.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        picture(9, 9, len(name)).save(tmp_path / name)
    rows = [{"file_name": "a.png", "text": "w3"}, {"file_name": "deeper/b.png", "text": "w4"}]
    (tmp_path / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = examples_of(tmp_path / "metadata.jsonl", sees, image="{file_name}", answer="{text}")
    assert [e.answer for e in found] == ["w3", "w4"]
    assert [e.pictures[0].content for e in found] == [(tmp_path / r["file_name"]).read_bytes() for r in rows]
    (tmp_path / "elsewhere.jsonl").write_text('{"name": "b"}\n')
    (one,) = examples_of(tmp_path / "elsewhere.jsonl", sees, image="deeper/{name}.png")
    assert one.pictures[0].digest == found[1].pictures[0].digest


def test_fields_that_are_null_hold_no_picture(tmp_path, sees):
    content = {"bytes": FILES["rgb"], "path": None}
    table = {"image_1": [content] * 2, "image_2": [None, content], "question": ["<image>", "<image> <image>"]}
    pq.write_table(pa.table(table), tmp_path / "rows.parquet")
    images = ["{image_1}", "{image_2}"]
    found = examples_of(tmp_path / "rows.parquet", sees, image=images, prompt="w1 {question}")
    assert [len(e.pictures) for e in found] == [1, 2]
    with pytest.raises(InputError, match=r"no row has a picture where `image` says, \{imgae\}"):
        examples_of(tmp_path / "rows.parquet", sees, image="{imgae}", prompt="w1")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (FILES["jpeg"][:300], "cannot be read as a picture"),
        (header_only(20000, 10000), "too many pixels"),
        (b"text", "cannot be read as a picture"),
    ],
)
def test_a_picture_that_cannot_be_read_is_named_by_its_row(content, words, tmp_path, sees):
    path = in_parquet(tmp_path / "rows.parquet", [FILES["rgb"], content])
    with pytest.raises(InputError, match=r"rows\.parquet, row 1 \(the first is 0\), picture 0: ") as caught:
        examples_of(path, sees, image="{image}")
    assert words in str(caught.value)


def test_the_same_question_about_another_picture_is_another_example(tmp_path, sees):
    same, other = ([FILES["rgb"], FILES[name]] for name in ("rgb", "gif"))
    one, two = (examples_of(in_parquet(tmp_path / "rows.parquet", c), sees, image="{image}") for c in (same, other))
    refuse_overlap("t", two[:1], two[1:])
    with pytest.raises(InputError, match="1 of 1 held-out"):
        refuse_overlap("t", one[:1], one[1:])
