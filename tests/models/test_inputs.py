"""What each endpoint takes: DESIGN's table at its boundaries, with the errors that fal's clients read."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from deployments.errors import FeatureNotSupported, InvalidInput
from deployments.models.base import FRAMES, ControlNetConfig, Endpoint, Plan, Size, VideoConfig, VideoInput
from deployments.models.svd import SVD as SVDEndpoint
from deployments.models.svd import SVDConfig
from deployments.models.text_to_video import PRESETS, TextToVideo, TextToVideoConfig
from deployments.settings import AppArgs
from tests import tiny

STABLE_VIDEO = "fal-ai/stable-video"
SVD = "fal-ai/svd"
FAST = "fal-ai/fast-svd-lcm"
TEXT_TO_VIDEO = "fal-ai/fast-svd-lcm/text-to-video"
ENDPOINTS = AppArgs.model_validate(tiny.document()["applications"][0]["args"]).build()

PICTURE = {"image_url": "https://example.com/cat.png"}
REQUIRED = {STABLE_VIDEO: PICTURE, SVD: PICTURE, FAST: PICTURE, TEXT_TO_VIDEO: {"prompt": "a cat"}}
JS_SAFE = 2**53 - 1

everywhere = pytest.mark.parametrize("id", REQUIRED)


def parse(id: str, **fields: Any) -> VideoInput:
    return ENDPOINTS[id].Input.model_validate(REQUIRED[id] | fields)


def plan(id: str, **fields: Any) -> Plan:
    return ENDPOINTS[id].plan(parse(id, **fields))


def refuse(id: str, **fields: Any) -> list[dict[str, Any]]:
    """The details with which an input is refused, as they go over the wire."""
    with pytest.raises(ValidationError) as caught:
        parse(id, **fields)
    body = InvalidInput(caught.value.errors()).body()
    return json.loads(json.dumps(body, allow_nan=False))["detail"]


def test_the_table_covers_every_endpoint() -> None:
    assert REQUIRED.keys() == ENDPOINTS.keys()


# ---------------------------------------------------------------- defaults


@pytest.mark.parametrize(
    ("id", "defaults"),
    [
        (STABLE_VIDEO, {"fps": 25}),
        (SVD, {"steps": 20, "mask_image_url": None, "control_maps_data_url": None}),
        (FAST, {"steps": 4, "fps": 10}),
        (TEXT_TO_VIDEO, {"steps": 4, "fps": 10, "video_size": "landscape_16_9"}),
    ],
)
def test_what_is_left_out_has_fals_default(id: str, defaults: dict[str, Any]) -> None:
    values = parse(id).model_dump()

    assert values.pop("seed") >= 0
    assert values == {"motion_bucket_id": 127, "cond_aug": 0.02, **REQUIRED[id], **defaults}


def test_stable_video_takes_25_steps() -> None:
    assert plan(STABLE_VIDEO).steps == 25


# ---------------------------------------------------------------- ranges

RANGES = [
    *((id, "motion_bucket_id", 1, 255) for id in REQUIRED),
    *((id, "cond_aug", 0, 10) for id in REQUIRED),
    *((id, "seed", 0, 2**63 - 1) for id in REQUIRED),
    (STABLE_VIDEO, "fps", 10, 100),
    (FAST, "fps", 1, 25),
    (TEXT_TO_VIDEO, "fps", 1, 25),
    (SVD, "steps", 1, 100),
    (FAST, "steps", 1, 20),
    (TEXT_TO_VIDEO, "steps", 1, 20),
]
ranges = pytest.mark.parametrize(("id", "field", "lowest", "highest"), RANGES)


@ranges
def test_both_ends_of_a_range_are_taken(id: str, field: str, lowest: int, highest: int) -> None:
    for value in (lowest, highest):
        assert getattr(parse(id, **{field: value}), field) == value


@ranges
def test_a_value_below_its_range_is_refused(id: str, field: str, lowest: int, highest: int) -> None:
    below = -0.0001 if field == "cond_aug" else lowest - 1
    [detail] = refuse(id, **{field: below})

    assert detail["loc"] == ["body", field]
    assert (detail["type"], detail["ctx"]) == ("greater_than_equal", {"ge": lowest})
    assert detail["input"] == below


@ranges
def test_a_value_above_its_range_is_refused(id: str, field: str, lowest: int, highest: int) -> None:
    above = 10.0001 if field == "cond_aug" else highest + 1
    [detail] = refuse(id, **{field: above})

    assert detail["loc"] == ["body", field]
    assert (detail["type"], detail["ctx"]) == ("less_than_equal", {"le": highest})
    assert detail["input"] == above


@pytest.mark.parametrize(("given", "taken"), [("127", 127), (127.0, 127), (True, 1)])
def test_what_means_a_whole_number_is_taken_as_one(given: Any, taken: int) -> None:
    assert parse(SVD, motion_bucket_id=given).motion_bucket_id == taken


@pytest.mark.parametrize(
    ("field", "given", "type"),
    [
        ("motion_bucket_id", 127.5, "int_from_float"),
        ("motion_bucket_id", "many", "int_parsing"),
        ("motion_bucket_id", None, "int_type"),
        ("motion_bucket_id", [1], "int_type"),
        ("seed", 1.5, "int_from_float"),
        ("seed", "abc", "int_parsing"),
        ("seed", 2**64, "less_than_equal"),
        ("cond_aug", "much", "float_parsing"),
        ("cond_aug", {}, "float_type"),
        ("cond_aug", "nan", "finite_number"),
        ("cond_aug", "inf", "finite_number"),
        ("image_url", None, "string_type"),
        ("image_url", 5, "string_type"),
        ("image_url", {"$gt": ""}, "string_type"),
        ("image_url", "", "string_too_short"),
    ],
)
def test_a_value_of_another_kind_is_refused(field: str, given: Any, type: str) -> None:
    [detail] = refuse(SVD, **{field: given})

    assert (detail["loc"], detail["type"]) == (["body", field], type)
    assert detail["url"] == f"https://docs.fal.ai/errors#{type}"


@pytest.mark.parametrize(("id", "field"), [(id, next(iter(REQUIRED[id]))) for id in REQUIRED])
def test_what_is_required_is_missed(id: str, field: str) -> None:
    with pytest.raises(ValidationError) as caught:
        ENDPOINTS[id].Input.model_validate({})

    [detail] = InvalidInput(caught.value.errors()).body()["detail"]
    assert (detail["loc"], detail["type"], detail["msg"]) == (["body", field], "missing", "Field required")


@everywhere
def test_unknown_fields_are_ignored(id: str) -> None:
    unknown = {"enable_safety_checker": True, "__proto__": {}, "video_length": 99}

    assert parse(id, seed=1, **unknown) == parse(id, seed=1)


# ---------------------------------------------------------------- seeds


@everywhere
def test_a_random_seed_is_exact_in_javascript(id: str) -> None:
    seeds = {parse(id).seed for _ in range(100)}

    assert len(seeds) > 90
    assert all(0 <= seed <= JS_SAFE for seed in seeds)


def test_no_random_seed_can_be_beyond_javascript() -> None:
    from deployments.models.base import MAX_RANDOM_SEED

    assert MAX_RANDOM_SEED <= JS_SAFE


@everywhere
def test_a_kept_input_keeps_its_seed(id: str) -> None:
    input = parse(id)

    assert ENDPOINTS[id].Input.model_validate_json(input.model_dump_json()) == input


@given(seed=st.integers(0, 2**63 - 1), cond_aug=st.floats(0, 10), motion=st.integers(1, 255), steps=st.integers(1, 100))
def test_a_kept_input_is_the_callers_exactly(seed: int, cond_aug: float, motion: int, steps: int) -> None:
    input = parse(SVD, seed=seed, cond_aug=cond_aug, motion_bucket_id=motion, steps=steps)
    kept = ENDPOINTS[SVD].Input.model_validate_json(input.model_dump_json())

    assert (kept.seed, kept.cond_aug, kept.motion_bucket_id) == (seed, cond_aug, motion)
    assert ENDPOINTS[SVD].plan(kept).steps == steps


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
field_names = sorted({name for endpoint in ENDPOINTS.values() for name in endpoint.Input.model_fields})


@given(
    id=st.sampled_from(sorted(REQUIRED)), body=st.dictionaries(st.sampled_from(field_names), json_values) | json_values
)
def test_any_json_is_an_input_or_an_error_that_can_be_sent(id: str, body: Any) -> None:
    endpoint = ENDPOINTS[id]
    try:
        input = endpoint.Input.model_validate(body)
    except ValidationError as error:
        sent = json.loads(json.dumps(InvalidInput(error.errors()).body(), allow_nan=False))
        assert sent["detail"]
        assert all(detail["loc"][0] == "body" and detail["msg"] and detail["type"] for detail in sent["detail"])
    else:
        assert endpoint.Input.model_validate_json(input.model_dump_json()) == input


# ---------------------------------------------------------------- prompts and sizes


def test_a_prompt_may_be_anything_within_its_length() -> None:
    for prompt in ("x", "😀", "שלום", "x" * 10_000):
        assert parse(TEXT_TO_VIDEO, prompt=prompt).model_dump()["prompt"] == prompt


@pytest.mark.parametrize(
    ("prompt", "type", "context"),
    [("", "string_too_short", {"min_length": 1}), ("x" * 10_001, "string_too_long", {"max_length": 10_000})],
)
def test_a_prompt_has_bounds(prompt: str, type: str, context: dict[str, int]) -> None:
    [detail] = refuse(TEXT_TO_VIDEO, prompt=prompt)

    assert (detail["loc"], detail["type"], detail["ctx"]) == (["body", "prompt"], type, context)


def text_to_video(**config: Any) -> TextToVideo:
    return TextToVideo(TEXT_TO_VIDEO, TextToVideoConfig(weights="none", video=FAST, **config))


def planned_size(endpoint: Endpoint, video_size: Any) -> Size | None:
    return endpoint.plan(parse(TEXT_TO_VIDEO, video_size=video_size)).size


@pytest.mark.parametrize(
    ("preset", "size"),
    [
        ("square_hd", Size(1024, 1024)),
        ("square", Size(512, 512)),
        ("portrait_4_3", Size(768, 1024)),
        ("portrait_16_9", Size(576, 1024)),
        ("landscape_4_3", Size(1024, 768)),
        ("landscape_16_9", Size(1024, 576)),
    ],
)
def test_a_named_size_is_fals(preset: str, size: Size) -> None:
    assert planned_size(text_to_video(), preset) == size


def test_every_named_size_is_tested() -> None:
    assert len(PRESETS) == 6


@pytest.mark.parametrize(
    ("asked", "size"),
    [
        ({}, Size(512, 512)),
        ({"width": 768}, Size(768, 512)),
        ({"height": 768}, Size(512, 768)),
        ({"width": 513, "height": 543}, Size(512, 512)),
        ({"width": 545, "height": 640}, Size(576, 640)),
        ({"width": 1, "height": 14142}, Size(256, 1280)),
    ],
)
def test_a_size_of_the_callers_own_is_rounded_to_what_can_be_made(asked: dict[str, int], size: Size) -> None:
    assert planned_size(text_to_video(), asked) == size


def test_a_scaled_down_server_makes_smaller_clips_of_the_same_shape() -> None:
    small = text_to_video(scale=0.109375, multiple=16)

    assert planned_size(small, "landscape_16_9") == Size(112, 64)
    assert planned_size(small, "portrait_16_9") == Size(64, 112)


@given(
    width=st.integers(1, 14142),
    height=st.integers(1, 14142),
    scale=st.floats(0.01, 1),
    multiple=st.sampled_from([8, 16, 64]),
)
def test_every_size_can_be_made_by_the_networks(width: int, height: int, scale: float, multiple: int) -> None:
    endpoint = text_to_video(scale=scale, multiple=multiple)
    planned = endpoint.plan(parse(TEXT_TO_VIDEO, video_size={"width": width, "height": height}))

    assert planned.size is not None
    for side in (planned.size.width, planned.size.height):
        assert side % multiple == 0
        assert multiple <= side <= 1280
    assert planned.pixel_frames == planned.size.width * planned.size.height * FRAMES


@pytest.mark.parametrize(
    ("video_size", "types"),
    [
        ("nope", {"literal_error"}),
        ({"width": 0}, {"greater_than"}),
        ({"width": -1}, {"greater_than"}),
        ({"height": 14143}, {"less_than_equal"}),
        ({"width": 100_000, "height": 100_000}, {"less_than_equal"}),
        ({"width": "wide"}, {"int_parsing"}),
        (None, {"literal_error"}),
        (512, {"literal_error"}),
    ],
)
def test_another_video_size_is_refused(video_size: Any, types: set[str]) -> None:
    details = refuse(TEXT_TO_VIDEO, video_size=video_size)

    assert all(detail["loc"][:2] == ["body", "video_size"] for detail in details)
    assert types <= {detail["type"] for detail in details}


# ---------------------------------------------------------------- what is not offered


def test_svd_without_a_controlnet_refuses_depth_maps_by_name() -> None:
    endpoint = SVDEndpoint(SVD, SVDConfig(weights="none"))
    with pytest.raises(FeatureNotSupported) as caught:
        endpoint.plan(parse(SVD, control_maps_data_url="https://example.com/maps.zip"))

    [detail] = caught.value.body()["detail"]
    assert caught.value.status == 422
    assert (detail["loc"], detail["type"]) == (["body", "control_maps_data_url"], "feature_not_supported")


@pytest.mark.parametrize("field", ["mask_image_url", "control_maps_data_url"])
@pytest.mark.parametrize("nothing", [None, ""])
def test_svd_takes_no_mask_as_none(field: str, nothing: str | None) -> None:
    assert plan(SVD, **{field: nothing}) == plan(SVD)


def test_led_clips_share_batches_among_themselves_and_weigh_as_many_frames_as_there_may_be_maps() -> None:
    config = SVDConfig(weights="none", controlnet=ControlNetConfig(weights="none", max_maps=14))
    endpoint = SVDEndpoint(SVD, config)
    led = endpoint.plan(parse(SVD, control_maps_data_url="https://example.com/maps.zip"))
    other = endpoint.plan(parse(SVD, control_maps_data_url="https://example.com/other.zip", seed=3))
    free = endpoint.plan(parse(SVD))

    assert led == other
    assert led.batch_key != free.batch_key
    assert led.pixel_frames * FRAMES == free.pixel_frames * 14


def test_a_mask_changes_nothing_about_the_batch() -> None:
    assert plan(SVD, mask_image_url="https://example.com/mask.png") == plan(SVD)


# ---------------------------------------------------------------- plans


@everywhere
def test_inputs_that_differ_in_the_clip_alone_share_a_batch(id: str) -> None:
    fields = {"seed": 1, "motion_bucket_id": 3, "cond_aug": 0.5} | ({} if id == SVD else {"fps": 20})

    assert plan(id, **fields).batch_key == plan(id).batch_key


@pytest.mark.parametrize("id", [SVD, FAST, TEXT_TO_VIDEO])
def test_inputs_of_different_steps_share_no_batch(id: str) -> None:
    assert plan(id, steps=3).batch_key != plan(id, steps=5).batch_key


def test_clips_of_different_sizes_share_no_batch() -> None:
    assert plan(TEXT_TO_VIDEO, video_size="square").batch_key != plan(TEXT_TO_VIDEO).batch_key
    assert plan(TEXT_TO_VIDEO, video_size="landscape_16_9").batch_key == plan(TEXT_TO_VIDEO).batch_key


def test_pictures_are_not_claimed_together_with_prompts_of_known_size() -> None:
    assert plan(FAST).batch_key != plan(TEXT_TO_VIDEO).batch_key


def test_text_to_video_waits_for_the_fast_model() -> None:
    assert ENDPOINTS[TEXT_TO_VIDEO].model == ENDPOINTS[FAST].model == ENDPOINTS[FAST].deployment
    assert ENDPOINTS[TEXT_TO_VIDEO].deployment != ENDPOINTS[FAST].deployment


@pytest.mark.parametrize("id", [STABLE_VIDEO, SVD, FAST])
def test_a_picture_weighs_what_the_largest_size_weighs(id: str) -> None:
    endpoint = type(ENDPOINTS[id])(id, VideoConfig(weights="none", sizes=("64x112", "80x80", "112x64")))

    planned = endpoint.plan(parse(id))
    assert planned.size is None
    assert planned.pixel_frames == 112 * 64 * FRAMES


@pytest.mark.parametrize("id", [STABLE_VIDEO, SVD, FAST])
def test_a_clip_has_as_many_frames_as_the_configuration_says(id: str) -> None:
    endpoint = type(ENDPOINTS[id])(id, VideoConfig(weights="none", frames=14, sizes=("112x64",)))

    assert endpoint.plan(parse(id)).pixel_frames == 112 * 64 * 14
    assert text_to_video(frames=14).plan(parse(TEXT_TO_VIDEO)).frames == 14
    assert plan(id).frames == FRAMES


def test_only_svd_calls_its_video_image() -> None:
    assert {id: endpoint.result_key for id, endpoint in ENDPOINTS.items()} == {
        STABLE_VIDEO: "video",
        SVD: "image",
        FAST: "video",
        TEXT_TO_VIDEO: "video",
    }


@given(width=st.integers(1, 10**6), height=st.integers(1, 10**6))
def test_a_size_is_read_as_it_is_written(width: int, height: int) -> None:
    size = Size(width, height)

    assert Size.parse(str(size)) == Size.parse(size) == size


@pytest.mark.parametrize(
    "text", ["", "1024", "1024x", "x576", "0x576", "1024x-576", "1024 x 576", "a x b", "1x2x3", None, 5]
)
def test_another_size_is_refused(text: Any) -> None:
    with pytest.raises(ValueError, match="WIDTHxHEIGHT"):
        Size.parse(text)
