"""Every arm and option, as it would stand in a TOML file, with its literal formula."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pydantic import TypeAdapter

from harness.config.loss import Loss
from tests.losses import formulas
from tests.losses.world import Formula


@dataclass(frozen=True)
class Arm:
    fields: dict[str, Any]
    formula: Formula
    captions: int | None = None
    """Exactly as many captions per image, where the loss prescribes it."""
    on_sphere: bool = False
    """Its code uses that rows are unit vectors where its formula doesn't: gradients agree along the sphere."""

    @property
    def spec(self) -> Loss:
        spec: Loss = TypeAdapter(Loss).validate_python(self.fields)
        return spec


def _arm(kind: str, formula: Formula, captions: int | None = None, on_sphere: bool = False, **fields: Any) -> Arm:
    return Arm({"kind": kind, **fields}, formula, captions, on_sphere)


ARMS: dict[str, Arm] = {
    "infonce": _arm("infonce", formulas.infonce_pooled),
    "infonce slotwise": _arm("infonce", formulas.infonce_slotwise, normaliser="slotwise"),
    "sigmoid": _arm("sigmoid", formulas.sigmoid_slotwise, slotwise=True),
    "multi_positive_sigmoid": _arm("multi_positive_sigmoid", formulas.stable_multi_positive_sigmoid),
    "per image": _arm("multi_positive_sigmoid", formulas.sigmoid_per_image, normaliser="images"),
    "supcon_out": _arm("supcon_out", formulas.supcon_out),
    "supcon_in": _arm("supcon_in", formulas.supcon_in),
    "soft_target_infonce": _arm("soft_target_infonce", formulas.soft_target_infonce),
    "mafa": _arm("mafa", formulas.mafa),
    "mafa before": _arm("mafa", formulas.soft_target_infonce, smoothing_from_epoch=2.0),
    "alip": _arm("alip", formulas.alip, captions=2),
    "alip as coded": _arm("alip", formulas.alip_as_coded, captions=2, gates="as_coded"),
    "cwcl": _arm("cwcl", formulas.cwcl_image),
    "cwcl text": _arm("cwcl", formulas.cwcl_text, modality="text"),
    "cyclip": _arm("cyclip", formulas.cyclip, slotwise=True),
    "cloob": _arm("cloob", formulas.cloob, slotwise=True),
    "align_uniform": _arm("align_uniform", formulas.align_uniform, on_sphere=True),
    "soft_teacher": _arm("soft_teacher", formulas.soft_teacher_image_text),
    "soft_teacher images": _arm(
        "soft_teacher", formulas.soft_teacher_image_image, similarity="image_image", teacher_scale=10, weight=0.3
    ),
    "soft_teacher texts": _arm(
        "soft_teacher", formulas.soft_teacher_text_text, similarity="text_text", teacher_scale=5
    ),
    "otter": _arm("otter", formulas.otter),
    "macl": _arm("macl", formulas.macl),
    "macl plain": _arm("macl", formulas.macl_plain, reweight=False),
    "fnc attract": _arm("fnc", formulas.fnc_attract),
    "fnc eliminate": _arm("fnc", formulas.fnc_eliminate, strategy="eliminate"),
    "filip": _arm("filip", formulas.filip),
    "filip alone": _arm("filip", formulas.filip_alone, pooled_weight=0),
    "dreamlip": _arm("dreamlip", formulas.dreamlip),
    "simclr": _arm("simclr", formulas.simclr, head="none"),
    "simclr image and view": _arm("simclr", formulas.simclr_of_the_image, head="none", between="image_and_view"),
    "multi_view": _arm("multi_view", formulas.multi_view),
    "in_modal": _arm("in_modal", formulas.in_modal),
    "simsiam": _arm("simsiam", formulas.simsiam, head="none"),
    "negclip": _arm("negclip", formulas.negclip),
    "mp_nce": _arm("mp_nce", formulas.mp_nce),
    "mp_nce two views": _arm(
        "mp_nce", formulas.mp_nce_two_views, images=2, texts=1, image_logit_scale=4, text_logit_scale=6
    ),
    "mp_nce no views": _arm("mp_nce", formulas.mp_nce_no_views, images=0),
    "clip_rocket": Arm({"kind": "clip_rocket", "terms": {"1": {"head": "none"}}}, formulas.clip_rocket),
    "cleanclip": Arm({"kind": "cleanclip"}, formulas.cleanclip),
    "masked_language": _arm("masked_language", formulas.masked_language),
    "captioning": _arm("captioning", formulas.captioning),
    "coca": Arm({"kind": "coca"}, formulas.coca),
    "prototypes": _arm("prototypes", formulas.nothing_yet, 1, head="none", prototypes=3, episode=8),
    "protoclip": Arm(
        {"kind": "protoclip", "terms": {"1": {"head": "none", "prototypes": 3, "episode": 8}}},
        formulas.infonce_pooled,
        1,
    ),
    "slip": Arm({"kind": "slip", "terms": {"1": {"head": "none", "weight": 0.5}}}, formulas.slip_at_half),
    "shared scale": Arm(
        {
            "terms": [{"kind": "infonce"}, {"kind": "supcon_in", "weight": {"start": 1, "end": 3, "epochs": 2}}],
            "share_logit_scale": True,
        },
        formulas.infonce_and_twice_supcon_in,
    ),
    "moco": _arm("moco", formulas.moco, queue_size=29),
    "albef": _arm("albef", formulas.albef, queue_size=29),
    "albef halfway": _arm("albef", formulas.albef_halfway, queue_size=29, ramp_epochs=2),
    "albef undistilled": _arm("albef", formulas.albef_undistilled, queue_size=29, distillation=0),
    "tcl": _arm("tcl", formulas.tcl, queue_size=29),
    "tcl local": _arm("tcl", formulas.tcl_local, queue_size=29, local=True),
    "nearest_neighbour": _arm("nearest_neighbour", formulas.nearest_neighbour, queue_size=29),
    "dreamlip local scale": _arm("dreamlip", formulas.dreamlip_local_scale, local_logit_scale=4),
    "dreamlip circle": _arm("dreamlip", formulas.dreamlip_circle, circle_weight=0.1),
    "dreamlip threshold": _arm("dreamlip", formulas.dreamlip_thresholded, threshold="uniform"),
}
