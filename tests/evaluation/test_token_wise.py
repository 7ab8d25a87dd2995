"""FILIP's token-wise similarity: against loops in float64 and the training loss, and apart from pooled numbers."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch.nn.functional import normalize

from harness.base.errors import DataError, ModelError
from harness.base.files import read_json
from harness.cli.evaluate import measure
from harness.config.evaluation import Evaluation
from harness.config.loss import FILIP
from harness.config.model import Model
from harness.evaluation import token_wise
from harness.evaluation.evaluator import EvaluationTask, Evaluator, Result
from harness.evaluation.linear_probe import Training
from harness.evaluation.protocol import contents_of, protocol, protocol_id
from harness.evaluation.recorded import AskedSet, taken
from harness.evaluation.sets import EvaluationSet, read_set
from harness.evaluation.token_wise import TextTokens, averaged, similarities, text_strips
from harness.evaluation.towers import SetEncoder
from harness.losses import build_objective
from harness.losses.base import PairBatch
from harness.losses.tokens import FILIPObjective
from harness.models import Towers, build_towers, token_mask
from harness.planning.workspace import Project
from harness.runs.settings import Settings
from harness.runs.store import Store
from tests.evaluation.test_multilabel import several
from tests.evaluation.test_pairs import winoground
from tests.evaluation.test_texts import TEXTS
from tests.evaluation.worlds import (
    TEXT,
    VISION,
    TinyClip,
    classification_files,
    classification_members,
    classification_set,
    retrieval_set,
    write_set,
)

CPU = torch.device("cpu")
TOKEN_WISE = Evaluation(similarity="token_wise")
CONFIG = {"embed_dim": 24, "vision_cfg": VISION, "text_cfg": TEXT}


def towers() -> Towers:
    return build_towers(Model(name="tiny", config=CONFIG), seed=1).eval()


def tiny() -> TinyClip:
    """A model whose texts differ: if all patches preferred the start of the text, all scores would be equal."""
    model = TinyClip().eval()
    with torch.no_grad():
        model.clip.token_embedding.weight.mul_(50)
    return model


def by_hand(patches: list[NDArray[np.float64]], words: list[NDArray[np.float64]]) -> NDArray[np.float64]:
    """The paper's equations 3 and 4, pair by pair: [N, 2, M] of images' patches and texts' tokens, unit rows."""
    found = np.empty((len(patches), 2, len(words)))
    for i, image in enumerate(patches):
        for j, text in enumerate(words):
            cosines = (image @ text.T).tolist()
            of_patches = [max(row) for row in cosines]
            of_words = [max(row[word] for row in cosines) for word in range(len(text))]
            found[i, :, j] = sum(of_patches) / len(of_patches), sum(of_words) / len(of_words)
    return found


def features(model: Any, one: EvaluationSet, texts: list[str]) -> tuple[list[Any], list[Any]]:
    """Unit features of each image's patches and each text's tokens, float64, encoded one by one."""
    with torch.inference_mode():
        images = [model.preprocess(one.image(index))[None] for index in range(len(one))]
        patches = [normalize(model.encode_image_tokens(image)[0, 1:].double(), dim=-1).numpy() for image in images]
        words = []
        for text in texts:
            tokens = model.tokenize([text])
            end = int(tokens[0].argmax()) + 1
            words.append(normalize(model.encode_text_tokens(tokens)[0, 1 : 1 + end].double(), dim=-1).numpy())
    return patches, words


def are_ranks(found: list[int], scores: list[NDArray[np.float64]], own: list[int]) -> bool:
    """Whether each of `found` is the rank of its `own` score. Texts that begin alike often have equal scores, which
    rounding may put in any order."""
    bounds = [
        ((row > row[one] + 1e-6).sum(), (row > row[one] - 1e-6).sum()) for row, one in zip(scores, own, strict=True)
    ]
    return all(ahead < rank <= most for rank, (ahead, most) in zip(found, bounds, strict=True))


def evaluated(model: Any, *tasks: EvaluationTask, batch_size: int = 7) -> tuple[Result, ...]:
    return Evaluator(model, tasks, TOKEN_WISE, batch_size=batch_size, device=CPU, cache_bytes=0)()


