"""Trains the models: a bilingual base, from it one that reads Japanese, and one that learns to see, in English.

python experiments/japanese_vqa_mini/train.py            # all three, into models/
"""

import time
from collections.abc import Iterable, Iterator, Sequence
from functools import cache, partial
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

import flax.linen as nn
import generate
import jax
import jax.numpy as jnp
import numpy as np
import optax
import scenes
from arguments import make_parser

import jevomerge as jm
from jevomerge.checkpoint.export import export_folder, tensors_of, write_model
from jevomerge.checkpoint.safetensors_file import read_header
from jevomerge.models.decoder.blocks import init as init_decoder
from jevomerge.models.families import read_model, read_seeing
from jevomerge.models.llava.llava import PROJECTOR, Projector
from jevomerge.models.model import Pictures
from jevomerge.models.specs import flatten, unflatten
from jevomerge.models.vision.blocks import init as init_tower
from jevomerge.models.vision.specs import TEXT, TOWER
from jevomerge.models.vision.tower import look

HERE = Path(__file__).parent
LABELS = "labels"  # where the map hangs with which the tower learns to see
MODELS = HERE / "models"  # those all seeds have, and the others of the first
LENGTH, ROWS, AT_ONCE = 64, 32, 20  # tokens of a row, rows of a step, steps of a call
TOKENIZER = generate.make_tokenizer(image=True)
IMAGE = TOKENIZER.convert_tokens_to_ids(generate.IMAGE)
WORDS = IMAGE  # of the text models: all tokens before the picture's

