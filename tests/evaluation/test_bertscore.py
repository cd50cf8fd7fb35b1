"""BERTScore: equal to the bert-score package on random encoders; signatures; the command."""
import random
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from result_folders import make_items, make_result

from mmed.evaluation.bertscore import BEST_LAYER, Scorer, main
from mmed.evaluation.results import load_prompts, load_results
from mmed.utils.errors import UserError

transformers = pytest.importorskip("transformers")
WORDS = "le cœur bat the liver fails 患 者 熱 кашель und , . 3 mg fever cough pain".split()
PIECES = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS, "##s", "##ing", "c", "##o", "##ugh"]
SHAPE = {"hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 48, "initializer_range": 0.3}


def bert_folder(folder: Path, seed: int = 0) -> Path:
    torch.manual_seed(seed)
    config = transformers.BertConfig(vocab_size=len(PIECES), num_hidden_layers=3, max_position_embeddings=24,
                                     **SHAPE)
    transformers.BertModel(config).save_pretrained(folder)
    vocabulary = {piece: i for i, piece in enumerate(PIECES)}
    tokenizer = transformers.BertTokenizer(vocab=vocabulary, do_lower_case=False, model_max_length=24)
    tokenizer.save_pretrained(folder)
    return folder


def xlmr_folder(folder: Path) -> Path:
    pieces = ["<s>", "<pad>", "</s>", "<unk>", "<mask>", *(f"▁{word}" for word in WORDS), "▁", *"abcdefghi"]
    vocabulary = [(piece, -float(i)) for i, piece in enumerate(pieces)]
    tokenizer = transformers.XLMRobertaTokenizer(vocab=vocabulary, model_max_length=24)
    tokenizer.save_pretrained(folder)
    config = transformers.XLMRobertaConfig(vocab_size=len(tokenizer), num_hidden_layers=2, type_vocab_size=1,
                                           max_position_embeddings=26, pad_token_id=1, **SHAPE)
    transformers.XLMRobertaModel(config).save_pretrained(folder)
    return folder


def test_roberta_begins_every_text_with_a_space_as_bert_score_does(tmp_path):
    pieces = ["<s>", "<pad>", "</s>", "<unk>", "<mask>", "f", "o", "Ġ", "Ġf"]
    vocabulary = {piece: i for i, piece in enumerate(pieces)}
    transformers.RobertaTokenizer(vocab=vocabulary, merges=[("Ġ", "f")]).save_pretrained(tmp_path)
    config = transformers.RobertaConfig(vocab_size=len(pieces), num_hidden_layers=1, pad_token_id=1, **SHAPE)
    transformers.RobertaModel(config).save_pretrained(tmp_path)
    assert Scorer(tmp_path, 1).encode(["fo"])["fo"] == [0, vocabulary["Ġf"], vocabulary["o"], 2]


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("encoders")
    return {"bert": bert_folder(root / "bert"), "xlmr": xlmr_folder(root / "xlmr")}


@pytest.fixture
def pairs(rng) -> tuple[list[str], list[str]]:
    texts = [" ".join(rng.choices(WORDS, k=rng.choice([1, 2, 5, 12, 40]))) for _ in range(40)]
    return [*texts[:20], "", "fever"], [*texts[20:], "fever", ""]


class _Tokenizer:
    """The calls that bert-score makes to a tokenizer."""

    def __init__(self, scorer):
        self.tokenizer, self.model_max_length = scorer.tokenizer, scorer.max_length
        for name in ("pad_token_id", "cls_token_id", "sep_token_id"):
            setattr(self, name, getattr(scorer.tokenizer, name))

    def encode(self, text, **settings):
        return self.tokenizer.encode(text, truncation=True, max_length=self.model_max_length)

    def build_inputs_with_special_tokens(self, ids):
        return [self.cls_token_id, *ids, self.sep_token_id]


@pytest.mark.parametrize("kind", ["bert", "xlmr"])
@pytest.mark.parametrize("idf", [False, True])
@pytest.mark.filterwarnings("ignore")
def test_scores_equal_the_bert_score_package(folders, pairs, kind, idf):
    package = pytest.importorskip("bert_score")
    candidates, references = pairs
    for layer in (1, 2):
        scorer = Scorer(folders[kind], layer)
        tokenizer = _Tokenizer(scorer)
        # the package opens the same encoder; its own loader does not know the tokenizers of transformers 5
        model = transformers.AutoModel.from_pretrained(folders[kind]).eval()
        model.encoder.layer = model.encoder.layer[:layer]
        weights = dict.fromkeys(range(len(scorer.tokenizer)), 1.0)
        weights |= {tokenizer.cls_token_id: 0.0, tokenizer.sep_token_id: 0.0}
        if idf:
            weights = package.utils.get_idf_dict(references, tokenizer, nthreads=0)
        # one pair a batch: between longer pairs, the package sets similarities below zero to zero
        expected = package.utils.bert_cos_score_idf(
            model, references, candidates, tokenizer, weights, device="cpu", batch_size=1)
        found = scorer(candidates, references, idf=idf)
        assert np.allclose(found, expected.float(), atol=1e-5), (kind, layer, idf)
        assert not found[-2:].any()  # empty texts


def test_rescaling_subtracts_the_baseline_of_the_layer(tmp_path, folders, pairs):
    (tmp_path / "base.csv").write_text("LAYER,P,R,F\n1,0.1,0.2,0.3\n2,0.5,0.6,0.7\n")
    plain, rescaled = (Scorer(folders["bert"], 2, baseline=path) for path in (None, tmp_path / "base.csv"))
    expected = (plain(*pairs)[:, 2] - 0.7) / 0.3
    assert rescaled(*pairs)[:, 2] == pytest.approx(expected)
    assert min(expected) < 0 and plain.signature() != rescaled.signature()
    with pytest.raises(UserError, match="LAYER,P,R,F for layer 0"):
        Scorer(folders["bert"], 0, baseline=tmp_path / "base.csv")


def test_long_texts_are_truncated_and_special_tokens_stay_text(folders, capsys):
    ids = Scorer(folders["bert"], 1).encode(["fever [SEP] cough"])
    assert ids["fever [SEP] cough"].count(PIECES.index("[SEP]")) == 1
    for folder in folders.values():
        scorer, long = Scorer(folder, 1), " ".join(["fever"] * 60)
        assert scorer.max_length == 24 and len(scorer.encode([long, "cough"])[long]) == 24
        assert "1 texts exceed the encoder's 24 tokens" in capsys.readouterr().err


def test_only_models_that_bert_score_lists_have_a_default_layer(tmp_path, folders):
    package = pytest.importorskip("bert_score.utils")
    assert {name: package.model2layers[name] for name in BEST_LAYER} == BEST_LAYER
    with pytest.raises(UserError, match="give --layer"):
        Scorer(folders["bert"])
    folder = shutil.copytree(folders["bert"], tmp_path / "bert-base-multilingual-cased")
    with pytest.raises(UserError, match="--layer 9: the encoder has layers 0 to 3"):
        Scorer(folder)
    torch.save({}, folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with pytest.raises(UserError, match="cannot open this encoder"):  # a pickle
        Scorer(folder, 1)


def test_the_signature_names_all_that_changes_a_score(tmp_path, folders):
    scorer, other = Scorer(folders["bert"], 1), Scorer(bert_folder(tmp_path / "other", seed=5), 1)
    signatures = [scorer.signature(), Scorer(folders["bert"], 2).signature(), other.signature(),
                  scorer.signature(["a"]), scorer.signature(["a", "a"]), scorer.signature(["b"])]
    assert len(set(signatures)) == len(signatures)
    assert scorer.signature(["a", "b"]) == scorer.signature(["b", "a"])


def test_the_command_adds_a_column_and_leaves_the_rest_as_it_was(tmp_path, folders, capsys):
    rng = random.Random(0)
    folder = make_result(tmp_path / "a", make_items(rng, 3, ["English"]), rng)
    own, rows = load_results(folder)
    rows, prompts = list(rows), load_prompts(folder)
    main(["--model", str(folders["bert"]), "--layer", "2", "--device", "cpu", "--results", str(folder)])
    printed = capsys.readouterr().out
    assert "English" in printed and "BERTScore|f1-bert-3x32-" in printed
    after, new_rows = load_results(folder)
    assert after["facts"] == own["facts"] and load_prompts(folder) == prompts
    for row, new in zip(rows, new_rows, strict=True):
        if row["mode"] == "rationale":
            assert len(new["scores"]) == len(row["scores"]) + 1
            new["scores"] = row["scores"]
        assert new == row
    assert any(name.startswith("BERTScore") for name in after["summary"]["micro"]["text"])