@given(
    st.integers(1, 4),
    st.integers(1, 6),
    st.lists(st.integers(1, 5), min_size=1, max_size=9),
    st.sampled_from([1, 40, 2**24]),
    st.integers(0, 2**32 - 1),
)
def test_similarities_are_those_of_loops_for_any_blocks(
    images: int, patches: int, lengths: list[int], at_once: int, seed: int
) -> None:
    draw = np.random.default_rng(seed)

    def unit(rows: int) -> Any:
        found = draw.normal(size=(rows, 5))
        return found / np.linalg.norm(found, axis=1, keepdims=True)

    some, words = [unit(patches) for _ in range(images)], [unit(length) for length in lengths]
    order = np.argsort(lengths, kind="stable")
    packed = np.concatenate([words[index] for index in order])
    texts = TextTokens(torch.from_numpy(packed), torch.tensor(lengths)[order], torch.from_numpy(order))
    before, token_wise.COSINES_AT_ONCE = token_wise.COSINES_AT_ONCE, at_once
    try:
        for both in (True, False):
            found = similarities(torch.from_numpy(np.stack(some)), texts, both=both)
            np.testing.assert_allclose(found, by_hand(some, words)[:, : 1 + both], atol=1e-12)
    finally:
        token_wise.COSINES_AT_ONCE = before


