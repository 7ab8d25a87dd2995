"""What a user may get wrong about the method: one sentence with the file, the key and what to do."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from harness.base.errors import SpecError
from harness.config.load import load
from harness.config.loss import METHODS

DOCS = Path(__file__).parents[2] / "docs" / "losses.md"
TEACHER = '[teacher]\nkind = "open_clip"\nmodel = "ViT-B-32"\nweights = "openai"\n'
MINING = '[mining]\nkind = "threshold"\n'


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('[loss]\nkind = "otter"', 'loss.kind = "otter" needs a [teacher]: name an experiment or an open_clip model'),
        (f"{MINING}image_text = 0.3", 'mining.kind = "threshold" needs a [teacher]: name an experiment or an'),
        (
            '[loss]\nkind = "sigmoid"\n[captions]\nsource = "captioner"\ncount = 2',
            "loss: sigmoid takes one caption per image, not 3; set slotwise = true",
        ),
        (
            '[loss]\nkind = "alip"',
            "loss: alip takes one raw and one synthetic caption per image, not 1 captions; mix the raw caption",
        ),
        (
            f'{TEACHER}{MINING}image_text = 0.3\n[loss]\nkind = "cwcl"',
            "loss: cwcl does not use mined positives; remove the mining",
        ),
        (f"{TEACHER}{MINING}image_text = 1.27", "mining.image_text: should be less than 1, not 1.27"),
        (
            f"{TEACHER}{MINING}image_text = {{ quantile = 1.5 }}",
            "mining.image_text.quantile: should be less than 1, not 1.5",
        ),
        (
            f"{TEACHER}{MINING}image_text = 0.24\ntext_text = 0.99\nimage_text_guard = 0.27",
            "mining: image_text_guard (p1') is 0.27 and image_text (p1) 0.24, so the text_text clause could never add",
        ),
        (
            '[loss]\nkind = "filip"\n[model]\nname = "RN50"',
            "loss: filip compares tokens, but the model's towers give pooled features only; take a vision transformer",
        ),
        ('[loss]\nkind = "simclr"', "loss: simclr compares no images with captions; make it a term of a sum"),
        ('[loss]\nkind = "Structure-CLIP"', "loss: there is no kind 'Structure-CLIP' yet: it needs scene graphs"),
        ('[loss]\nkind = "CLIP-Rocket"', "loss: there is no kind 'CLIP-Rocket'; write \"clip_rocket\""),
        ('[loss]\nkind = "COSMOS"', "loss: there is no kind 'COSMOS' yet: it needs momentum towers, and crops of"),
        (
            '[loss]\nkind = "albef"\nqueue_size = 100\n[train]\nglobal_batch_size = 128',
            "loss.queue_size: a queue of 100 features is smaller than a batch of 128 images; take at least 128, or a",
        ),
        (
            '[loss]\nterms = [{ kind = "infonce" }, { kind = "nearest_neighbour", queue_size = 300 }]\n'
            '[captions]\nsource = "captioner"\ncount = 2\n[train]\nglobal_batch_size = 128',
            "loss.terms[1].queue_size: a queue of 300 features is smaller than a batch of 128 images with 3 captions",
        ),
        (
            '[loss]\nterms = [{ kind = "albef" }, { kind = "moco" }]',
            "loss: all terms read the same momentum towers, but albef moves them by 0.995 and moco moves them by 0.99;",
        ),
        ('[loss]\nkind = "nearest_neighbour"', "loss: nearest_neighbour compares no images with captions; make it"),
        ('[loss]\nkind = "albef"\nmomentum = 1.1', "loss.momentum: should be less than or equal to 1, not 1.1"),
        (
            '[loss]\nkind = "tcl"\n[train.views]\nkind = "none"',
            "train.views: gives every view of an image the same pixels; use simclr, fff or crop",
        ),
        ("[loss]\nterms = []", "loss: terms is empty; list tables such as"),
        ('[loss]\nterms = [{ kind = "simclr" }]', "loss: simclr compares no images with captions; add a term such as"),
        ('[loss]\nterms = [{ kind = "infonce", weight = 0 }]', "loss: the weights of all terms are 0"),
        (
            '[loss]\nterms = [{ kind = "infonce", weight = -1 }]',
            "loss.terms[0].weight: should be greater than or equal",
        ),
        ('[loss]\nterms = [{ kind = "infonc" }]', "loss.terms[0].kind: there is no kind 'infonc'"),
        (
            '[loss]\nterms = [{ kind = "infonce" }, { kind = "filip" }]\n[model]\nname = "RN50"',
            "loss: filip compares tokens, but the model's towers give pooled features only",
        ),
        (
            '[loss]\nkind = "slip"\n[train.views]\nkind = "none"',
            "train.views: gives every view of an image the same pixels; use simclr, fff or crop",
        ),
        ('[loss]\nkind = "infonce"\nmax_logit_scale = "none"', "loss.max_logit_scale: "),
        (
            '[loss]\nkind = "dreamlip"\nlocal_logit_scale = 101',
            "loss: local_logit_scale 101 is over max_logit_scale 100",
        ),
    ],
)
def test_one_sentence(tmp_path: Path, text: str, expected: str) -> None:
    file = tmp_path / "mine.toml"
    file.write_text(text)
    with pytest.raises(SpecError) as caught:
        load(file)
    told = str(caught.value)
    assert told.startswith(f"{file}: {expected}"), told
    assert "\n" not in told


@pytest.mark.parametrize("method", METHODS)
def test_the_docs_list_what_a_known_method_waits_for(method: str) -> None:
    listed = DOCS.read_text().split("These methods are not included yet.")[1].split("\n## ")[0]
    names = listed.lower().replace("-", "_")
    assert re.search(rf"\b{method}\b", names), f"docs/losses.md does not list {method}"