CONFIG: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": WORDS,
    "hidden_size": 96, "intermediate_size": 192, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 4, "hidden_act": "silu", "max_position_embeddings": 128, "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0, "tie_word_embeddings": True, "attention_bias": False, "mlp_bias": False,
    "bos_token_id": 0, "eos_token_id": 1,
}  # fmt: skip
VISION: dict[str, Any] = {
    "model_type": "clip_vision_model", "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 3,
    "num_attention_heads": 4, "image_size": scenes.SIZE, "patch_size": 8,
}  # fmt: skip
LLAVA: dict[str, Any] = {
    "architectures": ["LlavaForConditionalGeneration"], "model_type": "llava", "image_token_index": IMAGE,
    "vision_feature_layer": -2, "vision_feature_select_strategy": "default", "projector_hidden_act": "gelu",
    "tie_word_embeddings": True, "vision_config": VISION,
    "text_config": CONFIG | {"vocab_size": 64 * -(-len(TOKENIZER) // 64)},  # as LLaVA's: with rows of no token
}  # fmt: skip
PROCESSOR: dict[str, Any] = {
    "preprocessor_config.json": {
        "image_processor_type": "CLIPImageProcessor", "do_convert_rgb": True, "do_resize": True, "resample": 3,
        "size": {"shortest_edge": scenes.SIZE}, "do_center_crop": True,
        "crop_size": {"height": scenes.SIZE, "width": scenes.SIZE}, "do_rescale": True, "rescale_factor": 1 / 255,
        "do_normalize": True, "image_mean": [0.5] * 3, "image_std": [0.5] * 3,
    },
    "processor_config.json": {
        "processor_class": "LlavaProcessor", "patch_size": VISION["patch_size"], "image_token": generate.IMAGE,
        "vision_feature_select_strategy": "default", "num_additional_image_tokens": 1,
    },
}  # fmt: skip
DECODER, SEEING = read_model(CONFIG), read_seeing(LLAVA)


class Run(NamedTuple):
    """How one stage is trained."""

    steps: int
    rate: float
    trained: tuple[tuple[str, float], ...]  # parts of the parameters, at which share of the rate
    curriculum: float  # which share of the steps goes by until scenes have up to four things

    def share(self, path: str) -> float:
        """Of the rate, for a parameter; 0: it stays as it is."""
        return next((share for part, share in self.trained if path.startswith(part)), 0)


RUNS = {
    "base": Run(1800, 2e-3, ((TEXT, 1),), 0.3),
    "japanese": Run(300, 5e-4, ((TEXT, 1),), 0),
    "labels": Run(1000, 3e-3, ((TOWER, 1), (LABELS, 1)), 0),
    "captions": Run(800, 3e-3, ((TOWER, 1), (PROJECTOR, 1)), 0.3),
    "llava": Run(500, 2e-3, ((f"{TEXT}.layers", 0.1), (TOWER, 0.5), (PROJECTOR, 1)), 0),
}


class Batches(NamedTuple):
    """Of several steps: (S, B, T + 1) tokens, the weight of each in the loss, and (S, B, 32, 32, 3) pictures if any."""

    tokens: np.ndarray
    weights: np.ndarray
    pictures: np.ndarray | None = None


def batches(corpus: str, run: Run, seed: int) -> Iterator[Batches]:
    """Rows of one document each, cut where they are full; AT_ONCE steps at a time."""
    stream, rng = generate.documents(corpus, seed), np.random.default_rng(seed)
    for step in range(0, run.steps, AT_ONCE):
        most = 4 if step >= run.curriculum * run.steps else 1 + int(3 * step / (run.curriculum * run.steps))
        made = [next(stream)(most) for _ in range(min(AT_ONCE, run.steps - step) * ROWS)]
        pictures = [scenes.render(rng, [d.scene for d in made])] if made[0].context is None else []
        arrays = (x.reshape(-1, ROWS, *x.shape[1:]) for x in (*pack(made, LENGTH), *pictures))
        yield Batches(*arrays)


def pack(documents: Sequence[generate.Document], length: int) -> tuple[np.ndarray, np.ndarray]:
    """(N, length + 1) tokens, and the weight of each in the loss: only what is to be written counts."""
    tokens = np.ones((len(documents), length + 1), np.int32)
    weights = np.zeros((len(documents), length + 1), np.float32)
    for i, document in enumerate(documents):
        row = [0, *([IMAGE] * SEEING.config.per_view if document.context is None else encoded(document.context))]
        weight = [0.0] * len(row)
        for read, written in document.turns:
            new, end = encoded((read,)), (*encoded(written), 1)
            row += [*new, *end]
            weight += [0.0] * len(new) + [1.0] * len(end)
        row, weight = row[: length + 1], weight[: length + 1]
        tokens[i, : len(row)], weights[i, : len(row)] = row, weight
    return tokens, weights


@cache
def piece(text: str) -> tuple[int, ...]:
    return tuple(TOKENIZER(text, add_special_tokens=False)["input_ids"])


def encoded(texts: Iterable[str]) -> list[int]:
    """The tokens of texts that stand one behind another; each is looked up once in a run."""
    return [token for text in texts for token in piece(text)]


def features(params: Any, pictures: jax.Array) -> jax.Array:
    """(B, 32, 32, 3) uint8 -> (B, 16, features), what the tower makes of the patches."""
    pixels, c = (pictures.astype(jnp.float32) / 255 - 0.5) / 0.5, SEEING.config
    [found] = look(params[TOWER], c.vision, pixels.transpose(0, 3, 1, 2), c.layers)
    return found[:, int(c.drop_first) :]


def seen(params: Any, pictures: jax.Array) -> Pictures:
    """(B, 32, 32, 3) uint8 -> what they are to the decoder."""
    x = Projector(SEEING.config).apply({"params": params[PROJECTOR]}, features(params, pictures))
    return Pictures(x, jnp.asarray(IMAGE, jnp.int32))


@cache
def reading(model: Any) -> Any:
    """How well a decoder writes: (parameters, a step of `Batches`) -> loss and the share of right tokens."""

    def measure(params: Any, tokens: jax.Array, weights: jax.Array, pictures: jax.Array | None) -> Any:
        given = None if pictures is None else seen(params, pictures)
        valid = jnp.ones(tokens[:, :-1].shape, bool)
        hidden, _ = jm.apply(params[TEXT], model, tokens[:, :-1], valid, pictures=given)
        logits = jm.unembed(params[TEXT], model, hidden)
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, tokens[:, 1:])
        right = (jnp.argmax(logits, -1) == tokens[:, 1:]) * weights[:, 1:]
        total = jnp.sum(weights[:, 1:])
        return jnp.sum(losses * weights[:, 1:]) / total, jnp.sum(right) / total

    return measure


def labelling(params: Any, labels: jax.Array, pictures: jax.Array) -> Any:
    """How well each feature shows the colour and the shape in its quarter, labels (B, 16, 2), to a linear map."""
    logits = jnp.einsum("bpd,kld->bpkl", features(params, pictures), params[LABELS])
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    return jnp.mean(losses), jnp.mean(jnp.argmax(logits, -1) == labels)


def labelled(run: Run, seed: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Steps of pictures with the labels of their quarters, the last of each kind for an empty one."""
    rng, noise, none = Random(f"labels {seed}"), np.random.default_rng(seed), len(scenes.COLOURS)
    side = SEEING.config.vision.side
    quarter = [2 * (2 * i // side) + 2 * j // side for i in range(side) for j in range(side)]
    for _ in range(0, run.steps, AT_ONCE):
        made = [scenes.draw(rng, "train") for _ in range(AT_ONCE * ROWS)]
        labels = np.full((len(made), 4, 2), none, np.int32)
        for label, scene in zip(labels, made, strict=True):
            for place, *what in scene.things:
                label[place] = what
        arrays = labels[:, quarter], scenes.render(noise, made)
        yield tuple(x.reshape(AT_ONCE, ROWS, *x.shape[1:]) for x in arrays)


@cache
def make_steps(run: Run, measure: Any) -> tuple[Any, Any]:
    """The optimizer, AdamW with a warm-up and a cosine, and several jitted steps of it."""
    schedule = optax.warmup_cosine_decay_schedule(0.0, run.rate, min(100, run.steps // 5), run.steps, run.rate * 0.03)
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(schedule, b2=0.98, weight_decay=0.01))

    @partial(jax.jit, donate_argnums=(0, 1))
    def steps(params: Any, state: Any, fixed: Any, given: Any) -> tuple[Any, Any, Any]:
        def one(carry: Any, batch: Any) -> Any:
            params, state = carry
            loss = partial(lambda batch, p: measure(unflatten(p | fixed), *batch), batch)
            shown, gradient = jax.value_and_grad(loss, has_aux=True)(params)
            updates, state = optimizer.update(gradient, state, params)
            shared = {path: run.share(path) * update for path, update in updates.items()}
            return (optax.apply_updates(params, shared), state), shown

        (params, state), shown = jax.lax.scan(one, (params, state), given)
        return params, state, jax.tree.map(jnp.mean, shown)

    return optimizer, steps


def fit(name: str, run: Run, measure: Any, params: Any, given: Iterable[Any]) -> Any:
    """Train the parts that are to be trained; prints loss and the share that is right as it goes."""
    leaves = flatten(params)
    trained = {path: leaf for path, leaf in leaves.items() if run.share(path)}
    fixed = {path: leaf for path, leaf in leaves.items() if path not in trained}
    optimizer, steps = make_steps(run, measure)
    state, start, done, shown = optimizer.init(trained), time.monotonic(), 0, None
    for several in given:  # made while the steps before are computed
        if shown is not None and done % (5 * AT_ONCE) == 0:
            tell(name, run, done, start, shown)
        trained, state, shown = steps(trained, state, fixed, several)
        done += len(several[0])
    tell(name, run, done, start, shown)
    return unflatten(trained | fixed)


def tell(name: str, run: Run, done: int, start: float, shown: Any) -> None:
    loss, right = map(float, shown)
    took = time.monotonic() - start
    print(f"{name} {done}/{run.steps}: loss {loss:.4f}, right {right:.3f}, {took:.0f} s", flush=True)


def beginning(seed: int) -> Any:
    """A decoder of random numbers."""
    return {TEXT: nn.unbox(init_decoder(jax.random.key(seed), DECODER.config))}


def with_eyes(text: Any, seed: int) -> Any:
    """The model that is to see: a decoder with rows for more tokens, a tower that knows labels, a random projector."""
    *keys, last = jax.random.split(jax.random.key(seed), 3)
    weight, wanted = text["embed_tokens"]["weight"], SEEING.text.vocab_size
    more = 0.02 * jax.random.normal(last, (wanted - len(weight), weight.shape[1]))
    wider = text | {"embed_tokens": {"weight": jnp.concatenate([weight, more])}}
    features = jnp.zeros((1, VISION["hidden_size"]))
    projector = Projector(SEEING.config).init(keys[1], features)["params"]
    tower = jax.tree.map(jnp.array, nn.unbox(init_tower(keys[0], SEEING.config.vision)))  # two norms were one buffer
    start = {TOWER: tower, LABELS: jnp.zeros((2, len(scenes.COLOURS) + 1, VISION["hidden_size"]))}
    knowing = fit("labels", RUNS["labels"], labelling, start, labelled(RUNS["labels"], seed))
    return {TEXT: wider, TOWER: knowing[TOWER], PROJECTOR: nn.unbox(projector)}


def write(folder: Path, params: Any, about: str) -> None:
    """An ordinary Hugging Face folder in bfloat16, of a decoder or of a model that sees."""
    sees = TOWER in params
    model, params = (SEEING, params) if sees else (DECODER, params[TEXT])
    tokenizer = TOKENIZER if sees else generate.make_tokenizer()
    ends = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    files = {**model.files, "generation_config.json": ends} | (PROCESSOR if sees else {})
    with export_folder(folder) as new:
        tokenizer.save_pretrained(new)
        rounded = jax.tree.map(lambda x: x.astype(jnp.bfloat16), params)
        write_model(new, files, model.specs, "bfloat16", tensors_of(rounded))
        head = ["---", "license: apache-2.0", "language: [en, ja]", "library_name: transformers", "---"]
        (new / "README.md").write_text("\n".join([*head, "", f"# {folder.name}", "", about, ""]), encoding="utf-8")


def load(folder: Path, sees: bool = False) -> Any:
    """The parameters of a folder in float32, as they were written."""
    stored, leaves = read_header(folder / "model.safetensors"), {}
    for spec in (SEEING if sees else DECODER).specs:
        tensors = [stored[name].read().astype(np.float32) for name in spec.names()]
        leaves[spec.path] = jnp.asarray(np.stack(tensors).reshape(spec.leaf_shape))
    return unflatten(leaves) if sees else {TEXT: unflatten(leaves)}


def make(folder: Path, seed: int) -> None:
    """Train what is not there: once the base and its eyes, from these for each seed the Japanese model and `llava`."""

    def learnt(corpus: str, model: Any, params: Any) -> Any:
        return fit(corpus, RUNS[corpus], reading(model), params, batches(corpus, RUNS[corpus], seed))

    base, captions, japanese, llava = MODELS / "base", MODELS / "captions", folder / "japanese", folder / "llava"
    if not base.exists():
        write(base, learnt("base", DECODER, beginning(seed)), "Both languages: look-ups in scenes that are told.")
    if not japanese.exists():
        write(japanese, learnt("japanese", DECODER, load(base)), "`base`, taught all kinds of questions in Japanese.")
    if not captions.exists():
        params = with_eyes(load(base)[TEXT], seed)
        write(captions, learnt("captions", SEEING.text, params), "`base` with eyes, which learnt by English captions.")
    if not llava.exists():
        params = load(captions, sees=True)
        about = "`captions`, taught all kinds of questions about pictures in English."
        write(llava, learnt("llava", SEEING.text, params), about)


def main() -> None:
    make_parser(__doc__, __file__, output=None).parse_args()
    make(MODELS, 0)


if __name__ == "__main__":
    main()