def test_similarities_are_those_that_the_loss_trains() -> None:
    model, texts = towers(), TEXTS[:20]
    images = torch.randn(5, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    tokens = model.tokenize(texts)
    with torch.no_grad():
        image, text = model.encode_image_tokens(images), model.encode_text_tokens(tokens)
        mask = token_mask(tokens)
        objective = build_objective(FILIP())
        assert isinstance(objective, FILIPObjective)
        batch = PairBatch(
            image=image[:, 0],
            text=text[:, 0],
            owner=torch.arange(20) % 5,
            slot=torch.zeros(20, dtype=torch.long),
            is_raw=torch.ones(20, dtype=torch.bool),
            image_tokens=image[:, 1:],
            text_tokens=text[:, 1:],
            text_mask=mask,
        )
        trained = objective._scores(batch, torch.tensor(1.0))
        lengths = mask.sum(1)
        order = torch.argsort(lengths, stable=True)
        packed = text[:, 1:][order][mask[order]]
        found = similarities(image[:, 1:], TextTokens(packed, lengths[order], order), both=True)
    torch.testing.assert_close(found[:, 0], trained[0], atol=1e-6, rtol=0)
    torch.testing.assert_close(found[:, 1], trained[1], atol=1e-6, rtol=0)


@pytest.mark.parametrize("kind", [towers, tiny])
@pytest.mark.parametrize(("batch_size", "tokens"), [(1, 30), (7, 2**20), (64, 100)])
def test_a_set_is_compared_with_texts_in_any_batches(
    kind: Any, batch_size: int, tokens: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both towers that cut padding off and towers that do not."""
    monkeypatch.setattr("harness.evaluation.token_wise.text_strips.__defaults__", (tokens,))
    one, model, texts = read_set(retrieval_set(tmp_path / "pictures", images=9)), kind(), TEXTS[:12]
    encoder = SetEncoder(model, batch_size=batch_size, device=CPU, cache_bytes=0)
    with torch.inference_mode():
        found = encoder.token_wise(one, texts, together=3, both=True)
    expected = by_hand(*features(model, one, texts)).reshape(9, 2, 4, 3).mean(axis=3)
    np.testing.assert_allclose(found, expected, atol=2e-6)
    assert encoder.encoded["text"] == 12
    passes = encoder.encoded["image"] // 9
    assert passes == (1 if tokens == 2**20 else 4 if tokens == 30 else passes)


@given(st.lists(st.integers(1, 9), min_size=1, max_size=30), st.integers(1, 4), st.integers(1, 40))
def test_strips_hold_a_bounded_number_of_tokens_and_whole_classes(lengths: list[int], together: int, most: int) -> None:
    lengths = lengths[: len(lengths) // together * together] or [1] * together
    strips = list(text_strips(lengths, together, most))
    assert [index for strip in strips for index in range(strip.start, strip.stop)] == list(range(len(lengths)))
    for strip in strips:
        count = strip.stop - strip.start
        assert count % together == 0
        assert sum(lengths[strip]) <= most or count == together
    joined = [sum(lengths[one.start : two.start + together]) for one, two in pairwise(strips)]
    assert all(held > most for held in joined)


def test_prompts_are_averaged_by_similarity_and_not_by_feature() -> None:
    scores = torch.arange(24.0).view(2, 2, 6)
    assert torch.equal(averaged(scores, 3), torch.tensor([[[1.0, 4], [7, 10]], [[13, 16], [19, 22]]]))


@pytest.mark.parametrize("batch_size", [3, 64])
def test_classification_by_hand(batch_size: int, tmp_path: Path) -> None:
    one, model = read_set(classification_set(tmp_path / "things")), tiny()
    (result,) = evaluated(model, EvaluationTask(one, TOKEN_WISE), batch_size=batch_size)
    names, several_templates = one.layout.classnames, one.layout.templates
    assert len(several_templates) == 3
    prompts = [template.replace("{c}", name) for name in names for template in several_templates]
    scores = by_hand(*features(model, one, prompts))[:, 0].reshape(len(one), len(names), 3).mean(axis=2)
    assert result.outcomes.columns["prediction"].tolist() == scores.argmax(axis=1).tolist()
    found = result.outcomes.columns["rank"].tolist()
    assert are_ranks(found, list(scores), list(one.labels))
    assert result.evaluation.metrics["acc1"].value == pytest.approx(np.mean(np.array(found) == 1))
    (pooled,) = Evaluator(model, [one], Evaluation(), batch_size=7, device=CPU)()
    assert pooled.outcomes.columns["rank"].tolist() != found


def test_equal_class_names_tie_to_the_lower_index(tmp_path: Path) -> None:
    files = classification_files(4) | {"classnames.txt": "cat\ndog\ncat\ndog\n"}
    one = read_set(write_set(tmp_path / "twice", [classification_members([0, 1, 2, 3] * 4)], files))
    (result,) = evaluated(TinyClip(), EvaluationTask(one, TOKEN_WISE))
    predictions, found = (result.outcomes.columns[name] for name in ("prediction", "rank"))
    assert set(predictions.tolist()) <= {0, 1}
    assert all((rank % 2 == 0) == (label > 1) for rank, label in zip(found.tolist(), one.labels, strict=True))


def test_retrieval_by_hand(tmp_path: Path) -> None:
    """A caption looks for its image by s^T, an image for its captions by s^I."""
    one, model = read_set(retrieval_set(tmp_path / "pictures", images=14)), tiny()
    spec = Evaluation(similarity="token_wise", prefix="a picture:", text_normalisation="lowercase")
    (result,) = evaluated(model, EvaluationTask(one, spec))
    captions = [f"a picture: {caption}".lower() for several in one.captions for caption in several]
    owner = [index for index, several in enumerate(one.captions) for _ in several]
    scores = by_hand(*features(model, one, captions))
    columns = result.outcomes.columns
    direction = np.array(columns["direction"].tolist())
    found = np.array(columns["rank"].tolist())
    of_captions, of_images = (found[direction == f"{side}_retrieval"].tolist() for side in ("image", "text"))
    assert are_ranks(of_captions, list(scores[:, 1].T), owner)
    assert not are_ranks(of_captions, list(scores[:, 0].T), owner), "the test tells the two similarities apart"
    own = [[place for place, of in enumerate(owner) if of == image] for image in range(14)]
    first = [max(places, key=scores[image, 0].__getitem__) for image, places in enumerate(own)]
    assert are_ranks(of_images, list(scores[:, 0]), first)


def test_several_labels_for_an_image(tmp_path: Path) -> None:
    one, model = read_set(several(tmp_path / "several")), tiny()
    (result,) = evaluated(model, EvaluationTask(one, TOKEN_WISE))
    names, texts = one.layout.classnames, one.layout.templates
    prompts = [template.replace("{c}", name) for name in names for template in texts]
    scores = by_hand(*features(model, one, prompts))[:, 0].reshape(len(one), len(names), -1).mean(axis=2)
    assert result.outcomes.columns["prediction"].tolist() == scores.argmax(axis=1).tolist()


def test_features_of_a_set_stay_the_pooled_ones(tmp_path: Path) -> None:
    """Geometry, and metrics of one's own, read them; a linear probe has no texts to compare with."""
    one, model = read_set(retrieval_set(tmp_path / "pictures")), tiny()
    geometry: Any = {"feature_metrics": ["modality_gap", "alignment"]}
    tasks = [EvaluationTask(one, Evaluation(similarity=how, **geometry)) for how in ("token_wise", "pooled")]
    ours, pooled = evaluated(model, *tasks)
    for name in geometry["feature_metrics"]:
        assert ours.evaluation.metrics[name].value == pytest.approx(pooled.evaluation.metrics[name].value)
    assert ours.evaluation.metrics != pooled.evaluation.metrics
    things = read_set(classification_set(tmp_path / "things"))
    probes = [EvaluationTask(things, spec, Training(things, None)) for spec in (TOKEN_WISE, Evaluation())]
    assert not any(probe.is_token_wise for probe in probes)
    ids = {protocol_id(protocol(things, probe.spec, "plain", probe.training)) for probe in probes}
    assert len(ids) == 1


def test_numbers_of_the_two_similarities_never_meet(tmp_path: Path) -> None:
    one, model = read_set(classification_set(tmp_path / "things")), tiny()
    ours, pooled = evaluated(model, *(EvaluationTask(one, spec) for spec in (TOKEN_WISE, Evaluation())))
    assert ours.evaluation.protocol_id != pooled.evaluation.protocol_id
    assert ours.evaluation.protocol["similarity"] == "token-wise"
    assert "similarity" not in pooled.evaluation.protocol
    recorded = [ours.evaluation, pooled.evaluation]
    for is_known in (True, False):  # without the set, only the record can tell
        for spec, expected in ((TOKEN_WISE, ours), (Evaluation(), pooled)):
            for follows_data in (True, False):
                contents = contents_of(one) if is_known else None
                asked = AskedSet.of(spec, "things", contents, follows_data)
                assert [found.protocol_id for found in taken(asked, recorded).evaluations] == [
                    expected.evaluation.protocol_id
                ], (is_known, spec.similarity, follows_data)


def test_a_named_protocol_measures_both() -> None:
    spec = Evaluation(sets=("pets", "flickr30k", "winoground"), protocols=("token_wise",))
    assert spec.references == ("pets", "pets@token_wise", "flickr30k", "flickr30k@token_wise", "winoground")
    assert spec.under("pets@token_wise").similarity == "token_wise"
    assert spec.under("pets").similarity == "pooled"


def test_a_model_without_tokens_and_a_pair_task_are_refused(tmp_path: Path) -> None:
    one = read_set(classification_set(tmp_path / "things"))
    vision = {"image_size": 32, "layers": [1, 1, 1, 1], "width": 8, "head_width": 8, "patch_size": None}
    resnet = build_towers(Model(name="small", config={**CONFIG, "vision_cfg": vision})).eval()
    said = (
        "small gives no token features to token-wise similarity: its image tower is not one of open_clip's own vision "
        'transformers.*or evaluation.similarity = "pooled"'
    )
    with pytest.raises(ModelError, match=said):
        evaluated(resnet, EvaluationTask(one, TOKEN_WISE))
    evaluated(resnet, EvaluationTask(one, Evaluation()))
    pairs = read_set(winoground(tmp_path, 3))
    with pytest.raises(DataError, match=r"winoground.*a pair task is not measured by token-wise similarity"):
        evaluated(TinyClip(), EvaluationTask(pairs, TOKEN_WISE))


def test_harness_eval_measures_both_side_by_side(tmp_path: Path) -> None:
    classification_set(tmp_path / "sets" / "things")
    torch.save(towers().model.state_dict(), tmp_path / "weights.pt")
    (tmp_path / "tiny.json").write_text(json.dumps(CONFIG))
    here = Project(Settings(store=tmp_path / "store", evaluation_root=tmp_path / "sets"), Store(tmp_path / "store"))
    weights, out = str(tmp_path / "weights.pt"), tmp_path / "out.json"
    measure(here, [weights], ["things", "things@token_wise"], [], str(tmp_path / "tiny.json"), out)
    pooled, ours = read_json(out)["weights.pt"]
    assert (pooled["set"], ours["set"]) == ("things", "things@token_wise")
    one = read_set(tmp_path / "sets" / "things")
    (expected,) = evaluated(towers(), EvaluationTask(one.called("things@token_wise"), TOKEN_WISE), batch_size=256)
    assert ours["metrics"]["acc1"]["value"] == expected.evaluation.metrics["acc1"].value
    assert ours["protocol_id"] == expected.evaluation.protocol_id != pooled["protocol_id"]
