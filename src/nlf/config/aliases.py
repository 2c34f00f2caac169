"""Other names of knobs: those of TRL where ours differ, and shorter ones. A name that is itself a knob means this knob."""

from collections.abc import Container

from nlf.config.retired import RENAMED

ALIASES: dict[str, tuple[str, ...]] = {  # another name → the knobs that it may stand for, in this order
    **{"reward": ("reward_funcs",), "guidance_scale": ("guidance_scales",)},
    **{old: (new,) for old, new in RENAMED.items()},
    "model": ("model_name_or_path",),
    "model_name_or_path": ("model", "eval_model", "base_model"),  # the one that model_revision belongs to
    "as": ("write_as",),  # Python allows no field of the first name
}


def full_name(name: str, knobs: Container[str]) -> str:
    """The knob, among these, that a name stands for; the name itself if it is a knob, or stands for none."""
    if name in knobs:
        return name
    return next((knob for knob in ALIASES.get(name, ()) if knob in knobs), name)
