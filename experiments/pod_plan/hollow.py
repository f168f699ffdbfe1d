"""The paper's models without their weights: folders whose safetensors files are holes, and a stand-in tokenizer.

python experiments/pod_plan/hollow.py --data FOLDER     # FOLDER holds gsm8k, gsm8k_ja and mgsm
"""

import json
import shutil
from pathlib import Path

import yaml
from arguments import make_parser
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from jevomerge.checkpoint.export import write_model
from jevomerge.models.families import read_model

MISTRAL = {
    "architectures": ["MistralForCausalLM"],
    "model_type": "mistral",
    "vocab_size": 32000,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "hidden_act": "silu",
    "max_position_embeddings": 32768,
    "rms_norm_eps": 1e-05,
    "rope_theta": 10000.0,
    "sliding_window": 4096,
    "tie_word_embeddings": False,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
MODELS = {  # and how many tokens they have
    "mistralai/Mistral-7B-v0.1": 32000,
    "augmxnt/shisa-gamma-7b-v1": 32000,
    "WizardLM/WizardMath-7B-V1.1": 32001,
    "GAIR/Abel-7B-002": 32001,
}


def stand_in(data: Path) -> Tokenizer:
    """A byte-level BPE of 32,000 tokens learnt from the texts themselves."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=32000,
        special_tokens=["<unk>", "<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    files = [data / "gsm8k_ja/search.jsonl", data / "mgsm/mgsm_ja.tsv", *sorted((data / "gsm8k").glob("*.jsonl"))]
    tokenizer.train([str(f) for f in files], trainer)
    missing = 32000 - tokenizer.get_vocab_size()
    tokenizer.add_tokens([f"<unused{i}>" for i in range(missing)])
    return tokenizer


def make(scratch: Path, data: Path) -> None:
    """Everything that the shipped config names, under `scratch`; its tasks' data too."""
    tokenizer = stand_in(data)
    for name, size in MODELS.items():
        folder = scratch / name
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        config = {**MISTRAL, "vocab_size": size}
        write_model(folder, {"config.json": config}, read_model(config, name).specs, "bfloat16", None)
        if size > tokenizer.get_vocab_size():
            tokenizer.add_tokens(["[PAD]"])
        tokenizer.save(str(folder / "tokenizer.json"))
        settings = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>"}
        (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    local = scratch / "data"
    local.mkdir(exist_ok=True)
    shutil.copyfile(data / "gsm8k_ja/search.jsonl", local / "search.jsonl")
    rows = [line.split("\t") for line in (data / "mgsm/mgsm_ja.tsv").read_text().splitlines()]
    lines = [json.dumps({"question": q, "answer_number": n}, ensure_ascii=False) for q, n in rows]
    (local / "heldout.jsonl").write_text("\n".join(lines) + "\n")


def local_config(config: Path, scratch: Path) -> Path:
    """The shipped config with its task pointed at local files; nothing else differs."""
    values = yaml.safe_load(config.read_text())
    task = yaml.safe_load((config.parent / values["tasks"][0]).read_text())
    task |= {split: str((scratch / "data" / f"{split}.jsonl").resolve()) for split in ("search", "heldout")}
    values["tasks"] = [task]
    out = scratch / config.name
    out.write_text(yaml.safe_dump(values, allow_unicode=True, sort_keys=False))
    return out


if __name__ == "__main__":
    parser = make_parser(__doc__, __file__, output=None, work=True)
    parser.add_argument(
        "--data", type=Path, required=True, metavar="FOLDER", help="folder that holds gsm8k, gsm8k_ja and mgsm"
    )
    args = parser.parse_args()
    make(args.work, args.data)
    print(local_config(Path(__file__).parents[2] / "configs" / "evollm_jp.yaml", args.work))
